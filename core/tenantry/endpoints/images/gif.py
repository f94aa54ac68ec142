"""Reads the structure of a GIF (GIF89a specification).

Only the first frame is shown. As browsers do, this module accepts a file that ends after a complete
frame without a trailer.
"""

__shared__ = True

import mmap
import struct
from collections.abc import Iterator
from typing import NamedTuple

from .bounds import MAX_BLOCKS, MAX_FRAMES
from .contents import BoundedCount, ImageContents, Part, check_size, metadata_count
from .errors import BrokenImageError

_EXTENSION, _FRAME, _TRAILER = b"!,;"
_GRAPHIC_CONTROL = 0xF9


class _Block(NamedTuple):
    kind: int
    label: int
    """The label of an extension, which states its kind; 0 for a frame."""
    place: slice


def read_gif(data: mmap.mmap) -> ImageContents:
    """Follow the blocks of all frames in a GIF.

    Raises:
        BrokenImageError: the file is damaged or truncated, or exceeds a bound.
    """
    head = slice(0, 13 + _palette_bytes(data[10]))
    parts: list[Part] = [head]
    control: list[Part] = []
    size = None
    frames, metadata = BoundedCount(MAX_FRAMES, "frames"), metadata_count()
    for kind, label, place in _blocks(data, head.stop):
        if kind == _FRAME:
            frames.add()
            if size is None:
                size = _canvas(data, place.start)
                parts += [*control, place]
        elif label == _GRAPHIC_CONTROL:
            control = [place]
        else:
            metadata.add(place.stop - place.start)
    if size is None:
        raise BrokenImageError("This GIF is damaged: it has no frame.")
    return ImageContents(*size, [*parts, b";"])


def _blocks(data: mmap.mmap, position: int) -> Iterator[_Block]:
    """Yield all blocks up to the trailer, the end of the file, or bytes after a frame."""
    count, has_frame = BoundedCount(MAX_BLOCKS, "blocks"), False
    while position < len(data) and data[position] != _TRAILER:
        start, kind, label = position, data[position], 0
        if kind == _EXTENSION:
            label = data[position + 1]
            position += 2
        elif kind == _FRAME:
            position += 11 + _palette_bytes(data[position + 9])
            has_frame = True
        elif has_frame:
            return
        else:
            raise BrokenImageError("This GIF is damaged: a block has an unknown type.")
        number = 1
        while length := data[position]:
            position += 1 + length
            number += 1
            if number > MAX_BLOCKS:
                break
        count.add(number)
        position += 1
        yield _Block(kind, label, slice(start, position))


def _palette_bytes(flags: int) -> int:
    """Return the size of a palette in bytes, from the flags of its descriptor."""
    has_palette = flags >= 2**7
    return 3 * 2 ** (flags % 8 + 1) if has_palette else 0


def _canvas(data: mmap.mmap, frame: int) -> tuple[int, int]:
    """Return the size of the canvas. A canvas that is too small for the first frame is enlarged."""
    width, height = struct.unpack_from("<HH", data, 6)
    left, top, frame_width, frame_height = struct.unpack_from("<4H", data, frame + 1)
    check_size(frame_width, frame_height)
    width, height = max(width, left + frame_width), max(height, top + frame_height)
    check_size(width, height)
    return width, height
