"""Creates image files for tests. The images show noise, which does not compress well."""

import struct
import zlib
from io import BytesIO

from PIL import Image

TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}


def picture(kind: str = "PNG", size: tuple[int, int] = (60, 40), **options: object) -> bytes:
    """Return an image file that differs from all other files."""
    return encoded(Image.effect_noise(size, 80).convert("RGB"), kind, **options)


def animation(kind: str) -> bytes:
    """Return an image file of three frames."""
    frames = [Image.effect_noise((60, 40), 80).convert("P") for _ in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return an image in the given format."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: bytes, *chunks: bytes, depth: int = 8, color: int = 0, width: int = 2) -> bytes:
    """Return a PNG of one row with the given bytes and additional chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, 1, depth, color, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + rows))
    parts = (chunk(b"IHDR", header), *chunks, pixels, chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def with_webp_chunks(data: bytes, *chunks: bytes) -> bytes:
    """Return a WebP with additional chunks at its end."""
    body = data[8:] + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body
