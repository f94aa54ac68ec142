"""Reads the structure of a JPEG (ITU T.81 annex B).

A JPEG begins with segments. The first scan header is followed by the compressed pixels, in which a
marker cannot occur by chance. A progressive JPEG has further scans.
"""

__shared__ = True

import mmap
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from .bounds import MAX_SCANS, MAX_SEGMENTS, MAX_TABLE_BYTES
from .contents import BoundedCount, ImageContents, Part, check_profile, check_size, metadata_count
from .errors import BrokenImageError

_START = b"\xff\xd8"
_END = b"\xff\xd9"
_START_OF_SCAN = 0xDA
_JFIF, _EXIF, _ICC, _ADOBE = 0xE0, 0xE1, 0xE2, 0xEE
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Markers of baseline, extended and progressive frames. No browser shows other kinds of frames."""
_TABLES = frozenset({0xDB, 0xC4, 0xDD})
"""Markers of quantization tables, Huffman tables and the restart interval."""
_LONE = frozenset({0x01, *range(0xD0, 0xD8)})
"""Markers without a segment."""
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_MAX_JUNK_BYTES = 64 * 1024
"""Maximum number of bytes between two segments, which decoders skip."""
_LENGTH_BYTES = 2
_ICC_HEAD = b"ICC_PROFILE\0"


class _Segment(NamedTuple):
    marker: int
    data: bytes
    place: slice
    """The position of marker, length and data in the file."""


def read_jpeg(data: mmap.mmap) -> ImageContents:
    """Follow the segments of a JPEG to the end of the image, and count its scans.

    Raises:
        BrokenImageError: the file is damaged or truncated, or exceeds a bound.
    """
    parts: list[Part] = [_START]
    size, exif, profile = None, b"", dict[bytes, bytes]()
    tables, metadata = BoundedCount(MAX_TABLE_BYTES, "bytes of tables"), metadata_count()
    seen = set()
    for marker, segment, place in _segments(data):
        is_format = (marker == _JFIF and segment[:5] == b"JFIF\0") or (
            marker == _ADOBE and segment[:5] == b"Adobe"
        )
        if marker in _FRAMES:
            size = _size(segment) if size is None else _fail("it has two frames")
            parts.append(place)
        elif marker in _TABLES:
            tables.add(len(segment))
            parts.append(place)
        elif marker == _START_OF_SCAN:
            parts.append(_scans(data, place.start))
        elif is_format and marker not in seen:
            seen.add(marker)
            parts.append(place)
        else:
            metadata.add(len(segment))
            if marker == _EXIF and segment[:6] == b"Exif\0\0":
                exif = exif or segment
            elif marker == _ICC and segment.startswith(_ICC_HEAD):
                profile.setdefault(segment[12:13], segment[14:])
    width, height = size or _fail("it has no frame")
    joined = b"".join(part for _, part in sorted(profile.items()))
    check_profile(joined)
    return ImageContents(width, height, parts, exif, joined)


def _segments(data: mmap.mmap) -> Iterator[_Segment]:
    """Yield the segments up to and including the first scan header."""
    position, count = len(_START), BoundedCount(MAX_SEGMENTS, "segments")
    marker = 0
    while marker != _START_OF_SCAN:
        count.add()
        found = _MARKER.search(data, position, position + _MAX_JUNK_BYTES)
        if found is None:
            raise BrokenImageError("This JPEG is truncated.")
        marker, start = found[1][0], found.end()
        if marker in _LONE:
            position = start
            continue
        if marker in {_START[1], _END[1]}:
            _fail("a marker is at a wrong place")
        (length,) = struct.unpack_from(">H", data, start)
        position = start + length
        if length < _LENGTH_BYTES or position > len(data):
            raise BrokenImageError("This JPEG is truncated.")
        yield _Segment(marker, data[start + 2 : position], slice(start - 2, position))


def _size(frame: bytes) -> tuple[int, int]:
    height, width = struct.unpack_from(">HH", frame, 1)
    check_size(width, height)
    return width, height


def _scans(data: mmap.mmap, start: int) -> slice:
    """Return the position of all scans, up to the end of the image."""
    end = data.find(_END, start)
    if end < 0:
        raise BrokenImageError("This JPEG is truncated.")
    scans, position = 0, start
    while 0 <= position < end:
        scans += 1
        if scans > MAX_SCANS:
            raise BrokenImageError(f"This JPEG has more than {MAX_SCANS} scans.")
        position = data.find(bytes([0xFF, _START_OF_SCAN]), position + 2, end)
    return slice(start, end + len(_END))


def _fail(fault: str) -> tuple[int, int]:
    raise BrokenImageError(f"This JPEG is damaged: {fault}.")
