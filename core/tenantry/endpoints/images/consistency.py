"""Compares the rows and the files of the image repository, and fixes differences.

`consistency` does not import Flask. Uploads and deletions may continue during a check, because the
check of a shard holds the shard's lock.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from .models import ContentStore, ImageModel, MissingContentError, Shard

MIN_AGE_S = 3600.0
"""Age from which a file without a database row counts as abandoned. No upload takes an hour."""


@dataclass(frozen=True)
class Inconsistency:
    """One difference between database rows and image files."""

    description: str
    subject: str
    """The name of the file or the id of the image."""
    is_fixed: bool = False


class _Row(NamedTuple):
    id: uuid.UUID
    sha256: str
    size_bytes: int


class ImageConsistencyModel:
    """Compares the image rows in one tenant's database with the files in the tenant's folder.

    Args:
        session: a session of the tenant's database, without an open transaction.
        folder: the folder of the image files.
        fix: remove files without a row, and rows without a file. A damaged file stays, because a
            backup or a new upload of the same image can replace the file.
        min_age_s: ignore files younger than `min_age_s` seconds.
        is_thorough: compare the hashes of all files instead of only the files' sizes.
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
        """Yield each inconsistency, shard by shard. If `fix` is set, remove the row or file first.

        Raises:
            MissingContentError: the database has image rows, but the folder has no files. Probably
                a volume is not mounted, so the check fixes nothing.
        """
        shards_with_rows = select(func.substr(ImageModel.sha256, 1, 2)).distinct()
        with self._session.begin():
            with_rows = set(self._session.scalars(shards_with_rows))
        if with_rows and self._store.is_empty():
            raise MissingContentError
        for path in self._store.abandoned_uploads(self._min_age_s):
            yield self._file_without_row("abandoned upload", path)
        for digits in sorted(with_rows.union(self._store.shards())):
            yield from self._compare(digits)
            if self._is_thorough:
                yield from self._altered(digits)

    def _compare(self, digits: str) -> list[Inconsistency]:
        with self._store.locked(digits) as shard, self._session.begin():
            rows = self._rows(digits)
            hashes = {row.sha256 for row in rows}
            orphans = [path for path in shard.older(self._min_age_s) if path.name not in hashes]
            found = list(self._wrong_rows(rows, shard))
            found += [self._file_without_row("file without an image", path) for path in orphans]
        return found

    def _wrong_rows(self, rows: list[_Row], shard: Shard) -> Iterator[Inconsistency]:
        sizes = shard.sizes()
        for row in rows:
            if row.sha256 not in sizes:
                if self._fix:
                    self._session.execute(delete(ImageModel).where(ImageModel.id == row.id))
                yield Inconsistency("image without a file", str(row.id), self._fix)
            elif sizes[row.sha256] != row.size_bytes:
                yield Inconsistency("image with a damaged file", str(row.id))

    def _altered(self, digits: str) -> list[Inconsistency]:
        """Find files of the right size with the wrong hash, mostly without the shard's lock."""
        with self._session.begin():
            rows = self._rows(digits)
        content = {(row.sha256, row.size_bytes) for row in rows}
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

    def _rows(self, digits: str) -> list[_Row]:
        columns = select(ImageModel.id, ImageModel.sha256, ImageModel.size_bytes)
        rows = self._session.execute(columns.where(ImageModel.sha256.startswith(digits)))
        return [_Row(image_id, sha256, size_bytes) for image_id, sha256, size_bytes in rows]
