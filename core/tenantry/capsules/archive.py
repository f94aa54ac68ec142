"""Defines the file format of capsules, and reads capsules in this format.

    zstd frame             a tar archive; the last member, `manifest.jsonl`, has the size and the
                           SHA-256 of each earlier member
    zstd skippable frame   the trailer: the size of the tar archive, then the SHA-256 of all earlier
                           bytes of the file; other programs skip the trailer

The command `tar --zstd -tf FILE` lists the content of a capsule. Capsules are compressed with zstd,
which needs little CPU time, because the host serves requests during a backup. For pictures, gzip
takes 10 to 20 times the CPU time of zstd. Tenantry reads and writes capsules as streams.

A capsule is untrusted input. Reading a capsule writes nothing to disk, takes a limited amount of
memory, and never unpacks more bytes than the trailer states. The caller of `read_members` must
check the names of the members.
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
"""Maximum window size of zstd in bytes that a reader accepts.

With compression level 3, zstd needs a window of 2 MiB.
"""

NAME_LIMIT_BYTES = 4096
"""Maximum length of a path on Linux, in bytes."""

CHUNK_BYTES = 256 << 10
BLOCK_BYTES = tarfile.BLOCKSIZE
HASH_BYTES = 32
TRAILER = struct.Struct("<4sIQ")
"""Layout of the trailer, without the hash at its end.

The trailer consists of the magic number of a skippable frame, the length of the frame's content,
the size of the tar archive, and the hash.
"""
TRAILER_BEGINNING = ((0x184D2A5C).to_bytes(4, "little"), 8 + HASH_BYTES)


class CapsuleError(TenantryError):
    """A capsule is damaged, cannot be written, or cannot be restored on this host."""


@dataclass
class ArchiveMember:
    """A file in a capsule.

    The content of a member can be read once, and only before the next member is read.
    """

    name: str
    size_bytes: int
    mode: int
    mtime: int
    stream: Any
    unread_bytes: int

    def chunks(self) -> Iterator[bytes]:
        """Yield the content of the file in chunks.

        Raises:
            CapsuleError: the archive ends too early.
        """
        while self.unread_bytes:
            chunk = _read_exactly(self.stream, min(self.unread_bytes, CHUNK_BYTES))
            self.unread_bytes -= len(chunk)
            yield chunk

    def read(self, limit_bytes: int) -> bytes:
        """Return the whole content of the file.

        Raises:
            CapsuleError: the archive ends too early, or the content exceeds the limit.
        """
        if self.size_bytes > limit_bytes:
            raise CapsuleError(f"{self.name!r} exceeds the limit of {limit_bytes >> 20} MiB")
        return b"".join(self.chunks())


@dataclass(frozen=True)
class Trailer:
    """The sizes and the hash that the end of a capsule states."""

    packed_bytes: int
    """Size of the capsule without its trailer, in bytes."""
    size_bytes: int
    """Size of the decompressed tar archive, in bytes."""
    sha256: bytes


def verify_trailer(file: IO[bytes]) -> Trailer:
    """Check the hash of a capsule without decompressing it, and return the trailer.

    Raises:
        CapsuleError: the trailer is missing, or the hash differs.
    """
    packed_bytes = file.seek(0, os.SEEK_END) - TRAILER.size - HASH_BYTES
    file.seek(max(packed_bytes, 0))
    trailer, digest = file.read(TRAILER.size), file.read(HASH_BYTES)
    if packed_bytes < 0 or TRAILER.unpack(trailer)[:2] != TRAILER_BEGINNING:
        _refuse("the file is not a capsule, or its end is missing")
    file.seek(0)
    sha256, left = hashlib.sha256(), packed_bytes + TRAILER.size
    while left and (chunk := file.read(min(left, CHUNK_BYTES))):
        sha256.update(chunk)
        left -= len(chunk)
    if left or sha256.digest() != digest:
        _refuse("the capsule has changed since it was written: the SHA-256 differs")
    return Trailer(packed_bytes, TRAILER.unpack(trailer)[2], digest)


def read_members(file: IO[bytes], trailer: Trailer) -> Iterator[ArchiveMember]:
    """Yield the members of a capsule, except the manifest.

    The manifest is the last member, so the content is verified only at the end of the iteration.

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
            _refuse("the capsule holds more than its trailer states")
    except (zstandard.ZstdError, tarfile.TarError) as error:
        raise CapsuleError(f"the file is not a capsule, or is damaged ({error})") from error


def _verified_members(stream: "_LimitedStream") -> Iterator[ArchiveMember]:
    expected = hashlib.sha256()
    for member in _tar_members(stream):
        if member.name == MANIFEST:
            _verify_manifest(member, stream, expected.digest())
            return
        hashing = member.stream = _HashingStream(member.stream)
        yield member
        for _ in member.chunks():
            pass  # the hash includes the bytes that the caller has not read
        expected.update(manifest_line(member.name, member.size_bytes, hashing.sha256.hexdigest()))
    _refuse("the capsule has no manifest")


def _verify_manifest(manifest: ArchiveMember, stream: "_LimitedStream", expected: bytes) -> None:
    sha256 = hashlib.sha256()
    for chunk in manifest.chunks():
        sha256.update(chunk)
    if sha256.digest() != expected:
        _refuse("the members of the capsule differ from its manifest")
    end = _read_exactly(stream, -manifest.size_bytes % BLOCK_BYTES + 2 * BLOCK_BYTES)
    if end.strip(b"\0") or stream.unread_bytes:
        _refuse("the capsule has data after its manifest")


def _tar_members(stream: Any) -> Iterator[ArchiveMember]:
    """Yield the regular files of a tar archive, including files with GNU long names.

    For other types of members, the function raises `CapsuleError`. A crafted header can make
    `tarfile.open` allocate a lot of memory, so this function parses the headers one by one.
    """
    long_name: str | None = None
    while (block := _read_exactly(stream, BLOCK_BYTES)).strip(b"\0"):
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if info.size < 0:
            _refuse("a member of the capsule has a negative size")
        name, mode = long_name or info.name, info.mode & 0o777
        member = ArchiveMember(name, info.size, mode, int(info.mtime), stream, info.size)
        if info.type == tarfile.GNUTYPE_LONGNAME and long_name is None:
            text = member.read(NAME_LIMIT_BYTES + 1)
            long_name = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type == tarfile.REGTYPE:
            yield member
            long_name = None
        else:
            _refuse(f"the capsule holds {name!r}, which is not a regular file")
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
    """A stream that hashes all bytes that are read from it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        self.sha256.update(data)
        return data


def manifest_line(name: str, size_bytes: int, sha256: str) -> bytes:
    """Return the line of the manifest that describes one member."""
    return json.dumps({"name": name, "size_bytes": size_bytes, "sha256": sha256}).encode() + b"\n"


def _read_exactly(stream: Any, size: int) -> bytes:
    data: bytes = stream.read(size)
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            _refuse("the capsule ends too early")
        data += more
    return data


def _refuse(text: str) -> NoReturn:
    raise CapsuleError(text)
