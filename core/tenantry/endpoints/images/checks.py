"""Whether the rows and the files of the image repository agree, and mending them.

Free of Flask, like the models. Uploads and deletions may go on meanwhile: a shard is compared under
the lock that they take.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from .models import ContentFolder, ImageModel, MissingContentError, Shard

SETTLED_S = 3600.0
"""Age in seconds from which a file without a row is left over: no upload takes an hour."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    what: str
    subject: str
    """The file or the image that it is about."""
    is_mended: bool = False


class ImageCheckModel:
    """Compares the rows of one tenant's database with the files of its folder.

    Args:
        session: on the tenant's database; no transaction is open on it.
        folder: where the bytes are.
        mend: remove files without a row, and rows without a file. A damaged file stays: only a
            backup, or the same image uploaded again, can mend it.
        settled_s: files younger than this, in seconds, are left alone.
        is_thorough: read all files, and compare their hashes; sizes only else.
    """

    def __init__(
        self,
        session: Session,
        folder: Path,
        *,
        mend: bool,
        settled_s: float = SETTLED_S,
        is_thorough: bool = False,
    ) -> None:
        self._session = session
        self._files = ContentFolder(folder)
        self._mend = mend
        self._settled_s = settled_s
        self._is_thorough = is_thorough

    def findings(self) -> Iterator[Finding]:
        """Yield what is wrong, mended if asked for; a shard at a time.

        Raises:
            MissingContentError: there are rows and not a single file: it looks as if a volume is
                not mounted, so nothing is mended.
        """
        used = select(func.substr(ImageModel.sha256, 1, 2)).distinct()
        with self._session.begin():
            with_rows = set(self._session.scalars(used))
        if with_rows and self._files.is_empty():
            raise MissingContentError
        for path in self._files.abandoned(self._settled_s):
            yield self._without_row("upload that never ended", path)
        for digits in sorted(with_rows.union(self._files.shards())):
            yield from self._compare(digits)
            if self._is_thorough:
                yield from self._damaged(digits)

    def _damaged(self, digits: str) -> list[Finding]:
        """Find files of the right size with other bytes; most are read without the lock."""
        with self._session.begin():
            rows = self._rows(digits)
        content = {(sha256, size_bytes) for _, sha256, size_bytes in rows}
        suspects = {one for one in content if not self._files.is_whole(*one)}
        if not suspects:
            return []
        with self._files.locked(digits) as shard:  # what is gone or mended by now is none
            there = suspects.intersection(shard.sizes().items())
            damaged = {sha256 for sha256, size in there if not self._files.is_whole(sha256, size)}
        return [
            Finding("image with a damaged file", str(image_id))
            for image_id, sha256, _ in rows
            if sha256 in damaged
        ]

    def _compare(self, digits: str) -> list[Finding]:
        with self._files.locked(digits) as shard, self._session.begin():
            rows = self._rows(digits)
            has_row = {sha256 for _, sha256, _ in rows}
            left = [path for path in shard.older(self._settled_s) if path.name not in has_row]
            found = list(self._wrong_rows(rows, shard))
            found += [self._without_row("file without an image", path) for path in left]
        return found

    def _wrong_rows(self, rows: list["_Row"], shard: Shard) -> Iterator[Finding]:
        sizes = shard.sizes()
        for image_id, sha256, size_bytes in rows:
            if sha256 not in sizes:
                if self._mend:
                    self._session.execute(delete(ImageModel).where(ImageModel.id == image_id))
                yield Finding("image without a file", str(image_id), self._mend)
            elif sizes[sha256] != size_bytes:
                yield Finding("image with a damaged file", str(image_id))

    def _without_row(self, what: str, path: Path) -> Finding:
        if self._mend:
            path.unlink(missing_ok=True)
        return Finding(what, path.name, self._mend)

    def _rows(self, digits: str) -> list["_Row"]:
        columns = select(ImageModel.id, ImageModel.sha256, ImageModel.size_bytes)
        rows = self._session.execute(columns.where(ImageModel.sha256.startswith(digits)))
        return [(image_id, sha256, size_bytes) for image_id, sha256, size_bytes in rows]


_Row = tuple[uuid.UUID, str, int]
