"""Reads the structure of a PNG (PNG specification, third edition).

As browsers do, this module ignores unknown chunks and damaged chunks that only describe the image.
The file may also end directly after the pixels.
"""

__shared__ = True

import mmap
import struct
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing
from types import MappingProxyType
from typing import NamedTuple

from .bounds import MAX_CHUNKS, MAX_FRAMES, MAX_PROFILE_BYTES
from .contents import BoundedCount, ImageContents, Part, check_profile, check_size, metadata_count
from .errors import BrokenImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_CHUNKS = MappingProxyType({b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4})
"""Chunks that a thumbnail needs for the colors of the original, and their sizes in bytes."""
_READ = frozenset({b"PLTE", b"tRNS", b"iCCP", b"eXIf", *_COLOR_CHUNKS})
_GRAY, _RGB, _PALETTE = 0, 2, 3
"""Color types in the header."""
_USUAL_BITS, _MANY_BITS = 8, 16
"""The number of bits per sample."""
_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


class _PngChunk(NamedTuple):
    kind: bytes
    place: slice
    """The position of the whole chunk in the file."""

    def data(self, file: mmap.mmap) -> bytes:
        """Return the data of the chunk."""
        return file[self.place.start + 8 : self.place.stop - 4]

    @property
    def is_critical(self) -> bool:
        """Whether an image cannot be shown without the chunk."""
        return self.kind[:1].isupper()


def read_png(data: mmap.mmap) -> ImageContents:
    """Follow the chunks of a PNG.

    Raises:
        BrokenImageError: the file is damaged or truncated, or exceeds a bound.
    """
    with closing(_chunks(data)) as chunks:
        first = next(chunks, None)
        if first is None or first.kind != b"IHDR":
            raise BrokenImageError("This PNG is damaged: it does not begin with a header.")
        width, height, depth, color_type = struct.unpack_from(">IIBB", first.data(data))
        check_size(width, height)
        pixels, found = _sort(data, chunks)
    if not pixels:
        raise BrokenImageError("This PNG is damaged: it has no pixels.")
    parts: list[Part] = [SIGNATURE, first.place]
    if color_type == _PALETTE:
        if b"PLTE" not in found:
            raise BrokenImageError("This PNG is damaged: it has no palette.")
        parts.append(chunk(b"PLTE", found[b"PLTE"]))
    parts += _transparency(found.get(b"tRNS", b""), depth, color_type)
    profile = _profile(found.get(b"iCCP", b""))
    colors = [(kind, found[kind]) for kind, size in _COLOR_CHUNKS.items()
              if len(found.get(kind, b"")) == size]  # fmt: skip
    exif = found.get(b"eXIf", b"")
    return ImageContents(width, height, [*parts, *pixels, _END], exif, profile, colors)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _chunks(data: mmap.mmap) -> Generator[_PngChunk]:
    """Yield the chunks up to the end, without damaged chunks that are not critical.

    The last chunk of a PNG, which always has the same bytes, may be missing.
    """
    position, count = len(SIGNATURE), BoundedCount(MAX_CHUNKS, "chunks")
    with memoryview(data) as view:
        while not _END.startswith(data[position : position + len(_END)]):
            count.add()
            length, kind = struct.unpack_from(">I4s", view, position)
            end = position + 8 + length
            (checksum,) = struct.unpack_from(">I", view, end)
            one = _PngChunk(kind, slice(position, end + 4))
            is_intact = checksum == zlib.crc32(view[position + 4 : end])
            if one.is_critical and not is_intact:
                raise BrokenImageError("This PNG is damaged: a checksum is wrong.")
            if is_intact:
                yield one
            position = end + 4


def _sort(data: mmap.mmap, chunks: Iterator[_PngChunk]) -> tuple[list[Part], dict[bytes, bytes]]:
    """Return the positions of the pixels, and the first chunk of each other known kind."""
    pixels, found = list[Part](), dict[bytes, bytes]()
    metadata, frames = metadata_count(), BoundedCount(MAX_FRAMES, "frames")
    for one in chunks:
        if one.kind == b"IDAT":
            pixels.append(one.place)
            continue
        metadata.add(0 if one.kind == b"fdAT" else one.place.stop - one.place.start)
        frames.add(one.kind == b"fcTL")
        if one.kind in _READ:
            found.setdefault(one.kind, one.data(data))
        elif one.is_critical:
            raise BrokenImageError("This PNG is damaged: a chunk has an unknown type.")
    return pixels, found


def _transparency(data: bytes, depth: int, color_type: int) -> list[Part]:
    """Return a chunk of transparency with the same depth as the pixels that Pillow returns.

    Pillow returns gray of 16 bits unchanged, and all other pixels with 8 bits per sample.
    """
    if color_type == _PALETTE and data:
        return [chunk(b"tRNS", data[:256])]
    samples = {_GRAY: 1, _RGB: 3}.get(color_type)
    if samples is None or len(data) != 2 * samples:
        return []
    values = struct.unpack(f">{samples}H", data)
    if color_type == _RGB and depth == _MANY_BITS:
        values = tuple(value >> 8 for value in values)
    elif depth < _USUAL_BITS:
        most = 2**depth - 1
        values = tuple((value & most) * 255 // most for value in values)
    return [chunk(b"tRNS", struct.pack(f">{samples}H", *values))]


def _profile(data: bytes) -> bytes:
    """Return the decompressed profile of an iCCP chunk, or nothing if the chunk is damaged."""
    compressed = data.partition(b"\0")[2][1:]
    try:
        profile = zlib.decompressobj().decompress(compressed, MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return b""
    check_profile(profile)
    return profile
