"""Recognizes image formats by the first bytes of a file, and adds checks that Pillow lacks.

The checks follow the structure of a file to the end of the image. Any bytes after the end of the
image are ignored, because phones append videos and second images.
"""

import mmap
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType

from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from .errors import BrokenImageError, WrongTypeError

MAX_PIXELS = 25_000_000
"""Maximum number of pixels (width times height) of an image."""

MAX_WEBP_PIXELS = 12_500_000
"""Maximum number of pixels of a WebP image.

The limit for WebP is lower than for other formats, because decoding WebP needs the most memory. A
WebP file of 50 bytes can claim to have 25 million pixels.
"""

MAX_SCANS = 30
"""Maximum number of scans in a progressive JPEG.

A typical JPEG has ten scans. Decoding a scan of a large image takes up to 0.1 s, so 16 MiB of empty
scans would take hours.
"""

JPEG_PIXEL_BYTES = 1
JPEG_IN_MEMORY_PIXEL_BYTES = 8
WEBP_PIXEL_BYTES = 20  # bytes per pixel, measured: 16 to inspect an image, 19 for a thumbnail
OTHER_PIXEL_BYTES = 12  # bytes per pixel, for an image with transparency
"""Bytes of memory per pixel that decoding and creating a thumbnail take."""

# The pattern skips stuffing, fill bytes and restart markers.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_START_OF_SCAN = b"\xda"
_END_OF_IMAGE = b"\xd9"


@dataclass(frozen=True)
class Format:
    """An image format and its check."""

    media_type: str
    magic: re.Pattern[bytes]
    plugin: type[ImageFile]
    check: Callable[[mmap.mmap], None]
    """A function that raises `BrokenImageError` for faults that Pillow misses or finds too late."""

    @property
    def extension(self) -> str:
        """The usual file name extension of the format, without the dot."""
        return self.media_type.partition("/")[2]


def format_of(data: mmap.mmap) -> Format:
    """Detect the format of an image from the first bytes of the file.

    Raises:
        WrongTypeError: the format is not supported.
    """
    for format_ in FORMATS.values():
        if format_.magic.match(data):
            return format_
    raise WrongTypeError("This is not a JPEG, PNG, WebP or GIF image.")


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Check that an image does not have too many pixels.

    Raises:
        BrokenImageError: the image has more pixels than the maximum.
    """
    if width * height > max_pixels:
        raise BrokenImageError(
            f"This image has {width:,} by {height:,} pixels; the maximum is {max_pixels:,}."
        )


def pixel_bytes(image: ImageFile, data: mmap.mmap) -> int:
    """Return how many bytes per pixel decoding takes, for formats other than WebP."""
    if not isinstance(image, JpegImageFile):
        return OTHER_PIXEL_BYTES
    first_scan = next(marker.end() for marker in _jpeg_markers(data) if marker[1] == _START_OF_SCAN)
    has_all_components = data[first_scan + 2] == image.layers
    is_read_row_by_row = has_all_components and not image.info.get("progressive")
    return JPEG_PIXEL_BYTES if is_read_row_by_row else JPEG_IN_MEMORY_PIXEL_BYTES


def webp_size(data: mmap.mmap) -> tuple[int, int]:
    """Read the width and the height from a WebP header (RFC 9649 §2.5 to §2.7)."""
    chunk, header = data[12:16], data[20:30]
    if chunk == b"VP8X":
        return int.from_bytes(header[4:7], "little") + 1, int.from_bytes(header[7:10], "little") + 1
    if chunk == b"VP8L":
        # The VP8L header has 14 bits for the width, and 14 bits for the height.
        packed = int.from_bytes(header[1:5], "little")
        return packed % 2**14 + 1, packed // 2**14 % 2**14 + 1
    width, height = struct.unpack_from("<HH", header, 6)
    return width % 2**14, height % 2**14  # the upper two bits are a scale


def _check_jpeg(data: mmap.mmap) -> None:
    """Follow the segments of a JPEG to the end of the image, and count its scans."""
    scans = 0
    for marker in _jpeg_markers(data):
        if marker[1] == _END_OF_IMAGE:
            return
        scans += marker[1] == _START_OF_SCAN
        if scans > MAX_SCANS:
            raise BrokenImageError(f"This JPEG has more than {MAX_SCANS} scans.")
    raise BrokenImageError("This JPEG is truncated.")


def _jpeg_markers(data: mmap.mmap) -> Iterator[re.Match[bytes]]:
    """Yield the marker of each segment in a JPEG."""
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        yield marker
        (length,) = struct.unpack_from(">H", data, marker.end())
        position = marker.end() + length


def _check_png(data: mmap.mmap) -> None:
    """Verify the checksums of all chunks in a PNG."""
    position, kind = 8, b""
    with memoryview(data) as view:
        while kind != b"IEND":
            length, kind = struct.unpack_from(">I4s", view, position)
            end = position + 8 + length
            if struct.unpack_from(">I", view, end) != (zlib.crc32(view[position + 4 : end]),):
                raise BrokenImageError("This PNG is damaged: a checksum is wrong.")
            position = end + 4


def _check_gif(data: mmap.mmap) -> None:
    """Follow the blocks of all frames in a GIF to the end of the image."""
    position = 13 + _gif_palette_bytes(data[10])
    while (block := data[position]) != ord(";"):
        if block == ord("!"):
            position += 2
        elif block == ord(","):
            position += 11 + _gif_palette_bytes(data[position + 9])
        else:
            raise BrokenImageError("This GIF is damaged: a block has an unknown type.")
        while length := data[position]:
            position += 1 + length
        position += 1


def _gif_palette_bytes(flags: int) -> int:
    """Return the size of a GIF palette in bytes, from the flags of its descriptor."""
    has_palette = flags >= 2**7
    return 3 * 2 ** (flags % 8 + 1) if has_palette else 0


def _check_webp(data: mmap.mmap) -> None:
    """Check the number of pixels before Pillow opens a WebP and allocates memory."""
    check_size(*webp_size(data), MAX_WEBP_PIXELS)


FORMATS = MappingProxyType(
    {
        format_.media_type: format_
        for format_ in (
            Format("image/jpeg", re.compile(rb"\xff\xd8\xff"), JpegImageFile, _check_jpeg),
            Format("image/png", re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile, _check_png),
            Format("image/gif", re.compile(rb"GIF8[79]a"), GifImageFile, _check_gif),
            Format(
                "image/webp",
                re.compile(rb"RIFF.{4}WEBPVP8[ LX]", re.DOTALL),
                WebPImageFile,
                _check_webp,
            ),
        )
    }
)
"""Maps media types to the supported image formats."""
