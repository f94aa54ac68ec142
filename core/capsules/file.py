"""The file of a capsule: parts, a manifest of their hashes, and the hash of it all at its end.

    zstd frame          a tar archive: the parts in their order, the last one `manifest.jsonl`
    zstd skippable      the SHA-256 of all bytes before it; other programs skip it

So `tar --zstd -tf FILE` lists a capsule. zstd, not gzip of the standard library: a backup is made
on a host that serves, and pictures, which no codec makes smaller, cost gzip twenty times the
processor. Written and read as streams. What is read is not trusted: names are checked by whoever
uses them, nothing is unpacked by itself, and memory does not grow with what a file claims.
"""

import hashlib
import json
import os
import secrets
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NoReturn, Self

import zstandard

from core.errors import TenantryError

MANIFEST = "manifest.jsonl"

LEVEL = 3
"""zstd's own default: higher ones cost several times the processor for a few percent."""

WINDOW_BYTES = 8 << 20
"""Memory that reading may take for what was said before; level 3 writes windows of 2 MiB."""

NAME_LIMIT_BYTES = 4096
"""Linux has no longer paths."""

_COPY_BYTES = 256 << 10
_BLOCK = tarfile.BLOCKSIZE
_TRAILER_HEAD = (0x184D2A5C).to_bytes(4, "little") + (32).to_bytes(4, "little")
_TRAILER_BYTES = len(_TRAILER_HEAD) + 32


class CapsuleError(TenantryError):
    """A file is no whole capsule, or none that can be used here."""


class ChangedFileError(Exception):
    """A file became shorter while it was read."""


class CapsuleWriter:
    """Writes a capsule: whole under its name after the `with` block, or not at all.

    Args:
        path: its name; a file that is there is replaced by the whole new one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")

    def __enter__(self) -> Self:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._raw = _Hashed(os.fdopen(os.open(self._unfinished, flags, 0o600), "wb"))
        self._manifest: IO[bytes] = TemporaryFile()
        raw: Any = self._raw
        self._zstd: Any = zstandard.ZstdCompressor(LEVEL, write_checksum=True).stream_writer(
            raw, closefd=False
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._end()
                self._unfinished.rename(self._path)
                sync_folder(self._path.parent)
        finally:
            self._raw.file.close()
            self._manifest.close()
            self._unfinished.unlink(missing_ok=True)

    def add(self, name: str, content: bytes) -> None:
        """Add a part that is at hand."""
        self._head(name, len(content), 0o600, 0)
        self._zstd.write(content)
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
            part = file.read(min(left, _COPY_BYTES))
            if not part:
                raise ChangedFileError
            sha256.update(part)
            self._zstd.write(part)
            left -= len(part)
        self._pad(info.st_size)
        self._note(name, info.st_size, sha256.hexdigest())
        return info.st_size

    def _head(self, name: str, size: int, mode: int, mtime: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, mode, max(mtime, 0)
        self._zstd.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))

    def _pad(self, size: int) -> None:
        self._zstd.write(bytes(-size % _BLOCK))

    def _note(self, name: str, size: int, sha256: str) -> None:
        self._manifest.write(_line(name, size, sha256))

    def _end(self) -> None:
        self._manifest.seek(0)
        size = os.fstat(self._manifest.fileno()).st_size
        self._head(MANIFEST, size, 0o600, 0)
        while part := self._manifest.read(_COPY_BYTES):
            self._zstd.write(part)
        self._pad(size)
        self._zstd.write(bytes(2 * _BLOCK))
        self._zstd.close()
        self._raw.file.write(_TRAILER_HEAD + self._raw.sha256.digest())
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


@dataclass
class Part:
    """A part that is being read; its bytes come once, and in order."""

    name: str
    size_bytes: int
    mode: int
    mtime: int
    stream: Any
    left: int

    def chunks(self) -> Iterator[bytes]:
        """Yield its bytes.

        Raises:
            CapsuleError: it is cut.
        """
        while self.left:
            chunk = _exactly(self.stream, min(self.left, _COPY_BYTES))
            self.left -= len(chunk)
            yield chunk

    def read(self, limit_bytes: int) -> bytes:
        """Return all of it.

        Raises:
            CapsuleError: it is cut, or larger than it may be.
        """
        if self.size_bytes > limit_bytes:
            raise CapsuleError(f"{self.name!r} is larger than any that Tenantry writes")
        return b"".join(self.chunks())


def read_parts(file: IO[bytes]) -> Iterator[Part]:
    """Yield the parts of a capsule, the manifest left out; each is good until the next is asked.

    What was yielded is only as the writer wrote it when the last one has been: the hashes are
    checked on the way, that of the whole file before anything else.

    Args:
        file: open for reading, from its beginning on.

    Raises:
        CapsuleError: it is no whole capsule; the text says what was found.
    """
    size = _check_whole(file)
    file.seek(0)
    limited: Any = _Limited(file, size)
    reader = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).stream_reader(limited)
    try:
        yield from _checked(reader)
    except (zstandard.ZstdError, tarfile.TarError) as error:
        raise CapsuleError(f"it is no capsule, or a damaged one ({error})") from error


def _checked(stream: Any) -> Iterator[Part]:
    expected = hashlib.sha256()
    for part in _tar_parts(stream):
        sha256 = hashlib.sha256()
        if part.name == MANIFEST:
            for chunk in part.chunks():
                sha256.update(chunk)
            if sha256.digest() != expected.digest():
                _refuse("its parts are not those of its manifest")
            if stream.read(_BLOCK).strip(b"\0"):
                _refuse("something comes after its manifest")
            return
        part.stream = _Noted(part.stream, sha256)
        yield part
        for _ in part.chunks():
            pass  # what nobody read counts as well
        expected.update(_line(part.name, part.size_bytes, sha256.hexdigest()))
    _refuse("it has no manifest")


def _tar_parts(stream: Any) -> Iterator[Part]:
    """Yield files only, with GNU's long names: a header decides on memory and no time."""
    long_name: str | None = None
    while (block := _exactly(stream, _BLOCK)).strip(b"\0"):
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if info.size < 0:
            _refuse("a part has a size below nothing")
        mtime = int(info.mtime)
        name = long_name or info.name
        part = Part(name, info.size, info.mode & 0o777, mtime, stream, info.size)
        if info.type == tarfile.GNUTYPE_LONGNAME and long_name is None:
            text = part.read(NAME_LIMIT_BYTES + 1)
            long_name = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type == tarfile.REGTYPE:
            yield part
            long_name = None
        else:
            _refuse(f"it holds {part.name!r}, which is no file")
        _exactly(stream, -info.size % _BLOCK)


class _Limited:
    """The first bytes of a file."""

    def __init__(self, file: IO[bytes], left: int) -> None:
        self._file = file
        self._left = left

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


class _Noted:
    """A stream, and the hash of what was read from it."""

    def __init__(self, stream: Any, sha256: Any) -> None:
        self._stream = stream
        self._sha256 = sha256

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        self._sha256.update(data)
        return data


def _check_whole(file: IO[bytes]) -> int:
    """Check the hash of the whole file; return how many bytes it covers."""
    size = file.seek(0, os.SEEK_END) - _TRAILER_BYTES
    file.seek(max(size, 0))
    trailer = file.read(_TRAILER_BYTES)
    if size < 0 or not trailer.startswith(_TRAILER_HEAD):
        _refuse("it is no capsule, or its end is missing")
    file.seek(0)
    sha256, left = hashlib.sha256(), size
    while left and (part := file.read(min(left, _COPY_BYTES))):
        sha256.update(part)
        left -= len(part)
    if left or sha256.digest() != trailer[len(_TRAILER_HEAD) :]:
        _refuse("its content is not what was written: it has another SHA-256")
    return size


def _line(name: str, size: int, sha256: str) -> bytes:
    return json.dumps({"name": name, "size_bytes": size, "sha256": sha256}).encode() + b"\n"


def _exactly(stream: Any, size: int) -> bytes:
    data: bytes = stream.read(size)
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            _refuse("it is cut")
        data += more
    return data


def _refuse(text: str) -> NoReturn:
    raise CapsuleError(text)


def sync_folder(folder: Path) -> None:
    """Have the system write the names in a folder to the disk."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
