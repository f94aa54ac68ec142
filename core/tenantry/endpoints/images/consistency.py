"""Compares the rows of images in the database with the image files, and fixes differences.

This module does not import Flask. Clients can upload and delete images during a check, because the
check locks one folder of files (a shard) at a time.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from .models import (
    SHARD_DIGITS,
    ContentStore,
    ImageModel,
    MissingContentError,
    is_hash,
    is_shard_name,
)

MIN_AGE_S = 3600.0
"""Minimum age in seconds of an abandoned file, which has no row. An upload takes less time."""


@dataclass(frozen=True)
class Inconsistency:
    """A difference between the image rows in the database and the image files."""

    description: str
    subject: str
    """The name of the file, or the ID of the image."""
    is_fixed: bool = False


class _Row(NamedTuple):
    id: uuid.UUID
    sha256: str
    size_bytes: int


class ImageConsistencyModel:
    """Compares the rows of images in a tenant's database with the files in the tenant's folder.

    Args:
        session: a session of the tenant's database, without an open transaction.
        folder: the folder of the image files.
        fix: whether to remove files without a row, and rows without a file. A damaged file is kept,
            because a new upload of the same image can replace the damaged file.
        min_age_s: the minimum age of a file in seconds. Newer files are ignored.
        is_thorough: whether to compare the hashes of all files, and not only their sizes.
    """

    def __init__(
        self,
        session: Session,
        folder: Path,
        *,
        fix: bool,
        min_age_s: float = MIN_AGE_S,
        is_thorough: bool = False,
    ) -> None:
        self._session = session
        self._store = ContentStore(folder)
        self._fix = fix
        self._min_age_s = min_age_s
        self._is_thorough = is_thorough

    def inconsistencies(self) -> Iterator[Inconsistency]:
        """Yield each difference between rows and files.

        If `fix` is set, a yielded difference is already fixed.

        Raises:
            MissingContentError: the database has images, but the folder has no files. A volume is
                probably not mounted, so nothing is removed.
        """
        shards_with_rows = select(func.substr(ImageModel.sha256, 1, SHARD_DIGITS)).distinct()
        with self._session.begin():
            with_rows = set(self._session.scalars(shards_with_rows))
        if with_rows and self._store.is_empty():
            raise MissingContentError
        for path in self._store.abandoned_uploads(self._min_age_s):
            yield self._file_without_row("abandoned upload", path)
        names = set(filter(is_shard_name, with_rows))
        for start in sorted(with_rows - names):
            yield from self._invalid(start)
        for digits in sorted(names.union(self._store.shards())):
            yield from self._compare(digits)
            if self._is_thorough:
                yield from self._altered(digits)

    def _invalid(self, start: str) -> list[Inconsistency]:
        """Find the rows whose hash begins with characters that no valid hash contains."""
        with self._session.begin():
            return list(self._wrong_rows(self._rows(start), {}))

    def _compare(self, digits: str) -> list[Inconsistency]:
        with self._store.locked(digits) as shard, self._session.begin():
            rows = self._rows(digits)
            hashes = {row.sha256 for row in rows}
            orphans = [path for path in shard.older(self._min_age_s) if path.name not in hashes]
            found = list(self._wrong_rows(rows, shard.sizes()))
            found += [self._file_without_row("file without an image", path) for path in orphans]
        return found

    def _wrong_rows(self, rows: list[_Row], sizes: dict[str, int]) -> Iterator[Inconsistency]:
        for row in rows:
            if row.sha256 not in sizes:
                if self._fix:
                    self._session.execute(delete(ImageModel).where(ImageModel.id == row.id))
                yield Inconsistency("image without a file", str(row.id), self._fix)
            elif sizes[row.sha256] != row.size_bytes:
                yield Inconsistency("image with a damaged file", str(row.id))

    def _altered(self, digits: str) -> list[Inconsistency]:
        """Find files with the correct size but a wrong hash."""
        with self._session.begin():
            rows = self._rows(digits)
        content = {(row.sha256, row.size_bytes) for row in rows if is_hash(row.sha256)}
        suspects = {item for item in content if not self._store.is_intact(*item)}
        if not suspects:
            return []
        # Uploads may have replaced damaged files before the lock was taken.
        with self._store.locked(digits) as shard:
            present = suspects.intersection(shard.sizes().items())
            altered = {
                sha256 for sha256, size in present if not self._store.is_intact(sha256, size)
            }
        return [
            Inconsistency("image with a damaged file", str(row.id))
            for row in rows
            if row.sha256 in altered
        ]

    def _file_without_row(self, description: str, path: Path) -> Inconsistency:
        if self._fix:
            path.unlink(missing_ok=True)
        return Inconsistency(description, path.name, self._fix)

    def _rows(self, start: str) -> list[_Row]:
        """Return the rows whose hash begins with the given characters."""
        columns = select(ImageModel.id, ImageModel.sha256, ImageModel.size_bytes)
        begins = func.substr(ImageModel.sha256, 1, SHARD_DIGITS) == start
        rows = self._session.execute(columns.where(begins))
        return [_Row(image_id, sha256, size_bytes) for image_id, sha256, size_bytes in rows]
