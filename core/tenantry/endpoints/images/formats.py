"""Recognizes image formats by the first bytes of a file."""

__shared__ = True

import mmap
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from .bounds import PIXEL_BYTES, WEBP_PIXEL_BYTES
from .contents import ImageContents
from .errors import WrongTypeError
from .gif import read_gif
from .jpeg import read_jpeg
from .png import read_png
from .webp import read_webp


@dataclass(frozen=True)
class Format:
    """An image format, with the function that reads the format."""

    media_type: str
    magic: re.Pattern[bytes]
    read: Callable[[mmap.mmap], ImageContents]
    """A function that follows the structure of a file, and raises `BrokenImageError`."""
    plugin: type[ImageFile]
    pixel_bytes: int = PIXEL_BYTES
    """Bytes of the memory budget per pixel."""

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


FORMATS = MappingProxyType(
    {
        format_.media_type: format_
        for format_ in (
            Format("image/jpeg", re.compile(rb"\xff\xd8\xff"), read_jpeg, JpegImageFile),
            Format("image/png", re.compile(rb"\x89PNG\r\n\x1a\n"), read_png, PngImageFile),
            Format("image/gif", re.compile(rb"GIF8[79]a"), read_gif, GifImageFile),
            Format(
                "image/webp",
                re.compile(rb"RIFF.{4}WEBPVP8[ LX]", re.DOTALL),
                read_webp,
                WebPImageFile,
                WEBP_PIXEL_BYTES,
            ),
        )
    }
)
"""Maps media types to the supported image formats."""
