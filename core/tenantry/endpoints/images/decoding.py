"""Inspects image files and creates thumbnails, within a memory budget.

The media type and the file name from the client are not trusted. The number of pixels is checked
before an image is decoded. Every upload is decoded once, so every stored image can be displayed.

This module calls Pillow's plugins directly. `Image.open` depends on process-wide settings, and only
warns about some images that must be rejected.
"""

import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path

from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.WebPImagePlugin import WebPImageFile

from tenantry.files.memory_budget import MemoryBudget

from .errors import BrokenImageError, BusyError, ImageError, WrongTypeError
from .formats import (
    MAX_PIXELS,
    WEBP_PIXEL_BYTES,
    Format,
    check_size,
    format_of,
    pixel_bytes,
    webp_size,
)

THUMBNAIL_PX = range(16, 1025)
"""Allowed lengths of a thumbnail's longer side, in pixels."""


@dataclass(frozen=True)
class Inspection:
    """The format and size of an image file."""

    format: Format
    width: int
    height: int


def inspect_image(path: Path, memory: MemoryBudget) -> Inspection:
    """Decode an image file, and return its format and size.

    Raises:
        WrongTypeError: the file is not a JPEG, PNG, WebP or GIF.
        BrokenImageError: the image is truncated, damaged, or too large to decode.
        BusyError: other images use all memory for decoding.
    """
    with _opened(path, memory, is_new=True) as (format_, image):
        inspection = Inspection(format_, *image.size)
        image.draft("RGB", (1, 1))  # `draft` makes Pillow read a JPEG with less memory
        image.load()
    return inspection


def draw_thumbnail(path: Path, size_px: int, memory: MemoryBudget) -> tuple[bytes, str]:
    """Return a thumbnail without metadata, and its media type.

    The thumbnail of a JPEG is a JPEG, rotated according to the EXIF data. For an image in any other
    format, the thumbnail is a PNG of the first frame. Small images are not enlarged.

    Args:
        path: a file that `inspect_image` accepted.
        size_px: the length of the longer side, one of `THUMBNAIL_PX`.
        memory: the memory budget for decoding.

    Raises:
        BusyError: other images use all memory for decoding.
    """
    output = BytesIO()
    with _opened(path, memory, is_new=False) as (format_, image):
        is_jpeg = format_.plugin is JpegImageFile
        image.draft("RGB", (2 * size_px, 2 * size_px))
        thumbnail = image.convert("RGBA" if image.has_transparency_data else "RGB")
        thumbnail.thumbnail((size_px, size_px))
        if is_jpeg:
            thumbnail.info["exif"] = image.info.get("exif", b"")
            ImageOps.exif_transpose(thumbnail, in_place=True)
        thumbnail.info.clear()
        thumbnail.save(output, "JPEG" if is_jpeg else "PNG")
    return output.getvalue(), "image/jpeg" if is_jpeg else "image/png"


@contextmanager
def _opened(
    path: Path, memory: MemoryBudget, *, is_new: bool
) -> Iterator[tuple[Format, ImageFile]]:
    """Open an image, and reserve the memory that decoding the image takes.

    Args:
        path: the image file.
        memory: the memory budget for decoding.
        is_new: whether to run the checks of the image format.
    """
    with path.open("rb") as file, _mapped(path) as data, ExitStack() as reservation:
        format_ = format_of(data)
        with _decoding_errors():
            if is_new:
                format_.check(data)
            is_webp = format_.plugin is WebPImageFile
            if is_webp:  # opening a WebP file already allocates memory
                _reserve(reservation, memory, WEBP_PIXEL_BYTES * prod(webp_size(data)))
            image = format_.plugin(file)
            check_size(*image.size)
            if not is_webp:
                _reserve(reservation, memory, pixel_bytes(image, data) * prod(image.size))
            yield format_, image


def _reserve(reservation: ExitStack, memory: MemoryBudget, size_bytes: int) -> None:
    try:
        reservation.enter_context(memory.reserve(size_bytes))
    except TimeoutError as error:
        raise BusyError from error


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """Map a file into memory, because mapped pages do not count as memory of the process."""
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise WrongTypeError("The upload is empty. Send an image.") from error
    with data:
        yield data


@contextmanager
def _decoding_errors() -> Iterator[None]:
    """Raise `BrokenImageError` instead of any exception from a Pillow plugin."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        text = f"This image has too many pixels; the maximum is {MAX_PIXELS:,}."
        raise BrokenImageError(text) from error
    except Exception as error:
        raise BrokenImageError("This image is truncated or damaged.") from error
