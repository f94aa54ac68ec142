"""What an image file is, judged by its content; and thumbnails."""

import struct
import threading
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from pictures_for_tests import TYPES, animation, encoded, picture
from servers import DEADLINE_S, wait_until
from tenantry.endpoints.images import pictures
from tenantry.endpoints.images.errors import BrokenImageError, BusyError, ImageError, WrongTypeError
from tenantry.endpoints.images.pictures import (
    MAX_PIXELS,
    MAX_SCANS,
    Picture,
    draw_thumbnail,
    inspect_picture,
)
from tenantry.endpoints.images.room import DecodingRoom

FILES = {
    **{kind: picture(kind) for kind in TYPES},
    "progressive JPEG": picture("JPEG", progressive=True),
    "lossless WEBP": picture("WEBP", lossless=True),
    "WEBP with alpha": encoded(Image.new("RGBA", (60, 40), (9, 9, 9, 9)), "WEBP"),
    "16 bit PNG": encoded(Image.new("I;16", (60, 40)), "PNG"),
    "CMYK JPEG": encoded(Image.new("CMYK", (60, 40)), "JPEG"),
    **{f"animated {kind}": animation(kind) for kind in ("PNG", "WEBP", "GIF")},
}
HUGE = struct.pack("<HH", 60_000, 60_000)


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    """Return where a test puts its file; the name says nothing about the content."""
    return tmp_path / "file.txt"


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _refusal(path: Path, data: bytes) -> ImageError:
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        inspect_picture(path)
    return caught.value


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_what_its_bytes_say(path: Path, kind: str) -> None:
    """Type and size come from the content, also with a foreign file appended."""
    expected = Picture(TYPES[kind.removesuffix(" with alpha").split()[-1]], 60, 40)

    path.write_bytes(FILES[kind])
    plain = inspect_picture(path)
    path.write_bytes(FILES[kind] + b"PK\x03\x04<script>")

    assert (expected, expected) == (plain, inspect_picture(path))


@pytest.mark.parametrize("kind", FILES)
def test_no_cut_file_is_taken(path: Path, kind: str) -> None:
    """A file without its last byte, or more of them, is refused as broken or as no image."""
    data = FILES[kind]
    cuts = {*range(24), *range(24, len(data), len(data) // 40), *range(len(data) - 12, len(data))}

    refused = {cut for cut in cuts if isinstance(_refusal(path, data[:cut]), ImageError)}

    assert cuts == refused


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
def test_other_types_are_refused(path: Path, data: bytes) -> None:
    """What does not begin like one of the four types is no image, whatever follows."""
    assert WrongTypeError is type(_refusal(path, data))


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
def test_lying_files_are_refused(path: Path, data: bytes) -> None:
    """What begins like an image and is none is broken, without a word of Pillow's."""
    refusal = _refusal(path, data)

    assert BrokenImageError is type(refusal)
    assert str(refusal).startswith("This ")


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
def test_bombs_are_refused_before_they_are_decoded(path: Path, data: bytes) -> None:
    """A file that claims too many pixels is refused, and told how many are taken."""
    assert "at most 25,000,000 are taken." in str(_refusal(path, data))


@pytest.mark.parametrize(
    "data",
    [
        b"RIFF\xff\xff\x00\x00WEBPVP8X\x0a\x00\x00\x00" + bytes(4) + b"\xff" * 6,
        b"RIFF\xff\xff\x00\x00WEBPVP8L\x0a\x00\x00\x00\x2f" + b"\xff" * 9,
        b"RIFF\xff\xff\x00\x00WEBPVP8 \x0a\x00\x00\x00" + bytes(6) + b"\xff" * 4,
        b"RIFF\xff\xff\x00\x00WEBPVP8 \x0a\x00\x00\x00" + bytes(6) + struct.pack("<HH", 5000, 2501),
    ],
)
def test_webp_may_have_fewer_pixels(path: Path, data: bytes) -> None:
    """It takes more memory for each of them, already when it is opened."""
    assert "at most 12,500,000 are taken." in str(_refusal(path, data))


def test_all_pictures_share_the_memory_for_decoding() -> None:
    """What does not fit beside the others waits for them, or is refused; what fits does not."""
    room = DecodingRoom(10, wait_s=0)

    with room.taking(6), room.taking(4), pytest.raises(BusyError), room.taking(1):
        pass
    with room.taking(6), pytest.raises(BusyError), room.taking(99):
        pass

    with room.taking(99), pytest.raises(BusyError), room.taking(1):
        pass


@pytest.mark.parametrize(
    ("kind", "pixel_bytes"),
    [("JPEG", 1), ("CMYK JPEG", 1), ("progressive JPEG", 8), ("PNG", 12), ("WEBP", 20)],
)
def test_each_picture_takes_what_decoding_it_takes(
    path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, pixel_bytes: int
) -> None:
    """A JPEG whose rows can be read one by one is in nobody's way."""
    path.write_bytes(FILES[kind])

    def takes(size_bytes: int) -> bool:
        room = DecodingRoom(60 * 40 * 30, wait_s=0)
        monkeypatch.setattr(pictures, "_ROOM", room)
        try:
            with room.taking(60 * 40 * 30 - size_bytes):
                inspect_picture(path)
        except BusyError:
            return False
        return True

    size_bytes = 60 * 40 * pixel_bytes
    assert (True, False) == (takes(size_bytes), takes(size_bytes - 1))


def test_a_picture_waits_for_memory() -> None:
    """It goes on as soon as another one is done."""
    room = DecodingRoom(10, wait_s=DEADLINE_S)
    taken = threading.Event()

    def take() -> None:
        with room.taking(5):
            taken.set()

    thread = threading.Thread(target=take)
    with room.taking(6):
        thread.start()
        wait_until(lambda: bool(room._changed._waiters))  # type: ignore[attr-defined]
        was_taken = taken.is_set()
    thread.join()

    assert (False, True) == (was_taken, taken.is_set())


def test_an_image_may_have_as_many_pixels_as_there_is_room_for(path: Path) -> None:
    """The bound itself is taken."""
    path.write_bytes(encoded(Image.new("1", (5_000, MAX_PIXELS // 5_000)), "PNG"))

    assert Picture("image/png", 5_000, 5_000) == inspect_picture(path)


def test_a_jpeg_has_a_bounded_number_of_passes(path: Path) -> None:
    """A few bytes for each walk over all pixels would keep a thread for hours."""
    data = FILES["progressive JPEG"]
    last = data.rindex(b"\xff\xda")

    refusal = _refusal(path, data[:last] + data[last:-2] * MAX_SCANS + b"\xff\xd9")

    assert "This JPEG has more than 30 passes." == str(refusal)


@pytest.mark.parametrize("kind", FILES)
def test_a_thumbnail_fits_and_carries_no_metadata(path: Path, kind: str) -> None:
    """A thumbnail keeps the proportions, and is a JPEG only where the file is one."""
    path.write_bytes(FILES[kind])

    drawn, media_type = draw_thumbnail(path, 30)
    image = Image.open(BytesIO(drawn))

    assert ("image/jpeg" if "JPEG" in kind else "image/png") == media_type
    assert ((30, 20), media_type) == (image.size, image.get_format_mimetype())


def test_a_thumbnail_stands_upright_and_forgets_where_it_was_taken(path: Path) -> None:
    """What EXIF says about the orientation is applied; all of EXIF is left out."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"  # turned by 90 degrees; maker
    path.write_bytes(picture("JPEG", exif=exif))

    image = Image.open(BytesIO(draw_thumbnail(path, 30)[0]))

    assert ((20, 30), {}) == (image.size, dict(image.getexif()))


def test_a_thumbnail_is_never_larger_than_its_image(path: Path) -> None:
    """Nothing is enlarged."""
    path.write_bytes(FILES["PNG"])

    assert (60, 40) == Image.open(BytesIO(draw_thumbnail(path, 1024)[0])).size


def test_transparency_stays(path: Path) -> None:
    """What shows through an image shows through its thumbnail."""
    path.write_bytes(encoded(Image.new("RGBA", (60, 40), (1, 2, 3, 0)), "WEBP", exact=True))

    assert "RGBA" == Image.open(BytesIO(draw_thumbnail(path, 30)[0])).mode
