"""The image repository of one tenant: rows in its database, bytes in its folder.

Free of Flask: a session and a folder come in as arguments. A file is there before its row and
goes after it, both under the lock of its content; so a crash leaves a file too many at worst, which
`checks.py` finds. No transaction is open while bytes come in, go out or are decoded.
"""

import base64
import re
import secrets
import time
import unicodedata
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from sqlalchemy import BigInteger, MetaData, String, delete, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from .errors import (
    BadRequestError,
    BrokenImageError,
    BusyError,
    ImageError,
    MissingContentError,
    UnknownImageError,
    WrongTypeError,
)
from .files import ContentFolder, Shard
from .pictures import EXTENSIONS, THUMBNAIL_PX, draw_thumbnail, inspect_picture

__all__ = [
    "PAGE_LIMITS",
    "THUMBNAIL_PX",
    "BadRequestError",
    "Base",
    "BrokenImageError",
    "BusyError",
    "ContentFolder",
    "ImageError",
    "ImageModel",
    "ImageRepoModel",
    "MissingContentError",
    "Shard",
    "UnknownImageError",
    "WrongTypeError",
    "draw_thumbnail",
]

NAME_CHARACTERS = 255
"""What file systems allow, so no file's own name is longer."""

PAGE_LIMITS = range(1, 101)
"""How many images one page may have: 100 are about 30 kB."""


class Base(DeclarativeBase):
    """The tables of this endpoint."""

    metadata = MetaData(naming_convention={"ix": "ix_%(table_name)s_%(column_0_name)s",
                                           "pk": "pk_%(table_name)s"})  # fmt: skip


class ImageModel(Base):
    """One image."""

    __tablename__ = "images"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_CHARACTERS))
    media_type: Mapped[str] = mapped_column(String(16))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    width: Mapped[int]
    height: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64), index=True)

    @property
    def created(self) -> datetime:
        """When it was uploaded; its id says so, to the millisecond."""
        return datetime.fromtimestamp((self.id.int >> 80) / 1000, UTC)

    def data(self) -> dict[str, Any]:
        """Return what clients are told about it."""
        return {
            "id": str(self.id),
            "name": self.name,
            "media_type": self.media_type,
            "size_bytes": self.size_bytes,
            "width": self.width,
            "height": self.height,
            "sha256": self.sha256,
            "created": self.created.isoformat(timespec="milliseconds"),
        }


class ImageRepoModel:
    """The images of one tenant. Lives as long as its session; keeps nothing itself.

    Args:
        session: on the tenant's database; no transaction is open on it.
        folder: where the bytes are; made when the first image comes.
    """

    def __init__(self, session: Session, folder: Path) -> None:
        self._session = session
        self._files = ContentFolder(folder)

    def add(self, body: IO[bytes], name: str) -> ImageModel:
        """Store the image that a stream holds. The same bytes twice are two images, one file.

        Raises:
            BadRequestError: the name is too long.
            WrongTypeError: it is no JPEG, PNG, WebP or GIF.
            BrokenImageError: it is cut, damaged, or too big to decode.
            BusyError: others are decoded all the time.
        """
        name = _clean_name(name)
        with self._files.receiving(body) as received:
            picture = inspect_picture(received.path)
            image = ImageModel(
                id=_new_id(),
                name=name or f"image.{EXTENSIONS[picture.media_type]}",
                media_type=picture.media_type,
                size_bytes=received.size_bytes,
                width=picture.width,
                height=picture.height,
                sha256=received.sha256,
            )
            with self._files.locked(received.sha256) as shard:
                shard.keep(received)
                with self._session.begin():
                    self._session.add(image)
        return image

    def page(self, limit: int, cursor: str | None) -> tuple[list[ImageModel], str | None]:
        """Return images, newest first, and the cursor of the next page if there is one.

        A page goes on where the last one ended, whatever was added or deleted meanwhile.

        Raises:
            BadRequestError: the cursor is none.
        """
        query = select(ImageModel).order_by(ImageModel.id.desc()).limit(limit + 1)
        if cursor is not None:
            query = query.where(ImageModel.id < _parse_cursor(cursor))
        with self._session.begin():
            images = list(self._session.scalars(query))
        has_more = len(images) > limit
        return images[:limit], _cursor_after(images[limit - 1]) if has_more else None

    def get(self, image_id: str) -> ImageModel:
        """Return one image.

        Raises:
            UnknownImageError: there is none with this id.
        """
        key = _parse_id(image_id)
        with self._session.begin():
            image = self._session.get(ImageModel, key, populate_existing=True)
        if image is None:
            raise UnknownImageError
        return image

    @contextmanager
    def content(self, image_id: str) -> Iterator[tuple[ImageModel, Path]]:
        """Yield one image and the file with its bytes, to be opened inside the block.

        Raises:
            UnknownImageError: there is none with this id, or it was deleted before the file was
                opened.
            MissingContentError: its bytes are gone.
        """
        image = self.get(image_id)
        try:
            yield image, self._files.path_of(image.sha256)
        except FileNotFoundError as error:
            self.get(image_id)
            raise MissingContentError from error

    def delete(self, image_id: str) -> None:
        """Delete one image; its bytes go with the last image that has them.

        Raises:
            UnknownImageError: there is none with this id.
        """
        image = self.get(image_id)
        with self._files.locked(image.sha256) as shard:
            with self._session.begin():
                gone = delete(ImageModel).where(ImageModel.id == image.id)
                found = self._session.execute(gone.returning(ImageModel.id)).first()
                others = select(ImageModel.id).where(ImageModel.sha256 == image.sha256).limit(1)
                is_last = self._session.execute(others).first() is None
            if is_last:
                shard.remove(image.sha256)
        if found is None:
            raise UnknownImageError


def _new_id() -> uuid.UUID:
    """Return a UUID of version 7: its order is the order in time, its rest cannot be guessed.

    So one index lists the newest first, and an id tells when, but not how many there are. The
    bits below the milliseconds are its fraction (RFC 9562 §6.2, method 3).
    """
    milliseconds, rest_ns = divmod(time.time_ns(), 1_000_000)
    fraction = (rest_ns << 12) // 1_000_000
    bits = milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | secrets.randbits(62)
    return uuid.UUID(int=bits)


def _parse_id(text: str) -> uuid.UUID:
    try:
        parsed = uuid.UUID(text)
    except ValueError:
        raise UnknownImageError from None
    if str(parsed) != text:  # other spellings of the same number name nothing
        raise UnknownImageError
    return parsed


def _cursor_after(image: ImageModel) -> str:
    return base64.urlsafe_b64encode(image.id.bytes).decode().rstrip("=")


def _parse_cursor(text: str) -> uuid.UUID:
    try:
        position = base64.b64decode(f"{text}==", b"-_", validate=True)
        return uuid.UUID(bytes=position)
    except ValueError:
        raise BadRequestError("This cursor is none that a list gave as 'next'.") from None


def _clean_name(name: str) -> str:
    """Return the last part of a path, without characters that steer a terminal or the text around.

    Raises:
        BadRequestError: it is too long.
    """
    last = re.split(r"[/\\]", name)[-1]
    cleaned = "".join(one for one in last if _is_plain(one)).strip()
    if len(cleaned) > NAME_CHARACTERS:
        raise BadRequestError(f"The name is longer than {NAME_CHARACTERS} characters.")
    return cleaned


def _is_plain(character: str) -> bool:
    is_text = unicodedata.category(character) not in {"Cc", "Cs", "Zl", "Zp"}
    return is_text and character not in _DIRECTION


_DIRECTION = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Marks that make text run the other way: `gpj.exe` would look like `exe.jpg`."""
