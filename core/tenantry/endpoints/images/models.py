"""Stores the images of a tenant: rows in the tenant's database, and files in a folder.

This module does not import Flask. A file is written before its row, and removed after its row,
while the folder of the file is locked. Therefore, a crash can leave a file without a row, which
`consistency.py` finds, but no row without a file. While data is received, sent or decoded, no
transaction is open.

All apps share this module and the modules that it imports. Each app has its own copy of
`resources.py`, `commands.py` and `consistency.py`.
"""

__shared__ = True

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

from tenantry.files.memory_budget import MemoryBudget

from .content_store import SHARD_DIGITS, ContentStore, Shard, is_hash, is_shard_name
from .decoding import THUMBNAIL_PX, THUMBNAIL_VERSION, draw_thumbnail, inspect_image
from .errors import (
    BrokenImageError,
    BusyError,
    ImageError,
    InvalidHashError,
    InvalidInputError,
    MissingContentError,
    UnknownImageError,
    WrongTypeError,
)

__all__ = [
    "PAGE_LIMITS",
    "SHARD_DIGITS",
    "THUMBNAIL_PX",
    "THUMBNAIL_VERSION",
    "Base",
    "BrokenImageError",
    "BusyError",
    "ContentStore",
    "ImageError",
    "ImageModel",
    "ImageRepoModel",
    "InvalidHashError",
    "InvalidInputError",
    "MissingContentError",
    "Shard",
    "UnknownImageError",
    "WrongTypeError",
    "draw_thumbnail",
    "is_hash",
    "is_shard_name",
]

NAME_CHARACTERS = 255
"""Maximum length of an image's name, which is also the limit of most file systems."""

PAGE_LIMITS = range(1, 101)
"""Allowed numbers of images per page. A page of 100 images has about 30 kB."""

_DIRECTION_MARKS = frozenset(
    "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
"""Characters that change the direction of text, which can make `gpj.exe` look like `exe.jpg`."""

_CONTROL_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories that are removed from names: control characters, surrogates, and line and
paragraph separators."""


class Base(DeclarativeBase):
    """The declarative base of the endpoint's tables."""

    metadata = MetaData(
        naming_convention={"ix": "ix_%(table_name)s_%(column_0_name)s", "pk": "pk_%(table_name)s"}
    )


class ImageModel(Base):
    """An image of a tenant."""

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
        """The time of the upload, which is in the first 48 bits of the image's ID."""
        return datetime.fromtimestamp(int.from_bytes(self.id.bytes[:6], "big") / 1000, UTC)

    def data(self) -> dict[str, Any]:
        """Return the description of the image that clients get as JSON."""
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
    """The images of one tenant. Create a new instance for each session.

    Args:
        session: a session of the tenant's database, without an open transaction.
        folder: the folder of the image files, which the first upload creates.
    """

    def __init__(self, session: Session, folder: Path) -> None:
        self._session = session
        self._store = ContentStore(folder)

    def add(self, body: IO[bytes], name: str, memory: MemoryBudget) -> ImageModel:
        """Store an image. If an image is uploaded twice, both entries share one file.

        Raises:
            InvalidInputError: the name is too long.
            WrongTypeError: the upload is not a JPEG, PNG, WebP or GIF.
            BrokenImageError: the image is truncated, damaged, or too large to decode.
            BusyError: other images use all memory for decoding.
        """
        name = _clean_name(name)
        with self._store.receiving(body) as received:
            inspection = inspect_image(received.path, memory)
            image = ImageModel(
                id=_new_id(),
                name=name or f"image.{inspection.format.extension}",
                media_type=inspection.format.media_type,
                size_bytes=received.size_bytes,
                width=inspection.width,
                height=inspection.height,
                sha256=received.sha256,
            )
            with self._store.locked(received.sha256) as shard:
                shard.keep(received)
                with self._session.begin():
                    self._session.add(image)
        return image

    def page(self, limit: int, cursor: str | None) -> tuple[list[ImageModel], str | None]:
        """Return a page of images, with the newest first, and the cursor of the next page or None.

        Each page continues after the last image of the previous page, even if images have been
        added or deleted in the meantime.

        Raises:
            InvalidInputError: the cursor is invalid.
        """
        query = select(ImageModel).order_by(ImageModel.id.desc()).limit(limit + 1)
        if cursor is not None:
            query = query.where(ImageModel.id < _parse_cursor(cursor))
        with self._session.begin():
            images = list(self._session.scalars(query))
        has_more = len(images) > limit
        return images[:limit], _cursor_after(images[limit - 1]) if has_more else None

    def get(self, image_id: str) -> ImageModel:
        """Return the image with the given ID.

        Raises:
            UnknownImageError: no image has the given ID.
        """
        key = _parse_id(image_id)
        with self._session.begin():
            image = self._session.get(ImageModel, key, populate_existing=True)
        if image is None:
            raise UnknownImageError
        return image

    @contextmanager
    def content(self, image_id: str) -> Iterator[tuple[ImageModel, Path]]:
        """Yield an image and the path of its file, which the `with` block can open.

        Raises:
            UnknownImageError: no image has this ID, or the image was deleted before the file was
                opened.
            InvalidHashError: the row of the image has no valid hash.
            MissingContentError: the image exists, but its file does not.
        """
        image = self.get(image_id)
        try:
            yield image, self._store.path_of(image.sha256)
        except FileNotFoundError as error:
            self.get(image_id)
            raise MissingContentError from error

    def delete(self, image_id: str) -> None:
        """Delete an image, and its file unless another image has the same content.

        Raises:
            UnknownImageError: no image has the given ID.
        """
        image = self.get(image_id)
        with self._store.locked(image.sha256) as shard:
            with self._session.begin():
                this = delete(ImageModel).where(ImageModel.id == image.id)
                deleted = self._session.execute(this.returning(ImageModel.id)).first()
                others = select(ImageModel.id).where(ImageModel.sha256 == image.sha256).limit(1)
                is_last = self._session.execute(others).first() is None
            if is_last:
                shard.remove(image.sha256)
        if deleted is None:
            raise UnknownImageError


def _new_id() -> uuid.UUID:
    """Return a UUID of version 7, which sorts by time and cannot be guessed.

    Because the IDs of images sort by time, the primary key can list the newest images first. An ID
    does not reveal the number of images. The bits after the milliseconds are a fraction of a
    millisecond (RFC 9562 §6.2, method 3).
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
    if str(parsed) != text:  # only one spelling is valid, so each image has one URL
        raise UnknownImageError
    return parsed


def _cursor_after(image: ImageModel) -> str:
    return base64.urlsafe_b64encode(image.id.bytes).decode().rstrip("=")


def _parse_cursor(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(bytes=base64.b64decode(f"{text}==", b"-_", validate=True))
    except ValueError:
        raise InvalidInputError(
            "Unknown cursor. Use the `next` value of a previous list."
        ) from None


def _clean_name(name: str) -> str:
    """Return the last part of a path, without characters that a name must not contain.

    Raises:
        InvalidInputError: the name is too long.
    """
    last = re.split(r"[/\\]", name)[-1]
    cleaned = "".join(character for character in last if _is_allowed(character)).strip()
    if len(cleaned) > NAME_CHARACTERS:
        raise InvalidInputError(f"The name is longer than {NAME_CHARACTERS} characters.")
    return cleaned if cleaned.strip(".") else ""


def _is_allowed(character: str) -> bool:
    is_control = unicodedata.category(character) in _CONTROL_CATEGORIES
    return not is_control and character not in _DIRECTION_MARKS
