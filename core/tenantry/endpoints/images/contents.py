"""Describes the parts of an image file that are necessary to show the image.

A reader of a format follows the structure of a file and returns `ImageContents`. Pillow gets a new
file, which consists only of the parts that describe pixels. Therefore, Pillow parses no text, EXIF
data or color profile, and no more parts than the limits allow.
"""

__shared__ = True

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

from .bounds import MAX_METADATA_BYTES, MAX_PIXELS, MAX_PROFILE_BYTES, MAX_SIDE_PX
from .errors import BrokenImageError

Part = bytes | slice
"""A part of a new file: its bytes, or its position in the uploaded file."""


@dataclass(frozen=True)
class ImageContents:
    """The size of an image, and what its file says about pixels, colors and orientation."""

    width: int
    height: int
    parts: Sequence[Part]
    exif: bytes = b""
    profile: bytes = b""
    """The ICC color profile, which is not checked; empty if the file has none."""
    color_chunks: Sequence[tuple[bytes, bytes]] = ()
    """The type and data of each PNG chunk, other than a profile, that describes colors."""

    def pixel_file(self, data: mmap.mmap) -> bytes:
        """Return a file of the same format that contains nothing but pixels."""
        return b"".join(data[part] if isinstance(part, slice) else part for part in self.parts)


class BoundedCount:
    """Counts the parts of one kind in a file, and rejects a file with too many of these parts."""

    def __init__(self, limit: int, text: str) -> None:
        self._limit = limit
        self._text = text
        self._number = 0

    def add(self, number: int = 1) -> None:
        """Add a number of parts to the count.

        Raises:
            BrokenImageError: the limit is exceeded.
        """
        self._number += number
        if self._number > self._limit:
            raise BrokenImageError(f"This image has more than {self._limit:,} {self._text}.")


def metadata_count() -> BoundedCount:
    """Return a new count of the bytes that describe no pixels."""
    return BoundedCount(MAX_METADATA_BYTES, "bytes of metadata")


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Check that an image does not have too many pixels.

    Raises:
        BrokenImageError: the image has more pixels than the maximum, or none.
    """
    if width * height > max_pixels:
        raise BrokenImageError(
            f"This image has {width:,} by {height:,} pixels; the maximum is {max_pixels:,}."
        )
    if max(width, height) > MAX_SIDE_PX:
        text = (
            f"This image has {width:,} by {height:,} pixels; the maximum side is {MAX_SIDE_PX:,}."
        )
        raise BrokenImageError(text)
    if min(width, height) < 1:
        raise BrokenImageError("This image has no pixels.")


def check_profile(profile: bytes) -> None:
    """Check the size of a color profile.

    Raises:
        BrokenImageError: the profile is larger than the maximum.
    """
    if len(profile) > MAX_PROFILE_BYTES:
        text = f"This image has a color profile of more than {MAX_PROFILE_BYTES:,} bytes."
        raise BrokenImageError(text)
