"""Stores files under the SHA-256 hash of their content.

    <folder>/ab/abcd…      content whose hash begins with ab
    <folder>/incoming/     uploads in progress

A folder such as `ab` is called a shard. A shard contains only complete files. Threads and processes
can share a store, because each shard has a lock. While a thread changes the files of a shard, or
the database rows that belong to these files, the thread holds the lock.
"""

__shared__ = True

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

from .errors import InvalidHashError

SHARD_DIGITS = 2
_HASH = re.compile("[0-9a-f]{64}")
_SHARD_NAME = re.compile("[0-9a-f]{2}")

_COPY_BYTES = 64 * 1024


@dataclass(frozen=True)
class ReceivedFile:
    """An upload, which is stored in the folder `incoming`."""

    path: Path
    sha256: str
    size_bytes: int


class ContentStore:
    """Stores files in one folder, which the first upload creates."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"

    def path_of(self, sha256: str) -> Path:
        """Return the path of the file with a hash, even if the file does not exist.

        Raises:
            InvalidHashError: the text is not a SHA-256 hash.
        """
        if not is_hash(sha256):
            raise InvalidHashError
        return self._folder / sha256[:SHARD_DIGITS] / sha256

    def is_intact(self, sha256: str, size_bytes: int) -> bool:
        """Read a whole file, and return whether it exists and has the correct hash."""
        return _is_intact(self.path_of(sha256), size_bytes)

    @contextmanager
    def receiving(self, body: IO[bytes]) -> Iterator[ReceivedFile]:
        """Copy a stream to a file, and compute its hash.

        Unless the upload is kept, the end of the `with` block deletes the file.
        """
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
        """Lock a shard during the `with` block, given its name or a hash.

        If another thread or process holds the lock, this method waits. When a process ends, its
        locks are released.

        Raises:
            InvalidHashError: the text is neither the name of a shard nor a hash.
        """
        if not is_hash(sha256) and not is_shard_name(sha256):
            raise InvalidHashError
        folder = self._folder / sha256[:SHARD_DIGITS]
        if not folder.is_dir():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # While a backup lists the shards, it holds the lock of the folder.
            with _locked(self._folder):
                folder.mkdir(mode=0o700, exist_ok=True)
                _sync(self._folder)
        with _locked(folder):
            yield Shard(folder)

    def shards(self) -> list[str]:
        """Return the sorted names of all shards."""
        if not self._folder.is_dir():
            return []
        names = (path.name for path in self._folder.iterdir())
        return sorted(filter(is_shard_name, names))

    def is_empty(self) -> bool:
        """Whether the store has no files."""
        return not any(any((self._folder / shard).iterdir()) for shard in self.shards())

    def abandoned_uploads(self, older_than_s: float) -> list[Path]:
        """Return the incomplete uploads of killed processes."""
        return _older(self._incoming, older_than_s)


@dataclass(frozen=True)
class Shard:
    """The files of one shard, while the lock of the shard is held."""

    folder: Path

    def keep(self, received: ReceivedFile) -> None:
        """Move an upload to the shard, unless the shard has an intact file of the same content."""
        path = self.folder / received.sha256
        if _is_intact(path, received.size_bytes):
            return
        _sync(received.path)
        received.path.rename(path)
        _sync(self.folder)

    def remove(self, sha256: str) -> None:
        """Remove the file with the given hash, if it exists.

        Raises:
            InvalidHashError: the text is not a SHA-256 hash.
        """
        if not is_hash(sha256):
            raise InvalidHashError
        (self.folder / sha256).unlink(missing_ok=True)

    def sizes(self) -> dict[str, int]:
        """Map the hash of each file to the size of the file, in bytes."""
        return {path.name: path.stat().st_size for path in self.folder.iterdir()}

    def older(self, older_than_s: float) -> list[Path]:
        """Return the files whose last write is longer ago than the given time."""
        return _older(self.folder, older_than_s)


def is_hash(text: str) -> bool:
    """Return whether a text is a SHA-256 hash, so that it can be the name of a file."""
    return _HASH.fullmatch(text) is not None


def is_shard_name(text: str) -> bool:
    """Return whether a text can be the name of a shard."""
    return _SHARD_NAME.fullmatch(text) is not None


def _is_intact(path: Path, size_bytes: int) -> bool:
    try:
        with path.open("rb") as file:
            has_size = os.fstat(file.fileno()).st_size == size_bytes
            return has_size and hashlib.file_digest(file, "sha256").hexdigest() == path.name
    except OSError:  # the file is missing, or cannot be read
        return False


def _older(folder: Path, older_than_s: float) -> list[Path]:
    before = time.time() - older_than_s
    older = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            is_older = path.stat().st_mtime <= before
        except FileNotFoundError:  # the upload has just ended
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
    """Write a file, or the list of a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
