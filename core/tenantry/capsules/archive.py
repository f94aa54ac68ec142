"""The file of a capsule, and reading it: parts, their hashes in a manifest, and the hash of it all.

    zstd frame          a tar archive: the parts in their order, the last one `manifest.jsonl`
    zstd skippable      the size of that archive, then the SHA-256 of all bytes before this hash;
                        other programs skip it

So `tar --zstd -tf FILE` lists a capsule. zstd, not gzip of the standard library: a backup is made
on a host that serves, and pictures, which no codec makes smaller, cost gzip twenty times the
processor. Written and read as streams. What is read is not trusted: names are checked by whoever
uses them, nothing is unpacked by itself, memory does not grow with what a file claims, and no more
comes out than it says that there is.
"""

import hashlib
import json
import os
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, NoReturn

import zstandard

from tenantry.errors import TenantryError

MANIFEST = "manifest.jsonl"

WINDOW_BYTES = 8 << 20
"""Memory that reading may take for what was said before; level 3 writes windows of 2 MiB."""

NAME_LIMIT_BYTES = 4096
"""Linux has no longer paths."""

COPY_BYTES = 256 << 10
BLOCK = tarfile.BLOCKSIZE
HASH_BYTES = 32
END = struct.Struct("<4sIQ")
"""How a skippable frame begins, the length of what follows, and the size of the archive."""
END_BEGINS = ((0x184D2A5C).to_bytes(4, "little"), 8 + HASH_BYTES)


class CapsuleError(TenantryError):
    """A file is no whole capsule, or none that can be used here."""


@dataclass
class ArchiveMember:
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
            chunk = _exactly(self.stream, min(self.left, COPY_BYTES))
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


@dataclass(frozen=True)
class Trailer:
    """What the end of a capsule says of all that is before it."""

    packed_bytes: int
    """Of the file, without its end."""
    size_bytes: int
    """Of the archive in it."""
    sha256: bytes


def verify_trailer(file: IO[bytes]) -> Trailer:
    """Check the hash of a whole capsule, before anything of it is unpacked; return what it says.

    Raises:
        CapsuleError: it is no whole capsule; the text says what was found.
    """
    size = file.seek(0, os.SEEK_END) - END.size - HASH_BYTES
    file.seek(max(size, 0))
    end, digest = file.read(END.size), file.read(HASH_BYTES)
    if size < 0 or END.unpack(end)[:2] != END_BEGINS:
        _refuse("it is no capsule, or its end is missing")
    file.seek(0)
    sha256, left = hashlib.sha256(), size + END.size
    while left and (part := file.read(min(left, COPY_BYTES))):
        sha256.update(part)
        left -= len(part)
    if left or sha256.digest() != digest:
        _refuse("its content is not what was written: it has another SHA-256")
    return Trailer(size, END.unpack(end)[2], digest)


def read_members(file: IO[bytes], seal: Trailer) -> Iterator[ArchiveMember]:
    """Yield the parts of a capsule, the manifest left out; each is good until the next is asked.

    What was yielded is only as the writer wrote it when the last one has been: the manifest comes
    at the end.

    Args:
        file: open for reading.
        seal: what `verify_trailer` has returned for it.

    Raises:
        CapsuleError: it is no whole capsule; the text says what was found.
    """
    file.seek(0)
    packed: Any = _Limited(file, seal.packed_bytes)
    reader: Any = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).stream_reader(
        packed, read_across_frames=True
    )
    try:
        yield from _checked(_Limited(reader, seal.size_bytes))
        if reader.read(1):
            _refuse("it holds more than it says")
    except (zstandard.ZstdError, tarfile.TarError) as error:
        raise CapsuleError(f"it is no capsule, or a damaged one ({error})") from error


def _checked(stream: "_Limited") -> Iterator[ArchiveMember]:
    expected = hashlib.sha256()
    for part in _tar_parts(stream):
        sha256 = hashlib.sha256()
        if part.name == MANIFEST:
            for chunk in part.chunks():
                sha256.update(chunk)
            if sha256.digest() != expected.digest():
                _refuse("its parts are not those of its manifest")
            end = _exactly(stream, -part.size_bytes % BLOCK + 2 * BLOCK)
            if end.strip(b"\0") or stream.left:
                _refuse("something comes after its manifest")
            return
        part.stream = _Noted(part.stream, sha256)
        yield part
        for _ in part.chunks():
            pass  # what nobody read counts as well
        expected.update(manifest_line(part.name, part.size_bytes, sha256.hexdigest()))
    _refuse("it has no manifest")


def _tar_parts(stream: Any) -> Iterator[ArchiveMember]:
    """Yield files only, with GNU's long names: a header decides on memory and no time."""
    long_name: str | None = None
    while (block := _exactly(stream, BLOCK)).strip(b"\0"):
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if info.size < 0:
            _refuse("a part has a size below nothing")
        mtime = int(info.mtime)
        name = long_name or info.name
        part = ArchiveMember(name, info.size, info.mode & 0o777, mtime, stream, info.size)
        if info.type == tarfile.GNUTYPE_LONGNAME and long_name is None:
            text = part.read(NAME_LIMIT_BYTES + 1)
            long_name = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type == tarfile.REGTYPE:
            yield part
            long_name = None
        else:
            _refuse(f"it holds {part.name!r}, which is no file")
        _exactly(stream, -info.size % BLOCK)


class _Limited:
    """The first bytes of a stream."""

    def __init__(self, stream: Any, left: int) -> None:
        self._stream = stream
        self.left = left

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(min(size, self.left))
        self.left -= len(data)
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


def manifest_line(name: str, size: int, sha256: str) -> bytes:
    """Return what the manifest says of a part."""
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
