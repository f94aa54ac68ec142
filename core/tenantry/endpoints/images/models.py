"""The image repository of one tenant: rows in the tenant's database, content files in a folder.

`models` does not import Flask: the session, the folder and the memory for decoding are arguments. A
file is written before its row, and removed after its row, under the lock of the file's shard. So a
crash leaves at worst a file without a row, which `consistency.py` finds. No transaction is open
while bytes are received, sent or decoded.

`models` re-exports the names that `resources.py`, `commands.py` and `consistency.py` need. All
apps share `models` and the modules that `models` imports; a private import of such a module would
create a second copy of the module's classes.
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

from tenantry.files.memory_budget import MemoryBudget

from .content_store import ContentStore, Shard
from .decoding import THUMBNAIL_PX, draw_thumbnail, inspect_image
from .errors import (
    BadRequestError,
    BrokenImageError,
    BusyError,
    ImageError,
    MissingContentError,
    UnknownImageError,
    WrongTypeError,
)

__all__ = [
    "PAGE_LIMITS",
    "THUMBNAIL_PX",
    "BadRequestError",
    "Base",
    "BrokenImageError",
    "BusyError",
    "ContentStore",
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
"""Maximum length of an image's name: the limit of file names in most file systems."""

PAGE_LIMITS = range(1, 101)
"""Allowed numbers of images in a page of the list. A page of 100 images has about 30 kB."""

_DIRECTION_MARKS = frozenset(
    "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
"""Marks that change the direction of text. A direction mark can make `gpj.exe` look like
`exe.jpg`."""

_CONTROL_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories that a name cannot contain: control characters, surrogates, line and paragraph
separators."""


class Base(DeclarativeBase):
    """The base class of the tables of the endpoint `images`."""

    metadata = MetaData(
        naming_convention={"ix": "ix_%(table_name)s_%(column_0_name)s", "pk": "pk_%(table_name)s"}
    )


class ImageModel(Base):
    """One image in the repository of a tenant."""

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
        """The time of the upload, in milliseconds, from the first 48 bits of the image's id."""
        return datetime.fromtimestamp(int.from_bytes(self.id.bytes[:6], "big") / 1000, UTC)

    def data(self) -> dict[str, Any]:
        """Return the image's record that clients get as JSON."""
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
    """The images of one tenant. Lives as long as the session, and has no other state.

    Args:
        session: a session of the tenant's database, without an open transaction.
        folder: the folder of the image files, which the first upload creates.
    """

    def __init__(self, session: Session, folder: Path) -> None:
        self._session = session
        self._store = ContentStore(folder)

    def add(self, body: IO[bytes], name: str, memory: MemoryBudget) -> ImageModel:
        """Store an image from a stream. Two equal uploads become two images that share one file.

        Raises:
            BadRequestError: the image's name is too long.
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
        """Return a page of images, newest first, and the cursor of the next page, if any.

        A page continues after the last image of the page before, even if images were added or
        deleted between the requests.

        Raises:
            BadRequestError: the cursor is invalid.
        """
        query = select(ImageModel).order_by(ImageModel.id.desc()).limit(limit + 1)
        if cursor is not None:
            query = query.where(ImageModel.id < _parse_cursor(cursor))
        with self._session.begin():
            images = list(self._session.scalars(query))
        has_more = len(images) > limit
        return images[:limit], _cursor_after(images[limit - 1]) if has_more else None

    def get(self, image_id: str) -> ImageModel:
        """Return the image with the given id.

        Raises:
            UnknownImageError: no image has the given id.
        """
        key = _parse_id(image_id)
        with self._session.begin():
            image = self._session.get(ImageModel, key, populate_existing=True)
        if image is None:
            raise UnknownImageError
        return image

    @contextmanager
    def content(self, image_id: str) -> Iterator[tuple[ImageModel, Path]]:
        """Yield one image and the path of the image's file, which the block opens.

        Raises:
            UnknownImageError: no image has the given id, or the image was deleted before the file
                was opened.
            MissingContentError: the image exists, but the image's file does not.
        """
        image = self.get(image_id)
        try:
            yield image, self._store.path_of(image.sha256)
        except FileNotFoundError as error:
            self.get(image_id)
            raise MissingContentError from error

    def delete(self, image_id: str) -> None:
        """Delete one image, and the image's file if no other image has the same content.

        Raises:
            UnknownImageError: no image has the given id.
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
    """Return a UUID version 7, which sorts by time and has a random part that cannot be guessed.

    Because ids sort by time, the primary key lists the newest images first, and an id does not
    reveal the number of images. The bits after the milliseconds are the fraction of a millisecond
    (RFC 9562 §6.2, method 3).
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
    if str(parsed) != text:  # Only one spelling of an id is valid, so that each image has one URL.
        raise UnknownImageError
    return parsed


def _cursor_after(image: ImageModel) -> str:
    return base64.urlsafe_b64encode(image.id.bytes).decode().rstrip("=")


def _parse_cursor(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(bytes=base64.b64decode(f"{text}==", b"-_", validate=True))
    except ValueError:
        raise BadRequestError("Unknown cursor. Use the `next` value of a previous list.") from None


def _clean_name(name: str) -> str:
    """Return the last part of a path, without control characters and direction marks.

    Raises:
        BadRequestError: the name is too long.
    """
    last = re.split(r"[/\\]", name)[-1]
    cleaned = "".join(character for character in last if _is_allowed(character)).strip()
    if len(cleaned) > NAME_CHARACTERS:
        raise BadRequestError(f"The name is longer than {NAME_CHARACTERS} characters.")
    return cleaned


def _is_allowed(character: str) -> bool:
    is_control = unicodedata.category(character) in _CONTROL_CATEGORIES
    return not is_control and character not in _DIRECTION_MARKS
