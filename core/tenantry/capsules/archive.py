"""Defines the archive format of a capsule and reads the archive.

    zstd frame             a tar archive; the last member, `manifest.jsonl`, has the size and the
                           SHA-256 of each earlier member
    zstd skippable frame   the trailer: the size of the tar archive, then the SHA-256 of all earlier
                           bytes of the file; other programs skip the trailer

The command `tar --zstd -tf FILE` lists a capsule. The codec is zstd because a backup runs on a host
that serves requests, and gzip takes 10 to 20 times the CPU time of zstd on compressed pictures.
Tenantry reads and writes capsules as streams.

A capsule is untrusted input. The archive reader writes nothing to disk, uses bounded memory for
any size in a header, and reads at most the number of bytes in the trailer. The caller of
`read_members` checks the names of the members.
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
"""Maximum size of zstd's window when reading; compression level 3 writes windows of 2 MiB."""

NAME_LIMIT_BYTES = 4096
"""Length of the longest path on Linux, in bytes."""

CHUNK_BYTES = 256 << 10
BLOCK_BYTES = tarfile.BLOCKSIZE
HASH_BYTES = 32
TRAILER = struct.Struct("<4sIQ")
"""Layout of the trailer without the hash.

The trailer has the magic number of a skippable frame, the length of the frame's content, and the
size of the tar archive.
"""
TRAILER_BEGINNING = ((0x184D2A5C).to_bytes(4, "little"), 8 + HASH_BYTES)


class CapsuleError(TenantryError):
    """A capsule cannot be written, is damaged, or cannot be restored on the current host."""


@dataclass
class ArchiveMember:
    """A file in the archive.

    The caller can read an archive member once, before the caller reads the next member.
    """

    name: str
    size_bytes: int
    mode: int
    mtime: int
    stream: Any
    unread_bytes: int

    def chunks(self) -> Iterator[bytes]:
        """Yield the content of the archive member in chunks.

        Raises:
            CapsuleError: the archive ends too early.
        """
        while self.unread_bytes:
            chunk = _read_exactly(self.stream, min(self.unread_bytes, CHUNK_BYTES))
            self.unread_bytes -= len(chunk)
            yield chunk

    def read(self, limit_bytes: int) -> bytes:
        """Return the whole content of the archive member.

        Raises:
            CapsuleError: the archive ends too early, or the content exceeds the limit.
        """
        if self.size_bytes > limit_bytes:
            raise CapsuleError(f"{self.name!r} exceeds the limit of {limit_bytes >> 20} MiB")
        return b"".join(self.chunks())


@dataclass(frozen=True)
class Trailer:
    """The sizes and the hash at the end of a capsule."""

    packed_bytes: int
    """Size of the capsule file without the trailer."""
    size_bytes: int
    """Size of the unpacked tar archive."""
    sha256: bytes


def verify_trailer(file: IO[bytes]) -> Trailer:
    """Return the trailer of a capsule after checking the hash of the file.

    `verify_trailer` does not decompress the archive.

    Raises:
        CapsuleError: the trailer is missing, or the hash differs.
    """
    packed_bytes = file.seek(0, os.SEEK_END) - TRAILER.size - HASH_BYTES
    file.seek(max(packed_bytes, 0))
    trailer, digest = file.read(TRAILER.size), file.read(HASH_BYTES)
    if packed_bytes < 0 or TRAILER.unpack(trailer)[:2] != TRAILER_BEGINNING:
        _refuse("it is not a capsule, or its end is missing")
    file.seek(0)
    sha256, left = hashlib.sha256(), packed_bytes + TRAILER.size
    while left and (chunk := file.read(min(left, CHUNK_BYTES))):
        sha256.update(chunk)
        left -= len(chunk)
    if left or sha256.digest() != digest:
        _refuse("its content has changed since it was written: the SHA-256 differs")
    return Trailer(packed_bytes, TRAILER.unpack(trailer)[2], digest)


def read_members(file: IO[bytes], trailer: Trailer) -> Iterator[ArchiveMember]:
    """Yield the members of a capsule, without the manifest.

    The manifest is the last member, so the members are verified only when the iterator is
    exhausted.

    Args:
        file: the capsule, open for reading.
        trailer: the result of `verify_trailer(file)`.

    Raises:
        CapsuleError: the archive is damaged.
    """
    file.seek(0)
    packed: Any = _LimitedStream(file, trailer.packed_bytes)
    reader: Any = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).stream_reader(
        packed, read_across_frames=True
    )
    try:
        yield from _verified_members(_LimitedStream(reader, trailer.size_bytes))
        if reader.read(1):
            _refuse("it holds more than its trailer states")
    except (zstandard.ZstdError, tarfile.TarError) as error:
        raise CapsuleError(f"it is not a capsule, or it is damaged ({error})") from error


def _verified_members(stream: "_LimitedStream") -> Iterator[ArchiveMember]:
    expected = hashlib.sha256()
    for member in _tar_members(stream):
        if member.name == MANIFEST:
            _verify_manifest(member, stream, expected.digest())
            return
        hashing = member.stream = _HashingStream(member.stream)
        yield member
        for _ in member.chunks():
            pass  # the hash covers bytes that the caller did not read
        expected.update(manifest_line(member.name, member.size_bytes, hashing.sha256.hexdigest()))
    _refuse("it has no manifest")


def _verify_manifest(manifest: ArchiveMember, stream: "_LimitedStream", expected: bytes) -> None:
    sha256 = hashlib.sha256()
    for chunk in manifest.chunks():
        sha256.update(chunk)
    if sha256.digest() != expected:
        _refuse("its members differ from its manifest")
    end = _read_exactly(stream, -manifest.size_bytes % BLOCK_BYTES + 2 * BLOCK_BYTES)
    if end.strip(b"\0") or stream.unread_bytes:
        _refuse("there is data after its manifest")


def _tar_members(stream: Any) -> Iterator[ArchiveMember]:
    """Yield the regular files of a tar archive, which may have GNU long names.

    `_tar_members` raises `CapsuleError` for other types of members. `_tar_members` does not use
    `tarfile.open`, because a crafted header makes `tarfile` allocate a lot of memory.
    """
    long_name: str | None = None
    while (block := _read_exactly(stream, BLOCK_BYTES)).strip(b"\0"):
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if info.size < 0:
            _refuse("a member has a negative size")
        name, mode = long_name or info.name, info.mode & 0o777
        member = ArchiveMember(name, info.size, mode, int(info.mtime), stream, info.size)
        if info.type == tarfile.GNUTYPE_LONGNAME and long_name is None:
            text = member.read(NAME_LIMIT_BYTES + 1)
            long_name = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type == tarfile.REGTYPE:
            yield member
            long_name = None
        else:
            _refuse(f"it holds {name!r}, which is not a regular file")
        _read_exactly(stream, -info.size % BLOCK_BYTES)


class _LimitedStream:
    """A stream that ends after the first `size_bytes` bytes of another stream."""

    def __init__(self, stream: Any, size_bytes: int) -> None:
        self._stream = stream
        self.unread_bytes = size_bytes

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(min(size, self.unread_bytes))
        self.unread_bytes -= len(data)
        return data


class _HashingStream:
    """A stream that hashes the bytes that callers read from the stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        self.sha256.update(data)
        return data


def manifest_line(name: str, size_bytes: int, sha256: str) -> bytes:
    """Return the manifest's line about one member of the archive."""
    return json.dumps({"name": name, "size_bytes": size_bytes, "sha256": sha256}).encode() + b"\n"


def _read_exactly(stream: Any, size: int) -> bytes:
    data: bytes = stream.read(size)
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            _refuse("it ends too early")
        data += more
    return data


def _refuse(text: str) -> NoReturn:
    raise CapsuleError(text)
