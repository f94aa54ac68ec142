"""What an image file is, judged by its content, and making it smaller.

The first bytes say the type; a declared type or a name is never asked. Then the size is checked
before anything is decoded, then the file is decoded once, so that what is kept can be shown. Bytes
after an image's end stay as they are (phones append videos and second pictures there): nobody
ever interprets them.

Pillow's plugins are called directly: `Image.open` judges by settings that are global to the
process, and warns where it should refuse.
"""

import mmap
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from types import MappingProxyType

from PIL import Image, ImageOps
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from .errors import BrokenImageError, ImageError, WrongTypeError
from .room import DecodingRoom

MAX_PIXELS = 25_000_000
"""Width times height."""

MAX_WEBP_PIXELS = 12_500_000
"""The same of WebP, whose decoder takes five times the memory: 50 bytes may say 25 million."""

DECODING_BYTES = 300 << 20
"""Memory for all pictures that a process decodes at the same time: the largest one alone."""

DECODING_WAIT_S = 3.0
"""How long a picture waits for this memory: the largest ones take half a second each."""

MAX_SCANS = 30
"""Passes of a progressive JPEG, of which usual ones have ten. Each walks over all pixels, at up to
0.1 s: without a bound, 16 MiB of empty passes take hours."""

THUMBNAIL_PX = range(16, 1025)
"""How large a thumbnail may be, in pixels of its longer side: to be drawn at once, not stored."""


@dataclass(frozen=True)
class Picture:
    """What was found in a file."""

    media_type: str
    width: int
    height: int


def inspect_picture(path: Path) -> Picture:
    """Return what the file holds, after it was decoded once.

    Raises:
        WrongTypeError: it is no JPEG, PNG, WebP or GIF.
        BrokenImageError: it begins like one, but is cut, damaged, or too big to decode.
        BusyError: others are decoded all the time.
    """
    with _decoding(path, is_new=True) as (kind, image):
        picture = Picture(kind.media_type, *image.size)
        image.draft("RGB", (1, 1))  # a JPEG is read to its end all the same, in less memory
        image.load()
    return picture


def draw_thumbnail(path: Path, size: int) -> tuple[bytes, str]:
    """Return a smaller picture without its metadata, and its media type.

    It is a JPEG if the file is one, with what its EXIF says about orientation applied; else a PNG,
    of the first frame. Nothing is enlarged.

    Args:
        path: a file that `inspect_picture` took.
        size: pixels of the longer side, one of `THUMBNAIL_PX`.

    Raises:
        BusyError: others are decoded all the time.
    """
    drawn = BytesIO()
    with _decoding(path, is_new=False) as (kind, image):
        is_jpeg = kind.plugin is JpegImageFile
        image.draft("RGB", (2 * size, 2 * size))
        plain = image.convert("RGBA" if image.has_transparency_data else "RGB")
        plain.thumbnail((size, size))
        if is_jpeg:
            plain.info["exif"] = image.info.get("exif", b"")
            ImageOps.exif_transpose(plain, in_place=True)
        plain.info.clear()
        plain.save(drawn, "JPEG" if is_jpeg else "PNG")
    return drawn.getvalue(), "image/jpeg" if is_jpeg else "image/png"


_ROOM = DecodingRoom(DECODING_BYTES, DECODING_WAIT_S)
"""One for all tenants of a process: each alone would keep to a bound that all together break."""


@contextmanager
def _decoding(path: Path, *, is_new: bool) -> Iterator[tuple["_Kind", ImageFile]]:
    """Yield an image, not decoded yet: until the end of the block there is memory for that.

    Args:
        path: the file.
        is_new: look for what its plugin would not find.
    """
    with path.open("rb") as file, _mapped(path) as data, ExitStack() as room:
        kind = _kind_of(data)
        with _blaming_the_file():
            if is_new:
                kind.check(data)
            if kind.plugin is WebPImageFile:  # it takes memory when it is opened
                room.enter_context(_ROOM.taking(_WEBP_PIXEL_BYTES * prod(_webp_size(data))))
            image = kind.plugin(file)
            _check_size(*image.size)
            if kind.plugin is not WebPImageFile:
                room.enter_context(_ROOM.taking(_pixel_bytes(image, data) * prod(image.size)))
            yield kind, image


_WEBP_PIXEL_BYTES = 20
"""Seen: 16 when an image is looked at, 19 for a thumbnail."""


def _pixel_bytes(image: ImageFile, data: mmap.mmap) -> int:
    """Return what a pixel takes until there is a thumbnail, at most."""
    if not isinstance(image, JpegImageFile):
        return 12  # where it is transparent
    first = next(one.end() for one in _jpeg_segments(data) if one[1] == b"\xda")
    has_all = data[first + 2] == image.layers  # else all of its passes are in memory
    return 1 if has_all and not image.info.get("progressive") else 8


@dataclass(frozen=True)
class _Kind:
    media_type: str
    magic: re.Pattern[bytes]
    plugin: type[ImageFile]
    check: Callable[[mmap.mmap], None]
    """Raises what the plugin would not find, or find too late."""


def _check_jpeg(data: mmap.mmap) -> None:
    """Follow the segments to the end of the image: all there, and not too many passes."""
    scans = 0
    for marker in _jpeg_segments(data):
        if marker[1] == b"\xd9":
            return
        scans += marker[1] == b"\xda"
        if scans > MAX_SCANS:
            raise BrokenImageError(f"This JPEG has more than {MAX_SCANS} passes.")
    raise BrokenImageError("This JPEG is cut: it has no end.")


def _jpeg_segments(data: mmap.mmap) -> Iterator[re.Match[bytes]]:
    """Yield the markers that segments begin with; their lengths follow."""
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        yield marker
        (length,) = struct.unpack_from(">H", data, marker.end())
        position = marker.end() + length


def _check_png(data: mmap.mmap) -> None:
    """Compare the sums of all chunks, to the end of the image."""
    position, kind = 8, b""
    with memoryview(data) as view:
        while kind != b"IEND":
            length, kind = struct.unpack_from(">I4s", view, position)
            end = position + 8 + length
            if struct.unpack_from(">I", view, end) != (zlib.crc32(view[position + 4 : end]),):
                raise BrokenImageError("This PNG is damaged: one of its sums is wrong.")
            position = end + 4


def _check_gif(data: mmap.mmap) -> None:
    """Follow the blocks of all frames to the end of the file."""
    position = 13 + _palette_bytes(data[10])
    while (block := data[position]) != ord(";"):
        if block == ord("!"):
            position += 2
        elif block == ord(","):
            position += 11 + _palette_bytes(data[position + 9])
        else:
            raise BrokenImageError("This GIF is damaged: one of its blocks is none.")
        while length := data[position]:
            position += 1 + length
        position += 1


def _check_webp(data: mmap.mmap) -> None:
    """Check the size before the plugin makes room for it, which it does when it opens."""
    _check_size(*_webp_size(data), MAX_WEBP_PIXELS)


def _webp_size(data: mmap.mmap) -> tuple[int, int]:
    chunk, start = data[12:16], data[20:30]
    if chunk == b"VP8X":
        width, height = (int.from_bytes(start[at : at + 3], "little") + 1 for at in (4, 7))
    elif chunk == b"VP8L":
        bits = int.from_bytes(start[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", start, 6))
    return width, height


_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # no stuffing, filling or restart

_KINDS = (
    _Kind("image/jpeg", re.compile(rb"\xff\xd8\xff"), JpegImageFile, _check_jpeg),
    _Kind("image/png", re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile, _check_png),
    _Kind("image/gif", re.compile(rb"GIF8[79]a"), GifImageFile, _check_gif),
    _Kind(
        "image/webp", re.compile(rb"RIFF.{4}WEBPVP8[ LX]", re.DOTALL), WebPImageFile, _check_webp
    ),
)

EXTENSIONS = MappingProxyType(
    {kind.media_type: kind.media_type.partition("/")[2] for kind in _KINDS}
)


def _kind_of(data: mmap.mmap) -> _Kind:
    for kind in _KINDS:
        if kind.magic.match(data):
            return kind
    raise WrongTypeError("These bytes are no JPEG, PNG, WebP or GIF image.")


def _check_size(width: int, height: int, limit: int = MAX_PIXELS) -> None:
    if width * height > limit:
        text = f"This image has {width:,} by {height:,} pixels; at most {limit:,} are taken."
        raise BrokenImageError(text)


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """Map the file: its pages are the system's, not this process's own memory."""
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise WrongTypeError("There are no bytes here; send an image.") from error
    with data:
        yield data


@contextmanager
def _blaming_the_file() -> Iterator[None]:
    """Turn whatever a plugin raises into a refusal: on hostile bytes that may be any exception."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        text = f"This image has too many pixels; at most {MAX_PIXELS:,} are taken."
        raise BrokenImageError(text) from error
    except Exception as error:
        raise BrokenImageError("This image is cut or damaged.") from error
