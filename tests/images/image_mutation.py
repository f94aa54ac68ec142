"""Makes mutated images for the fuzzer.

Each image depends only on the seed and on its own number.
"""

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from PIL import Image

from image_files import TYPES, animation, encoded, with_webp_chunks

SIZE = (40, 30)
LIMIT_BYTES = 64 * 1024
_NUMBERS = (0, 1, 0x7F, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)
_TOKENS = (
    *(
        b"\xff\xd8",
        b"\xff\xd9",
        b"\xff\xda",
        b"\xff\xc0",
        b"\xff\xc2",
        b"\xff\xdb",
        b"\xff\xe1\0\2",
    ),
    *(b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT"),
    *(b"GIF89a", b"!\xf9\4", b"!\xfe", b",", b";", b"\0", b"\xff\xff\xff\xff"),
    *(b"RIFF", b"WEBP", b"VP8 ", b"VP8L", b"VP8X", b"ANMF", b"ANIM", b"ALPH", b"ICCP", b"EXIF"),
    *(b"II*\0\x08\0\0\0\xff\xff", b"MM\0*", b"ICC_PROFILE\0\1\1", b"../../../etc/passwd\0"),
)
_MODES = {"PNG": ("RGB", "L", "P", "RGBA", "LA", "1", "I;16"), "JPEG": ("RGB", "L", "CMYK")}
Mutation = Callable[[bytearray, random.Random], None]


@dataclass(frozen=True)
class Mutant:
    """A mutated image file, and the file name of its upload."""

    number: int
    kind: str
    data: bytes
    name: str


def make_mutant(seed: int, number: int) -> Mutant:
    """Return the mutated image with the given number."""
    dice = random.Random(seed * 1_000_000_007 + number)
    kind, whole = dice.choice(whole_files())
    data = bytearray(whole)
    for _ in range(dice.choice((0, 1, 1, 2, 3, 5, 8))):
        dice.choice(_MUTATIONS)(data, dice)
    name = dice.choice(("../../a.png", "/etc/passwd", "C:\\a.png", "a\0b", "a" * 300, "é", ""))
    return Mutant(number, kind, bytes(data[:LIMIT_BYTES]), name)


@cache
def whole_files() -> list[tuple[str, bytes]]:
    """Return the format and content of valid files of all formats, with metadata."""
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    dice = random.Random(0)
    colors = Image.frombytes("RGB", SIZE, dice.randbytes(3 * SIZE[0] * SIZE[1]))
    for kind in TYPES:
        options = {} if kind == "GIF" else {"exif": exif, "icc_profile": bytes(200)}
        for mode in _MODES.get(kind, ("RGB",)):
            image = colors.convert("L").convert(mode) if mode == "I;16" else colors.convert(mode)
            files.append((kind, encoded(image, kind, **options)))
    files += [(kind, animation(kind)) for kind in ("PNG", "WEBP", "GIF")]
    files.append(("JPEG", encoded(colors, "JPEG", progressive=True)))
    files.append(("GIF", encoded(colors.convert("P"), "GIF", transparency=0, interlace=1)))
    files.append(("WEBP", encoded(colors, "WEBP", lossless=True)))
    files.append(("WEBP", with_webp_chunks(encoded(colors, "WEBP"), b"XYZ \0\0\0\0")))
    return files


def _flip(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.choice((1, 2, 10))):
        data[_place(data, dice)] = dice.randrange(256)


def _cut(data: bytearray, dice: random.Random) -> None:
    start = _place(data, dice)
    del data[start : start + dice.choice((1, 2, 4, 100, len(data)))]


def _repeat(data: bytearray, dice: random.Random) -> None:
    start = _place(data, dice)
    part = data[start : start + dice.choice((1, 4, 20, 500))]
    data[start:start] = part * dice.choice((1, 2, 50, 1000))


def _insert(data: bytearray, dice: random.Random) -> None:
    start = _place(data, dice)
    data[start:start] = dice.choice(_TOKENS)


def _number(data: bytearray, dice: random.Random) -> None:
    start, layout = _place(data, dice), dice.choice(("<H", ">H", "<I", ">I"))
    number = dice.choice(_NUMBERS) % (1 << 8 * struct.calcsize(layout))
    data[start : start + struct.calcsize(layout)] = struct.pack(layout, number)


def _splice(data: bytearray, dice: random.Random) -> None:
    _, other = dice.choice(whole_files())
    data[_place(data, dice) :] = other[dice.randrange(len(other)) :]


def _place(data: bytearray, dice: random.Random) -> int:
    """Return a position in the data, half of the time near the beginning."""
    if not data:
        data.append(0)
    return dice.randrange(min(len(data), 100) if dice.random() < 0.5 else len(data))


_MUTATIONS: tuple[Mutation, ...] = (_flip, _cut, _repeat, _insert, _number, _splice)
