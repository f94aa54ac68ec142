"""Uploaded images are recognized by their content, checked, and made smaller."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from image_files import TYPES, animation, encoded, picture
from tenantry.endpoints.images.bounds import MAX_PIXELS, MAX_SCANS
from tenantry.endpoints.images.decoding import Inspection, draw_thumbnail, inspect_image
from tenantry.endpoints.images.errors import BrokenImageError, BusyError, ImageError, WrongTypeError
from tenantry.endpoints.images.formats import FORMATS
from tenantry.files.memory_budget import DECODING_BYTES, MemoryBudget

FILES = {
    **{kind: picture(kind) for kind in TYPES},
    "progressive JPEG": picture("JPEG", progressive=True),
    "lossless WEBP": picture("WEBP", lossless=True),
    "WEBP with alpha": encoded(Image.new("RGBA", (60, 40), (9, 9, 9, 9)), "WEBP"),
    "16 bit PNG": encoded(Image.new("I;16", (60, 40)), "PNG"),
    "CMYK JPEG": encoded(Image.new("CMYK", (60, 40)), "JPEG"),
    **{f"animated {kind}": animation(kind) for kind in ("PNG", "WEBP", "GIF")},
}
END_BYTES = {"PNG": 12, "GIF": 1}
"""Size in bytes of the end of a file, which browsers do not need."""
MEMORY = MemoryBudget(DECODING_BYTES, wait_s=0)
HUGE = struct.pack("<HH", 60_000, 60_000)


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    """Return a path whose name does not reveal the image format."""
    return tmp_path / "file.txt"


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _error_for(path: Path, data: bytes) -> ImageError:
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        inspect_image(path, MEMORY)
    return caught.value


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_what_its_bytes_say(path: Path, kind: str) -> None:
    """The type and size of an image come from its bytes, even if another file is appended."""
    media_type = TYPES[kind.removesuffix(" with alpha").split()[-1]]
    expected = Inspection(FORMATS[media_type], 60, 40)

    path.write_bytes(FILES[kind])
    plain = inspect_image(path, MEMORY)
    path.write_bytes(FILES[kind] + b"PK\x03\x04<script>")

    assert (expected, expected) == (plain, inspect_image(path, MEMORY))


@pytest.mark.parametrize("kind", FILES)
def test_truncated_files_are_rejected(path: Path, kind: str) -> None:
    """An image file is rejected even if only the last byte of its pixels is missing."""
    data = FILES[kind]
    end = len(data) - END_BYTES.get(kind.rsplit(maxsplit=1)[-1], 0)
    if kind == "animated PNG":
        end = data.index(b"fcTL", data.index(b"IDAT")) - 4  # this byte ends the first frame
    cuts = {*range(24), *range(24, end, len(data) // 40), *range(end - 12, end)}

    rejected = {cut for cut in cuts if isinstance(_error_for(path, data[:cut]), ImageError)}

    assert cuts == rejected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n" + FILES["JPEG"],
        b"<script>alert(1)</script>" + FILES["GIF"],
        b"\x00" + FILES["PNG"],
        encoded(Image.new("RGB", (2, 2)), "BMP"),
        encoded(Image.new("RGB", (2, 2)), "TIFF"),
        b"RIFF\x04\x00\x00\x00WAVEfmt ",
    ],
)
def test_other_types_are_rejected(path: Path, data: bytes) -> None:
    """Only files that begin like one of the four image types are accepted."""
    assert WrongTypeError is type(_error_for(path, data))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff" + b"\xff" * 99,
        b"GIF89a=1;alert(1)//",
        b"GIF89a\x01\x00\x01\x00\x00\x00\x00;",
        b"RIFF\x0c\x00\x00\x00WEBPVP8 " + bytes(4),
        FILES["PNG"].replace(b"IDAT", b"IDAX"),
        _png((b"IEND", b"")),
        _png((b"IHDR", struct.pack(">IIBBBBB", 60, 40, 8, 2, 0, 0, 0)), (b"IEND", b"")),
        FILES["PNG"][:80] + bytes([FILES["PNG"][80] ^ 1]) + FILES["PNG"][81:],
    ],
)
def test_fake_images_are_rejected(path: Path, data: bytes) -> None:
    """A file that merely begins like an image is rejected, without Pillow's error text."""
    error = _error_for(path, data)

    assert BrokenImageError is type(error)
    assert str(error).startswith("This ")


@pytest.mark.parametrize(
    "data",
    [
        _png((b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)), (b"IEND", b"")),
        b"GIF89a" + HUGE + bytes(3) + b"," + bytes(4) + HUGE + b"\x00\x02\x00;",
        b"GIF89a\x01\x00\x01\x00" + bytes(3) + b"," + bytes(4) + HUGE + b"\x00\x02\x00;",
        FILES["JPEG"].replace(struct.pack(">HH", 40, 60), struct.pack(">HH", 60_000, 60_000), 1),
        encoded(Image.new("1", (5_000, MAX_PIXELS // 5_000 + 1)), "PNG"),
    ],
)
def test_decompression_bombs_are_not_decoded(path: Path, data: bytes) -> None:
    """An image that claims too many pixels is rejected, and the error names the limit."""
    assert "the maximum is 25,000,000." in str(_error_for(path, data))


@pytest.mark.parametrize(
    "data",
    [
        b"RIFF\xff\xff\x00\x00WEBPVP8X\x0a\x00\x00\x00" + bytes(4) + b"\xff" * 6,
        b"RIFF\xff\xff\x00\x00WEBPVP8L\x0a\x00\x00\x00\x2f" + b"\xff" * 9,
        b"RIFF\xff\xff\x00\x00WEBPVP8 \x0a\x00\x00\x00" + bytes(6) + b"\xff" * 4,
        b"RIFF\xff\xff\x00\x00WEBPVP8 \x0a\x00\x00\x00" + bytes(6) + struct.pack("<HH", 5000, 2501),
    ],
)
def test_webp_has_a_lower_maximum(path: Path, data: bytes) -> None:
    """The pixel limit is lower for WebP, because Pillow needs more memory per pixel for WebP."""
    assert "the maximum is 12,500,000." in str(_error_for(path, data))


@pytest.mark.parametrize(("kind", "pixel_bytes"), [("JPEG", 12), ("PNG", 12), ("WEBP", 20)])
def test_each_image_reserves_the_memory_of_its_decoding(
    path: Path, kind: str, pixel_bytes: int
) -> None:
    """Inspecting an image reserves 12 bytes per pixel, or 20 for WebP, and three times the file."""
    path.write_bytes(FILES[kind])
    limit_bytes = 60 * 40 * 30 + 3 * len(FILES[kind])

    def is_enough(size_bytes: int) -> bool:
        memory = MemoryBudget(limit_bytes, wait_s=0)
        try:
            with memory.reserve(limit_bytes - size_bytes):
                inspect_image(path, memory)
        except BusyError:
            return False
        return True

    size_bytes = 60 * 40 * pixel_bytes + 3 * len(FILES[kind])
    assert (True, False) == (is_enough(size_bytes), is_enough(size_bytes - 1))


def test_an_image_may_have_the_maximum_of_pixels(path: Path) -> None:
    """An image of exactly 25,000,000 pixels is accepted."""
    path.write_bytes(encoded(Image.new("1", (5_000, MAX_PIXELS // 5_000)), "PNG"))

    assert Inspection(FORMATS["image/png"], 5_000, 5_000) == inspect_image(path, MEMORY)


def test_a_jpeg_has_a_bounded_number_of_scans(path: Path) -> None:
    """A JPEG with too many scans is rejected, because decoding each scan touches every pixel."""
    data = FILES["progressive JPEG"]
    last = data.rindex(b"\xff\xda")

    error = _error_for(path, data[:last] + data[last:-2] * MAX_SCANS + b"\xff\xd9")

    assert "This JPEG has more than 30 scans." == str(error)


@pytest.mark.parametrize("kind", FILES)
def test_a_thumbnail_fits_and_carries_no_metadata(path: Path, kind: str) -> None:
    """A thumbnail keeps the image's proportions, and is a JPEG only if the image is a JPEG."""
    path.write_bytes(FILES[kind])

    drawn, media_type = draw_thumbnail(path, 30, MEMORY)
    image = Image.open(BytesIO(drawn))

    assert ("image/jpeg" if "JPEG" in kind else "image/png") == media_type
    assert ((30, 20), media_type) == (image.size, image.get_format_mimetype())


def test_a_thumbnail_is_upright_and_has_no_exif_data(path: Path) -> None:
    """A thumbnail applies the EXIF orientation and contains no EXIF data."""
    exif = Image.Exif()
    # EXIF tags: orientation (turned by 90 degrees), and camera maker.
    exif[0x0112], exif[0x010F] = 6, "Camera"
    path.write_bytes(picture("JPEG", exif=exif))

    image = Image.open(BytesIO(draw_thumbnail(path, 30, MEMORY)[0]))

    assert ((20, 30), {}) == (image.size, dict(image.getexif()))


def test_a_thumbnail_is_never_larger_than_its_image(path: Path) -> None:
    """A thumbnail is never larger than its image."""
    path.write_bytes(FILES["PNG"])

    assert (60, 40) == Image.open(BytesIO(draw_thumbnail(path, 1024, MEMORY)[0])).size


def test_transparency_is_kept(path: Path) -> None:
    """A thumbnail of a transparent image is transparent."""
    path.write_bytes(encoded(Image.new("RGBA", (60, 40), (1, 2, 3, 0)), "WEBP", exact=True))

    assert "RGBA" == Image.open(BytesIO(draw_thumbnail(path, 30, MEMORY)[0])).mode
