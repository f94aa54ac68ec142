"""Writes the file of a capsule, as a stream; what `file` says is what it looks like."""

import fcntl
import hashlib
import os
import re
import secrets
import tarfile
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Self

import zstandard

from tenantry.capsules.archive import (
    BLOCK,
    COPY_BYTES,
    END,
    END_BEGINS,
    MANIFEST,
    CapsuleError,
    manifest_line,
)
from tenantry.capsules.locks import lock, sync_folder

LEVEL = 3
"""zstd's own default: higher ones cost several times the processor for a few percent."""

_UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{8}\.new")


class ChangedFileError(Exception):
    """A file became shorter while it was read."""


class ArchiveWriter:
    """Writes a capsule: whole under its name after the `with` block, or not at all.

    What killed processes left of capsules of this name is removed.

    Args:
        path: its name; a file that is there before is replaced by the whole new one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._older = _identity(path)

    def __enter__(self) -> Self:
        _sweep(self._path)
        self._unfinished, file = _new_file(self._path)
        self._raw = _Hashed(file)
        self._manifest: IO[bytes] = TemporaryFile()
        self._size = 0
        raw: Any = self._raw
        self._zstd: Any = zstandard.ZstdCompressor(LEVEL, write_checksum=True).stream_writer(
            raw, closefd=False
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._end()
                self._publish()
        finally:
            self._unfinished.unlink(missing_ok=True)
            self._raw.file.close()
            self._manifest.close()

    def _publish(self) -> None:
        """Give the capsule its name; what came to have this name meanwhile is not replaced."""
        if self._older is not None and self._older == _identity(self._path):
            self._unfinished.rename(self._path)
        else:
            try:
                _name(self._unfinished, self._path)
            except FileExistsError as error:
                text = f"{self._path} was written by somebody else meanwhile"
                raise CapsuleError(f"{text}; name another file") from error
        sync_folder(self._path.parent)

    def add(self, name: str, content: bytes) -> None:
        """Add a part that is at hand."""
        self._head(name, len(content), 0o600, 0)
        self._write(content)
        self._pad(len(content))
        self._note(name, len(content), hashlib.sha256(content).hexdigest())

    def add_file(self, name: str, file: IO[bytes]) -> int:
        """Add a file as a part, as long as it is now; return its size in bytes.

        Raises:
            ChangedFileError: it became shorter meanwhile.
        """
        info, sha256 = os.fstat(file.fileno()), hashlib.sha256()
        self._head(name, info.st_size, info.st_mode & 0o777, int(info.st_mtime))
        left = info.st_size
        while left:
            part = file.read(min(left, COPY_BYTES))
            if not part:
                raise ChangedFileError
            sha256.update(part)
            self._write(part)
            left -= len(part)
        self._pad(info.st_size)
        self._note(name, info.st_size, sha256.hexdigest())
        return info.st_size

    def _head(self, name: str, size: int, mode: int, mtime: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, mode, max(mtime, 0)
        self._write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))

    def _pad(self, size: int) -> None:
        self._write(bytes(-size % BLOCK))

    def _write(self, data: bytes) -> None:
        self._size += len(data)
        self._zstd.write(data)

    def _note(self, name: str, size: int, sha256: str) -> None:
        self._manifest.write(manifest_line(name, size, sha256))

    def _end(self) -> None:
        self._manifest.seek(0)
        size = os.fstat(self._manifest.fileno()).st_size
        self._head(MANIFEST, size, 0o600, 0)
        while part := self._manifest.read(COPY_BYTES):
            self._write(part)
        self._pad(size)
        self._write(bytes(2 * BLOCK))
        self._zstd.close()
        self._raw.write(END.pack(*END_BEGINS, self._size))
        self._raw.file.write(self._raw.sha256.digest())
        self._raw.file.flush()
        os.fsync(self._raw.file.fileno())


class _Hashed:
    """A file, and the hash of what was written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _name(unfinished: Path, path: Path) -> None:
    """Give a file a name that nobody has.

    Raises:
        FileExistsError: somebody has it.
    """
    try:
        os.link(unfinished, path)
    except FileExistsError:
        raise
    except OSError:  # vfat, exFAT and some network disks have no links
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            unfinished.rename(path)
        except BaseException:
            path.unlink()
            raise


def _identity(path: Path) -> tuple[int, ...] | None:
    """Return what tells a file from another one, or from its later self; None if there is none."""
    with suppress(FileNotFoundError):
        info = path.lstat()
        return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns
    return None


def _new_file(path: Path) -> tuple[Path, IO[bytes]]:
    """Return a new file beside a capsule, locked as long as it is open."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    while True:
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
        file = os.fdopen(os.open(unfinished, flags, 0o600), "wb")
        with suppress(BlockingIOError):
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink:
                return unfinished, file
        file.close()  # somebody took it for one that was left, before it was locked


def _sweep(path: Path) -> None:
    """Remove what killed processes left of capsules of this name: nobody holds their locks."""
    for left in path.parent.iterdir():
        is_one = _UNFINISHED.fullmatch(left.name)
        if is_one and is_one[1] == path.name:
            with suppress(OSError):
                opened = lock(left)
                try:
                    left.unlink()
                finally:
                    os.close(opened)
