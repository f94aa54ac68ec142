"""Inspects image files and creates thumbnails, within a memory budget.

The media type and the file name from the client are not trusted. The structure and the number of
pixels are checked before an image is decoded. Every upload is decoded once for a small thumbnail,
so every stored image can be displayed.
"""

__shared__ = True

import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from tenantry.files.memory_budget import MemoryBudget

from .bounds import FILE_COPIES
from .contents import ImageContents
from .errors import BrokenImageError, BusyError, ImageError, WrongTypeError
from .formats import Format, format_of
from .showing import encode, shrink

THUMBNAIL_PX = range(16, 1025)
"""Allowed lengths of a thumbnail's longer side, in pixels."""

THUMBNAIL_VERSION = 2
"""Part of a thumbnail's ETag.

The value changes when a new version of Tenantry makes another thumbnail of the same image.
"""


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
        BrokenImageError: the image is truncated, damaged, or exceeds a bound.
        BusyError: other images use all memory for decoding.
    """
    with _drawn(path, THUMBNAIL_PX[0], memory) as (format_, contents, _):
        return Inspection(format_, contents.width, contents.height)


def draw_thumbnail(path: Path, size_px: int, memory: MemoryBudget) -> tuple[bytes, str]:
    """Return a thumbnail without metadata, and its media type.

    The thumbnail is upright according to the EXIF data. The thumbnail of a JPEG is a JPEG. For an
    image in any other format, the thumbnail is a PNG of the first frame. Small images are not
    enlarged.

    Args:
        path: a file that `inspect_image` accepted.
        size_px: the length of the longer side, one of `THUMBNAIL_PX`.
        memory: the memory budget for decoding.

    Raises:
        BusyError: other images use all memory for decoding.
    """
    with _drawn(path, size_px, memory) as (format_, contents, thumbnail):
        kind = "JPEG" if format_.plugin is JpegImageFile else "PNG"
        return encode(thumbnail, kind, contents), f"image/{kind.lower()}"


@contextmanager
def _drawn(
    path: Path, size_px: int, memory: MemoryBudget
) -> Iterator[tuple[Format, ImageContents, Image.Image]]:
    """Yield the format and the contents of an image file, and a smaller version of the image.

    The memory for decoding is reserved until the end of the `with` block.
    """
    with _mapped(path) as data:
        format_ = format_of(data)
        with _decoding_errors():
            contents = format_.read(data)
            size_bytes = format_.pixel_bytes * contents.width * contents.height
            with _reserved(memory, size_bytes + FILE_COPIES * len(data)):
                pixel_file = contents.pixel_file(data)
                yield format_, contents, shrink(pixel_file, format_.plugin, contents, size_px)


@contextmanager
def _reserved(memory: MemoryBudget, size_bytes: int) -> Iterator[None]:
    with ExitStack() as reservation:
        try:
            reservation.enter_context(memory.reserve(size_bytes))
        except TimeoutError as error:
            raise BusyError from error
        yield


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
    except Exception as error:
        raise BrokenImageError("This image is truncated or damaged.") from error
