"""Decodes the pixels of an image, and makes a smaller image that looks the same.

A color profile is copied unread, so a thumbnail has the same colors as the image in every program.

This module calls Pillow's plugins directly. `Image.open` depends on process-wide settings, and only
warns about some images that must be rejected.
"""

__shared__ = True

import struct
from io import BytesIO
from types import MappingProxyType

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngInfo

from .bounds import MAX_EXIF_BYTES
from .contents import ImageContents
from .errors import BrokenImageError

_ORIENTATION_TAG, _SHORT = 0x0112, 3
_TRANSPOSE = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)
"""Maps an EXIF orientation to the operation that makes an image upright."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of an image, in pixels."""

_PROFILE_MODES = MappingProxyType(
    {b"RGB ": ("RGB", "RGBA"), b"GRAY": ("L", "LA"), b"CMYK": ("CMYK",)}
)
"""Maps the color space in a profile to the modes of images that the profile can describe."""


def shrink(
    pixel_file: bytes, plugin: type[ImageFile], contents: ImageContents, size_px: int
) -> Image.Image:
    """Decode a file, and return its first frame, upright and at most `size_px` wide and high.

    Small images are not enlarged.
    """
    opened, box = _opened(pixel_file, plugin, contents, size_px)
    image = _with_shown_mode(opened, box, profile_space=contents.profile[16:20])
    image.thumbnail((size_px, size_px))
    method = _TRANSPOSE.get(orientation(contents.exif))
    return image if method is None else image.transpose(method)


def encode(image: Image.Image, kind: str, contents: ImageContents) -> bytes:
    """Return the file of a thumbnail, which contains no metadata except colors."""
    output = BytesIO()
    space = contents.profile[16:20]
    is_valid = contents.profile[36:40] == b"acsp" and image.mode in _PROFILE_MODES.get(space, ())
    options = {"icc_profile": contents.profile if is_valid else None}
    image.info.clear()
    if kind == "PNG":
        colors = PngInfo()
        for name, data in contents.color_chunks:
            colors.add(name, data)
        image.save(output, kind, pnginfo=colors, **options)
    else:
        image.save(output, kind, **options)
    return output.getvalue()


def orientation(exif: bytes) -> int:
    """Return the orientation from EXIF data, or 1 if the data has no orientation or is damaged.

    EXIF data is a TIFF file. The first directory of this file contains the orientation (EXIF 3.0
    §4.6).
    """
    tiff = exif[:MAX_EXIF_BYTES].removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == _ORIENTATION_TAG and kind == _SHORT:
                return int(value)
    except struct.error:  # the directory ends too early
        return 1
    return 1


def _opened(
    pixel_file: bytes, plugin: type[ImageFile], contents: ImageContents, size_px: int
) -> tuple[ImageFile, Box]:
    """Return the decoded image, and the part of it that the first frame covers."""
    image = plugin(BytesIO(pixel_file))
    if image.size != (contents.width, contents.height):
        raise BrokenImageError("This image is damaged: it has two sizes.")
    width, height = (-(-side * 2 * size_px // max(image.size)) for side in image.size)
    image.draft(None, (width, height))  # `draft` makes Pillow read a JPEG with less memory
    whole = (0, 0, *image.size)
    # The plugin for WebP describes no parts.
    box = next((part.extents for part in image.tile if part.extents), whole)
    image.load()
    return image, box


def _with_shown_mode(image: Image.Image, box: Box, profile_space: bytes) -> Image.Image:
    """Return an image in a mode that can be made smaller and saved."""
    if box != (0, 0, *image.size):
        return _with_clear_border(image, box)
    if image.mode == "I;16":
        return _with_8_bits(image)
    if image.mode == "CMYK":
        return image if profile_space == b"CMYK" else image.convert("RGB")
    is_gray = image.mode in {"1", "L", "LA"}
    if image.has_transparency_data:
        mode = "LA" if is_gray else "RGBA"
    else:
        mode = "L" if is_gray else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _with_clear_border(image: Image.Image, box: Box) -> Image.Image:
    """Return a GIF whose canvas is transparent outside of the first frame, as in browsers."""
    shown = image if image.mode == "RGBA" else image.convert("RGBA")
    (left, top, right, bottom), (width, height) = box, image.size
    for border in (
        (0, 0, width, top), (0, bottom, width, height),
        (0, top, left, bottom), (right, top, width, bottom),
    ):  # fmt: skip
        shown.paste((0, 0, 0, 0), border)
    return shown


def _with_8_bits(image: Image.Image) -> Image.Image:
    """Convert a gray image from 16 to 8 bits per pixel."""
    key = image.info.get("transparency")
    values = image.convert("I")
    gray = values.point([value >> 8 for value in range(2**16)], "L")
    if key is None:
        return gray
    alpha = values.point([0 if value == key else 255 for value in range(2**16)], "L")
    del values  # frees memory for `merge`
    return Image.merge("LA", (gray, alpha))
