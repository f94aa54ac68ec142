"""Creates image files for tests. The images show noise, which does not compress well."""

from io import BytesIO

from PIL import Image

TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}


def picture(kind: str = "PNG", size: tuple[int, int] = (60, 40), **options: object) -> bytes:
    """Return an image file that differs from all others."""
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
