"""A folder of files named by the SHA-256 of their content: each is there whole, or not at all.

    <folder>/ab/abcd…      content whose hash begins with ab
    <folder>/incoming/     what is being received

Several threads and processes may use one folder. Whoever adds or removes content does it, and
what belongs to it elsewhere, under the lock of its shard: the folder `ab`, locked as a file is.
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

_COPY_BYTES = 64 << 10


@dataclass(frozen=True)
class ReceivedFile:
    """Bytes that came in, in a file of their own until they are kept."""

    path: Path
    sha256: str
    size_bytes: int


class ContentFolder:
    """A folder of content. Made when something is received; holds nothing open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"

    def path_of(self, sha256: str) -> Path:
        """Return where content with this hash is, if it is there."""
        return self._folder / sha256[:2] / sha256

    def is_whole(self, sha256: str, size_bytes: int) -> bool:
        """Whether content is there, and its bytes are what they were: reads all of them."""
        return _is_whole(self.path_of(sha256), size_bytes)

    @contextmanager
    def receiving(self, body: IO[bytes]) -> Iterator[ReceivedFile]:
        """Copy a stream to a file, hashed on the way; gone after the block if it was not kept."""
        self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=self._incoming, delete=False) as file:
            path = Path(file.name)
            try:
                sha256, size = hashlib.sha256(), 0
                while part := body.read(_COPY_BYTES):
                    sha256.update(part)
                    size += file.write(part)
                file.flush()
                yield ReceivedFile(path, sha256.hexdigest(), size)
            finally:
                path.unlink(missing_ok=True)

    @contextmanager
    def locked(self, sha256: str) -> Iterator["Shard"]:
        """Hold the lock of the shard that content with this hash (or its first two digits) is in.

        Blocks while another thread or process holds it; if that one dies, the lock is free.
        """
        folder = self._folder / sha256[:2]
        if not folder.is_dir():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self._folder):  # a backup holds it while it looks which folders there are
                folder.mkdir(mode=0o700, exist_ok=True)
                _sync(self._folder)
        with _locked(folder):
            yield Shard(folder)

    def shards(self) -> list[str]:
        """Return the first two digits of each shard that was ever used, sorted."""
        if not self._folder.is_dir():
            return []
        return sorted(path.name for path in self._folder.iterdir() if len(path.name) == 2)  # noqa: PLR2004 - as in path_of

    def is_empty(self) -> bool:
        """Whether nothing is kept."""
        return not any(any((self._folder / shard).iterdir()) for shard in self.shards())

    def abandoned(self, older_than_s: float) -> list[Path]:
        """Return what was received and neither kept nor removed: its process was killed."""
        return _older(self._incoming, older_than_s)


@dataclass(frozen=True)
class Shard:
    """The files of one shard, while its lock is held."""

    folder: Path

    def keep(self, received: ReceivedFile) -> None:
        """Give received bytes their name, durably; those that are there already stay, if whole."""
        path = self.folder / received.sha256
        if _is_whole(path, received.size_bytes):
            return
        _sync(received.path)
        received.path.rename(path)
        _sync(self.folder)

    def remove(self, sha256: str) -> None:
        """Remove content, if it is there."""
        (self.folder / sha256).unlink(missing_ok=True)

    def sizes(self) -> dict[str, int]:
        """Return the hash and the size in bytes of each file."""
        return {path.name: path.stat().st_size for path in self.folder.iterdir()}

    def older(self, older_than_s: float) -> list[Path]:
        """Return the files that were written longer ago than this."""
        return _older(self.folder, older_than_s)


def _is_whole(path: Path, size_bytes: int) -> bool:
    """Whether a file has the content that its name says."""
    try:
        with path.open("rb") as file:
            is_as_long = os.fstat(file.fileno()).st_size == size_bytes
            return is_as_long and hashlib.file_digest(file, "sha256").hexdigest() == path.name
    except OSError:  # it is gone, or its disk cannot read it any more
        return False


def _older(folder: Path, older_than_s: float) -> list[Path]:
    before = time.time() - older_than_s
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            is_old = path.stat().st_mtime <= before
        except FileNotFoundError:  # kept or removed meanwhile
            continue
        if is_old:
            found.append(path)
    return found


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
