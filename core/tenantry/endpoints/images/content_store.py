"""Content-addressed files: the name of each file is the SHA-256 of the file's content.

    <folder>/ab/abcd…      content whose hash begins with ab
    <folder>/incoming/     uploads in progress

The store never contains a partly written content file. Threads and processes may share a store:
each change of a shard (the folder `ab`), and of the database rows of the shard's files, happens
under the shard's lock.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

SHARD_DIGITS = 2

_COPY_BYTES = 64 * 1024


@dataclass(frozen=True)
class ReceivedFile:
    """An upload in a separate file of the folder `incoming`."""

    path: Path
    sha256: str
    size_bytes: int


class ContentStore:
    """The content files in one folder, which the first upload creates. Keeps no file open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"

    def path_of(self, sha256: str) -> Path:
        """Return the path of the content with the given hash. The file may not exist."""
        return self._folder / sha256[:SHARD_DIGITS] / sha256

    def is_intact(self, sha256: str, size_bytes: int) -> bool:
        """Return whether a content file exists and has the right hash; read the whole file."""
        return _is_intact(self.path_of(sha256), size_bytes)

    @contextmanager
    def receiving(self, body: IO[bytes]) -> Iterator[ReceivedFile]:
        """Copy and hash a stream to a file. The end of the block deletes an upload not kept."""
        self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=self._incoming, delete=False) as file:
            path = Path(file.name)
            try:
                sha256, size_bytes = hashlib.sha256(), 0
                while part := body.read(_COPY_BYTES):
                    sha256.update(part)
                    size_bytes += file.write(part)
                file.flush()
                yield ReceivedFile(path, sha256.hexdigest(), size_bytes)
            finally:
                path.unlink(missing_ok=True)

    @contextmanager
    def locked(self, sha256: str) -> Iterator["Shard"]:
        """Hold the lock of a shard, given the shard's name or a hash in the shard.

        `locked` waits while another thread or process holds the shard's lock. The end of a process
        releases the process's locks.
        """
        folder = self._folder / sha256[:SHARD_DIGITS]
        if not folder.is_dir():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A backup holds the folder's lock while the backup lists the shards.
            with _locked(self._folder):
                folder.mkdir(mode=0o700, exist_ok=True)
                _sync(self._folder)
        with _locked(folder):
            yield Shard(folder)

    def shards(self) -> list[str]:
        """Return the names of all shards, sorted."""
        if not self._folder.is_dir():
            return []
        names = (path.name for path in self._folder.iterdir())
        return sorted(name for name in names if len(name) == SHARD_DIGITS)

    def is_empty(self) -> bool:
        """Return whether the store has no content files."""
        return not any(any((self._folder / shard).iterdir()) for shard in self.shards())

    def abandoned_uploads(self, older_than_s: float) -> list[Path]:
        """Return the files of uploads that did not end because their process was killed."""
        return _older(self._incoming, older_than_s)


@dataclass(frozen=True)
class Shard:
    """The content files of one shard, while the shard's lock is held."""

    folder: Path

    def keep(self, received: ReceivedFile) -> None:
        """Store an upload durably. An intact file with the same content is not replaced."""
        path = self.folder / received.sha256
        if _is_intact(path, received.size_bytes):
            return
        _sync(received.path)
        received.path.rename(path)
        _sync(self.folder)

    def remove(self, sha256: str) -> None:
        """Remove the content with the given hash, if the content file exists."""
        (self.folder / sha256).unlink(missing_ok=True)

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each content file, by hash."""
        return {path.name: path.stat().st_size for path in self.folder.iterdir()}

    def older(self, older_than_s: float) -> list[Path]:
        """Return the files whose last write is longer ago than the given age."""
        return _older(self.folder, older_than_s)


def _is_intact(path: Path, size_bytes: int) -> bool:
    try:
        with path.open("rb") as file:
            has_size = os.fstat(file.fileno()).st_size == size_bytes
            return has_size and hashlib.file_digest(file, "sha256").hexdigest() == path.name
    except OSError:  # The file is missing, or the disk cannot read the file.
        return False


def _older(folder: Path, older_than_s: float) -> list[Path]:
    before = time.time() - older_than_s
    older = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            is_older = path.stat().st_mtime <= before
        except FileNotFoundError:  # The upload was kept or removed before the end of the block.
            continue
        if is_older:
            older.append(path)
    return older


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    """Write a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
