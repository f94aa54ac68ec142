"""Content-addressed files: each is named after the SHA-256 of its content.

    <folder>/ab/abcd…      content whose hash begins with ab
    <folder>/incoming/     uploads in progress

A file is present in full or not at all. Threads and processes may share a folder: each change of a
shard (the folder `ab`), and of the rows that belong to it, happens under the shard's lock.
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
    """An upload in a file of its own."""

    path: Path
    sha256: str
    size_bytes: int


class ContentStore:
    """The content in one folder, which the first upload creates. Keeps no file open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"

    def path_of(self, sha256: str) -> Path:
        """Return the path of the content with this hash, which may not exist."""
        return self._folder / sha256[:SHARD_DIGITS] / sha256

    def is_intact(self, sha256: str, size_bytes: int) -> bool:
        """Return whether the content exists and has its hash; reads the whole file."""
        return _is_intact(self.path_of(sha256), size_bytes)

    @contextmanager
    def receiving(self, body: IO[bytes]) -> Iterator[ReceivedFile]:
        """Copy a stream to a file and hash it. After the block, the file is deleted unless kept."""
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
        """Hold the lock of a shard, given a hash in it or the shard's name.

        Waits while another thread or process holds it. The end of a process releases its locks.
        """
        folder = self._folder / sha256[:SHARD_DIGITS]
        if not folder.is_dir():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self._folder):  # a backup holds this lock while it lists the shards
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
        """Return whether there is no content."""
        return not any(any((self._folder / shard).iterdir()) for shard in self.shards())

    def abandoned_uploads(self, older_than_s: float) -> list[Path]:
        """Return uploads that neither finished nor failed, because their process was killed."""
        return _older(self._incoming, older_than_s)


@dataclass(frozen=True)
class Shard:
    """The files of one shard, while its lock is held."""

    folder: Path

    def keep(self, received: ReceivedFile) -> None:
        """Store an upload durably. An intact file with the same content stays as it is."""
        path = self.folder / received.sha256
        if _is_intact(path, received.size_bytes):
            return
        _sync(received.path)
        received.path.rename(path)
        _sync(self.folder)

    def remove(self, sha256: str) -> None:
        """Remove content if it exists."""
        (self.folder / sha256).unlink(missing_ok=True)

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file, by hash."""
        return {path.name: path.stat().st_size for path in self.folder.iterdir()}

    def older(self, older_than_s: float) -> list[Path]:
        """Return the files that were written longer ago than this."""
        return _older(self.folder, older_than_s)


def _is_intact(path: Path, size_bytes: int) -> bool:
    try:
        with path.open("rb") as file:
            has_size = os.fstat(file.fileno()).st_size == size_bytes
            return has_size and hashlib.file_digest(file, "sha256").hexdigest() == path.name
    except OSError:  # it is gone, or the disk cannot read it
        return False


def _older(folder: Path, older_than_s: float) -> list[Path]:
    before = time.time() - older_than_s
    older = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            is_older = path.stat().st_mtime <= before
        except FileNotFoundError:  # kept or removed meanwhile
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
