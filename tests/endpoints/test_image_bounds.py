"""The content of an image file is checked against limits before Pillow opens the file."""

import struct
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from image_files import chunk, encoded, picture, png, with_webp_chunks
from tenantry.endpoints.images import bounds
from tenantry.endpoints.images.decoding import Inspection, draw_thumbnail, inspect_image
from tenantry.endpoints.images.errors import BrokenImageError
from tenantry.endpoints.images.formats import FORMATS
from tenantry.files.memory_budget import DECODING_BYTES, MemoryBudget

FILE_BYTES = 16 * 1024 * 1024
SIZE = (60, 40)
MEMORY = MemoryBudget(DECODING_BYTES, wait_s=0)
JPEG, PNG, GIF, WEBP = (picture(kind, SIZE) for kind in ("JPEG", "PNG", "GIF", "WEBP"))
PROFILE = b"name\0\0" + zlib.compress(bytes(bounds.MAX_PROFILE_BYTES + 1))
TINY_FRAME = b"," + bytes(4) + b"\1\0\1\0\0\2\2\x4c\1\0"


def many(part: bytes) -> bytes:
    """Return as many copies of some bytes as a file of 16 MiB can contain."""
    return part * (FILE_BYTES // len(part))


def in_jpeg(parts: bytes) -> bytes:
    """Return a JPEG with some bytes before its first segment."""
    return JPEG[:2] + parts + JPEG[2:]


def in_gif(parts: bytes) -> bytes:
    """Return a GIF with some bytes after its first frame."""
    return GIF[:-1] + parts + b";"


TOO_MUCH = {
    "empty segments": (in_jpeg(many(b"\xff\xe3\0\2")), "2,000 segments"),
    "tables": (in_jpeg(many(b"\xff\xdb\0\x43\0" + bytes(64))), "65,536 bytes of tables"),
    "segments": (in_jpeg(many(b"\xff\xe1\xff\xff" + bytes(65_533))), "8,388,608 bytes of metadata"),
    "profile parts": (
        in_jpeg(b"".join(b"\xff\xe2\xff\xffICC_PROFILE\0%c\xff" % number + bytes(65_519)
                         for number in range(70))),
        "4,194,304 bytes",
    ),
    "empty chunks": (PNG[:33] + many(chunk(b"tEXt", b"")) + PNG[33:], "20,000 chunks"),
    "text": (PNG[:33] + many(chunk(b"tEXt", bytes(9999))) + PNG[33:], "8,388,608 bytes"),
    "profile bomb": (PNG[:33] + chunk(b"iCCP", PROFILE) + PNG[33:], "4,194,304 bytes"),
    "png frames": (PNG[:33] + chunk(b"fcTL", bytes(26)) * 10_001 + PNG[33:], "10,000 frames"),
    "comment blocks": (in_gif(b"!\xfe" + many(b"\1a") + b"\0"), "200,000 blocks"),
    "comments": (in_gif(b"!\xfe" + many(b"\xff" + bytes(255)) + b"\0"), "8,388,608 bytes"),
    "gif frames": (in_gif(many(TINY_FRAME)), "10,000 frames"),
    "webp chunks": (with_webp_chunks(WEBP, many(b"XYZ \0\0\0\0")), "20,000 chunks"),
    "webp text": (with_webp_chunks(WEBP, b"XMP ", struct.pack("<I", 9_000_000), bytes(9_000_000)),
                  "8,388,608 bytes"),
    "one row": (png(b"", width=25_000_000), "the maximum side is 65,535"),
}  # fmt: skip
"""Files that exceed a limit, and the limit that the error names."""

AS_IN_BROWSERS = {
    "large text": png(b"\1\2", chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 * 1024 * 1024)))),
    "much text": png(b"\1\2", *[chunk(b"tEXt", b"a\0" + bytes(1000))] * 2000),
    "wrong checksum of text": png(b"\1\2", chunk(b"tEXt", b"a\0b")[:-1] + b"?"),
    "wrong transparency": png(b"\1\2", chunk(b"tRNS", b"?")),
    "damaged profile": png(b"\1\2", chunk(b"iCCP", b"a\0\0?")),
    "two profiles": png(b"\1\2", *[chunk(b"iCCP", b"a\0\0" + zlib.compress(b"?"))] * 2),
    "damaged EXIF": png(b"\1\2", chunk(b"eXIf", b"?")),
    "PNG without end": png(b"\1\2")[:-12],
    "GIF without trailer": GIF[:-1],
    "GIF with other bytes instead of a trailer": GIF[:-1] + b"PK\3\4",
    "GIF without screen size": GIF[:6] + bytes(4) + GIF[10:],
    "JPEG with fill bytes": in_jpeg(b"\xff\xe3\0\2" + b"\xff" * 9),
    "JPEG with bytes between segments": in_jpeg(b"\xff\xe3\0\2between"),
    "JPEG with a damaged profile": in_jpeg(b"\xff\xe2\0\x0eICC_PROFILE\0"),
    "WebP with unknown chunks": with_webp_chunks(picture("WEBP", exif=b"?"), b"XYZ \0\0\0\0"),
    **{f"{kind} with damaged EXIF": picture(kind, exif=b"Exif\0\0?") for kind in ("JPEG", "WEBP")},
}


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_a_file_with_too_much_of_something_is_rejected(tmp_path: Path, kind: str) -> None:
    """A file that exceeds a limit is rejected with the limit, and takes little processor time."""
    data, bound = TOO_MUCH[kind]
    path = tmp_path / "file"
    path.write_bytes(data)

    started_at = time.process_time()
    with pytest.raises(BrokenImageError) as caught:
        inspect_image(path, MEMORY)
    took_s = time.process_time() - started_at

    assert bound in str(caught.value)
    assert took_s < 0.5


@pytest.mark.parametrize("kind", AS_IN_BROWSERS)
def test_what_browsers_show_is_accepted(tmp_path: Path, kind: str) -> None:
    """An image is shown despite parts that browsers ignore, and despite a missing end."""
    path = tmp_path / "file"
    path.write_bytes(AS_IN_BROWSERS[kind])

    inspection = inspect_image(path, MEMORY)

    assert inspection.width > 0
    assert draw_thumbnail(path, 16, MEMORY)[0]


def test_pixels_beyond_the_image_are_not_read(tmp_path: Path) -> None:
    """A PNG with 1,000 times as many compressed pixels as needed takes little processor time."""
    path = tmp_path / "file"
    pixels = zlib.compress(bytes(2**28), 9)
    path.write_bytes(png(b"\1\2", chunk(b"IDAT", pixels)))

    started_at = time.process_time()
    inspect_image(path, MEMORY)

    assert time.process_time() - started_at < 0.5


def test_a_gif_has_the_size_of_its_first_frame(tmp_path: Path) -> None:
    """If the first frame of a GIF is larger than its screen, the frame's size counts."""
    path = tmp_path / "file"
    path.write_bytes(GIF[:6] + struct.pack("<HH", 1, 1) + GIF[10:])

    assert Inspection(FORMATS["image/gif"], *SIZE) == inspect_image(path, MEMORY)


def test_the_second_frame_is_not_opened(tmp_path: Path) -> None:
    """An animation is shown as its first frame, even if a later frame has no pixels."""
    path = tmp_path / "file"
    frames = [Image.new("P", SIZE, color) for color in (1, 2)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    path.write_bytes(data[:-1] + b"," + bytes(4) + struct.pack("<HH", 9, 9) + b"\0\2\0;")

    assert Inspection(FORMATS["image/gif"], *SIZE) == inspect_image(path, MEMORY)
