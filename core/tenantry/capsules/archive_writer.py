"""Writes a capsule as a stream. The module `archive` defines the format of capsules."""

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
    BLOCK_BYTES,
    CHUNK_BYTES,
    MANIFEST,
    TRAILER,
    TRAILER_BEGINNING,
    CapsuleError,
    manifest_line,
)
from tenantry.capsules.locks import lock_exclusively, sync_folder

COMPRESSION_LEVEL = 3
"""Default compression level of zstd.

Higher compression levels take several times the CPU time, and save only a few percent.
"""

_UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{8}\.new")


class ArchiveWriter:
    """Writes one capsule during a `with` block.

    When the `with` block ends, the new capsule replaces an older capsule at the same path. When the
    `with` block raises an exception, the writer removes the unfinished capsule. At the start, the
    writer also removes unfinished capsules that killed processes left for the same path.

    Args:
        path: the path of the finished capsule.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        _remove_unfinished(self._path)
        self._unfinished, file = _open_unfinished(self._path)
        self._file = _HashingFile(file)
        self._manifest: IO[bytes] = TemporaryFile()
        self._size_bytes = 0
        sink: Any = self._file
        compressor = zstandard.ZstdCompressor(COMPRESSION_LEVEL, write_checksum=True)
        self._zstd: Any = compressor.stream_writer(sink, closefd=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
                self._publish()
        finally:
            self._unfinished.unlink(missing_ok=True)
            self._file.file.close()
            self._manifest.close()

    def add(self, name: str, content: bytes) -> None:
        """Add a file with the given name and content."""
        self._write_header(name, size=len(content), mode=0o600, mtime=0)
        self._write(content)
        self._pad(len(content))
        self._note(name, len(content), hashlib.sha256(content).hexdigest())

    def add_file(self, name: str, file: IO[bytes]) -> int:
        """Add the content of an open file, and return the number of bytes.

        Raises:
            CapsuleError: the file became shorter while it was read.
        """
        info, sha256 = os.fstat(file.fileno()), hashlib.sha256()
        mode, mtime = info.st_mode & 0o777, int(info.st_mtime)
        self._write_header(name, size=info.st_size, mode=mode, mtime=mtime)
        left = info.st_size
        while left:
            chunk = file.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise CapsuleError(f"{name!r} became shorter while it was read; try again")
            sha256.update(chunk)
            self._write(chunk)
            left -= len(chunk)
        self._pad(info.st_size)
        self._note(name, info.st_size, sha256.hexdigest())
        return info.st_size

    def _write_header(self, name: str, *, size: int, mode: int, mtime: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, mode, max(mtime, 0)
        self._write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))

    def _pad(self, size: int) -> None:
        self._write(bytes(-size % BLOCK_BYTES))

    def _write(self, data: bytes) -> None:
        self._size_bytes += len(data)
        self._zstd.write(data)

    def _note(self, name: str, size_bytes: int, sha256: str) -> None:
        self._manifest.write(manifest_line(name, size_bytes, sha256))

    def _finish(self) -> None:
        """Write the manifest and the trailer."""
        self._manifest.seek(0)
        size = os.fstat(self._manifest.fileno()).st_size
        self._write_header(MANIFEST, size=size, mode=0o600, mtime=0)
        while chunk := self._manifest.read(CHUNK_BYTES):
            self._write(chunk)
        self._pad(size)
        self._write(bytes(2 * BLOCK_BYTES))
        self._zstd.close()
        self._file.write(TRAILER.pack(*TRAILER_BEGINNING, self._size_bytes))
        self._file.file.write(self._file.sha256.digest())
        self._file.flush()
        os.fsync(self._file.file.fileno())

    def _publish(self) -> None:
        """Rename the finished capsule to its final path."""
        self._unfinished.rename(self._path)
        sync_folder(self._path.parent)


class _HashingFile:
    """A file that hashes all bytes that are written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _open_unfinished(path: Path) -> tuple[Path, IO[bytes]]:
    """Create a file beside a capsule, and return its path and the open file, which is locked."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    while True:
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
        file = os.fdopen(os.open(unfinished, flags, 0o600), "wb")
        with suppress(BlockingIOError):
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink:
                return unfinished, file
        file.close()  # another process removed the file before it was locked


def _remove_unfinished(path: Path) -> None:
    """Remove unfinished capsules for a path, except those that a process is writing."""
    for unfinished in path.parent.iterdir():
        match = _UNFINISHED.fullmatch(unfinished.name)
        if match and match[1] == path.name:
            with suppress(OSError):  # another process is still writing this capsule
                fd = lock_exclusively(unfinished)
                try:
                    unfinished.unlink()
                finally:
                    os.close(fd)
