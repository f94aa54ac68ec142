"""A thumbnail has the colors, the transparency and the orientation of its image."""

import struct
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from image_files import chunk, encoded, png
from tenantry.endpoints.images.decoding import draw_thumbnail, inspect_image
from tenantry.files.memory_budget import DECODING_BYTES, MemoryBudget

MEMORY = MemoryBudget(DECODING_BYTES, wait_s=0)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
CMYK = SRGB[:16] + b"CMYK" + SRGB[20:]
PALETTE = chunk(b"PLTE", b"\1\2\3\xf0\xf1\xf2")
GRAY_ROWS = {1: b"\x80", 2: b"\xc0", 4: b"\xf0", 8: b"\xff\0", 16: b"\xff\xff\0\0"}
"""Maps each number of bits per pixel to a white and a black pixel."""
WHITE, BLACK = (255,) * 4, (0, 0, 0, 255)


def thumbnail(path: Path, data: bytes) -> Image.Image:
    """Upload an image, and return its thumbnail."""
    path.write_bytes(data)
    inspect_image(path, MEMORY)
    return Image.open(BytesIO(draw_thumbnail(path, 16, MEMORY)[0]))


def ends(image: Image.Image) -> list[object]:
    """Return the colors of the first and of the last pixel."""
    shown = image.convert("RGBA")
    return [shown.getpixel((0, 0)), shown.getpixel((image.width - 1, image.height - 1))]


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.mark.parametrize("depth", GRAY_ROWS)
def test_gray_is_shown_with_any_number_of_bits(path: Path, depth: int) -> None:
    """White stays white and black stays black, with 1 to 16 bits per pixel."""
    assert [WHITE, BLACK] == ends(thumbnail(path, png(GRAY_ROWS[depth], depth=depth)))


def test_gray_of_16_bits_keeps_its_middle(path: Path) -> None:
    """Half-bright gray with 16 bits per pixel becomes half-bright gray with 8 bits per pixel."""
    image = thumbnail(path, png(b"\x80\0\x40\0", depth=16))

    assert [(128, 128, 128, 255), (64, 64, 64, 255)] == ends(image)


@pytest.mark.parametrize("is_transparent", [False, True])
def test_a_small_first_frame_has_a_transparent_border(path: Path, *, is_transparent: bool) -> None:
    """A GIF whose first frame is smaller than its canvas is shown at the size of the canvas."""
    frame = Image.new("P", (2, 1), 1)
    frame.putpalette([255, 0, 0, 0, 0, 255, 0, 255, 0])
    options = {"transparency": 2} if is_transparent else {}
    data = bytearray(encoded(frame, "GIF", **options))
    data[6:10] = struct.pack("<HH", 4, 3)  # the canvas
    place = data.index(b",\0\0\0\0\2\0\1\0")
    data[place + 1 : place + 5] = struct.pack("<HH", 1, 1)  # the position of the frame

    image = thumbnail(path, bytes(data)).convert("RGBA")

    pixels = [image.getpixel((x, y)) for y in range(3) for x in range(4)]
    blue, clear = (0, 0, 255, 255), (0, 0, 0, 0)
    shown = [clear if pixel[3] == 0 else pixel for pixel in pixels]
    assert [*[clear] * 4, clear, blue, blue, clear, *[clear] * 4] == shown


@pytest.mark.parametrize("depth", GRAY_ROWS)
def test_a_transparent_gray_is_transparent(path: Path, depth: int) -> None:
    """The gray that a PNG declares transparent is transparent, with 1 to 16 bits per pixel."""
    key = chunk(b"tRNS", struct.pack(">H", 2**depth - 1))

    image = thumbnail(path, png(GRAY_ROWS[depth], key, depth=depth))

    assert [0, 255] == [color[3] for color in ends(image)]  # type: ignore[index]


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_color_is_transparent(path: Path, depth: int) -> None:
    """The color that a PNG declares transparent is transparent, with 8 and 16 bits per sample."""
    key = chunk(b"tRNS", struct.pack(">3H", *[2**depth - 1] * 3))
    rows = b"\xff" * (3 * depth // 8) + bytes(3 * depth // 8)

    image = thumbnail(path, png(rows, key, depth=depth, color=2))

    assert [0, 255] == [color[3] for color in ends(image)]  # type: ignore[index]


@pytest.mark.parametrize(
    ("transparency", "expected"),
    [(b"", 255), (b"\x80", 128), (b"\x80" * 300, 128)],
)
def test_a_palette_keeps_its_colors(path: Path, transparency: bytes, expected: int) -> None:
    """The colors and the transparency of a palette are kept, even if the palette is too long."""
    chunks = (PALETTE, chunk(b"tRNS", transparency)) if transparency else (PALETTE,)

    image = thumbnail(path, png(b"\0\1", *chunks, color=3))

    assert (1, 2, 3, expected) == ends(image)[0]


def test_cmyk_without_a_profile_becomes_rgb(path: Path) -> None:
    """The thumbnail of a red CMYK image without a color profile is red."""
    image = thumbnail(path, encoded(Image.new("CMYK", (30, 20), (0, 255, 255, 0)), "JPEG"))

    assert ("RGB", True) == (image.mode, image.getpixel((9, 9)) in {(254, 0, 0), (255, 0, 0)})


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_color_profile_is_kept(path: Path, kind: str) -> None:
    """A thumbnail has the color profile of its image."""
    image = thumbnail(path, encoded(Image.new("RGB", (30, 20)), kind, icc_profile=SRGB))

    assert SRGB == image.info.get("icc_profile")


def test_a_cmyk_profile_stays_with_cmyk(path: Path) -> None:
    """The thumbnail of a CMYK image with a color profile is also CMYK."""
    data = encoded(Image.new("CMYK", (30, 20), (0, 255, 255, 0)), "JPEG", icc_profile=CMYK)

    image = thumbnail(path, data)

    assert ("CMYK", CMYK) == (image.mode, image.info.get("icc_profile"))


@pytest.mark.parametrize("profile", [b"?", SRGB[:20], SRGB[:36] + b"?" + SRGB[37:]])
def test_a_damaged_profile_is_left_out(path: Path, profile: bytes) -> None:
    """A thumbnail is made without a color profile that is damaged."""
    image = thumbnail(path, encoded(Image.new("RGB", (30, 20)), "JPEG", icc_profile=profile))

    assert "icc_profile" not in image.info


def test_a_profile_of_other_colors_is_left_out(path: Path) -> None:
    """A gray thumbnail has no profile for RGB colors."""
    image = thumbnail(path, encoded(Image.new("L", (30, 20)), "JPEG", icc_profile=SRGB))

    assert ("L", None) == (image.mode, image.info.get("icc_profile"))


def test_the_gamma_of_a_png_is_kept(path: Path) -> None:
    """The thumbnail of a PNG with another brightness curve has the same curve."""
    image = thumbnail(path, png(b"\1\2", chunk(b"gAMA", struct.pack(">I", 100_000))))

    assert 1.0 == image.info["gamma"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "size", "is_white_first"),
    [(1, (16, 8), True), (2, (16, 8), False), (3, (16, 8), False), (4, (16, 8), True),
     (5, (8, 16), True), (6, (8, 16), True), (7, (8, 16), False), (8, (8, 16), False),
     (9, (16, 8), True), (0, (16, 8), True)],
)  # fmt: skip
def test_a_thumbnail_is_upright(
    path: Path, kind: str, orientation: int, size: tuple[int, int], is_white_first: bool
) -> None:
    """A thumbnail applies the EXIF orientation of each format, and contains no EXIF data."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Camera"
    left_white = Image.new("RGB", (64, 32))
    left_white.paste((255, 255, 255), (0, 0, 32, 32))

    image = thumbnail(path, encoded(left_white, kind, exif=exif))

    assert (size, {}) == (image.size, dict(image.getexif()))
    assert [WHITE, BLACK][:: 1 if is_white_first else -1] == ends(image)
