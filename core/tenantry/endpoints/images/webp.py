"""Reads the structure of a WebP (RFC 9649 §2). Only the first frame is shown."""

__shared__ = True

import mmap
import struct
from collections.abc import Iterator
from typing import NamedTuple

from .bounds import MAX_CHUNKS, MAX_FRAMES, MAX_WEBP_PIXELS
from .contents import BoundedCount, ImageContents, Part, check_profile, check_size, metadata_count
from .errors import BrokenImageError

_ANIMATION_AND_ALPHA = 0x12
"""The flags that are kept in the header of an extended file. All other flags announce metadata."""
_LOSSY, _LOSSLESS, _FRAME = b"VP8 ", b"VP8L", b"ANMF"
_READ = frozenset({b"ICCP", b"EXIF"})


class _RiffChunk(NamedTuple):
    kind: bytes
    place: slice
    """The position of the whole chunk in the file, with its padding."""
    data: slice


def read_webp(data: mmap.mmap) -> ImageContents:
    """Follow the chunks of a WebP.

    Raises:
        BrokenImageError: the file is damaged or truncated, or exceeds a bound.
    """
    parts: list[Part] = []
    size, found = None, dict[bytes, bytes]()
    metadata, frames = metadata_count(), BoundedCount(MAX_FRAMES, "frames")
    seen = set[bytes]()
    for kind, place, content in _chunks(data):
        if size is None:
            size = _size(kind, data[content.start : content.start + 10])
            check_size(*size, MAX_WEBP_PIXELS)
        frames.add(kind == _FRAME)
        if kind == b"VP8X" and not seen:
            flags = data[content.start] & _ANIMATION_AND_ALPHA
            parts.append(struct.pack("<4sIB", kind, 10, flags) + data[content.start + 1 :][:9])
        elif kind in {b"ALPH", b"ANIM", _FRAME, _LOSSY, _LOSSLESS} and kind not in seen:
            parts.append(place)
        elif kind not in seen:
            metadata.add(place.stop - place.start)
            if kind in _READ:
                found[kind] = data[content]
        seen.add(kind)
    if size is None:
        raise BrokenImageError("This WebP is damaged: it has no image.")
    check_profile(found.get(b"ICCP", b""))
    length = 4 + sum(part.stop - part.start if isinstance(part, slice) else len(part)
                     for part in parts)  # fmt: skip
    parts.insert(0, struct.pack("<4sI4s", b"RIFF", length, b"WEBP"))
    return ImageContents(*size, parts, found.get(b"EXIF", b""), found.get(b"ICCP", b""))


def _chunks(data: mmap.mmap) -> Iterator[_RiffChunk]:
    """Yield the chunks of the file, which may be followed by other bytes."""
    (riff_bytes,) = struct.unpack_from("<I", data, 4)
    end, position = 8 + riff_bytes, 12
    count = BoundedCount(MAX_CHUNKS, "chunks")
    while position + 8 <= min(end, len(data)):
        count.add()
        kind, length = struct.unpack_from("<4sI", data, position)
        start = position + 8
        if start + length > end:
            raise BrokenImageError("This WebP is truncated.")
        position = start + length + length % 2
        yield _RiffChunk(kind, slice(start - 8, position), slice(start, start + length))
    if end > len(data):
        raise BrokenImageError("This WebP is truncated.")


def _size(kind: bytes, head: bytes) -> tuple[int, int]:
    """Read the width and the height from the first chunk (RFC 9649 §2.5 to §2.7)."""
    if kind == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if kind == _LOSSLESS:
        # The header has 14 bits for the width, and 14 bits for the height.
        packed = int.from_bytes(head[1:5], "little")
        return packed % 2**14 + 1, packed // 2**14 % 2**14 + 1
    width, height = struct.unpack_from("<HH", head, 6)
    return width % 2**14, height % 2**14  # the upper two bits of each number are a scale
