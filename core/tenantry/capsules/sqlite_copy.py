"""Copies SQLite databases with SQLite's backup API.

While a process writes to a database file, a plain copy of the file can be inconsistent. Recent
changes can still be in the write-ahead log. The backup API copies a consistent state of the
database.
"""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

MAGIC = b"SQLite format 3\0"
"""The first bytes of every SQLite database."""

BUSY_TIMEOUT_S = 30.0
"""Maximum seconds that a copy waits while another process holds a lock on the database."""

_COMPANION_SUFFIXES = ("-wal", "-shm", "-journal")


def is_sqlite_file(path: Path) -> bool:
    """Whether a file is a SQLite database."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def companion_of(path: Path) -> Path | None:
    """Return the database to which a file such as `cache.db-wal` belongs, or None."""
    for suffix in _COMPANION_SUFFIXES:
        database = path.with_name(path.name.removesuffix(suffix))
        if database != path and is_sqlite_file(database):
            return database
    return None


def copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite database to a file that does not exist, with the mode and time of the source.

    The write-ahead log of the source is part of the copy. A damaged database is copied as bytes.

    Raises:
        sqlite3.OperationalError: the database is locked, or the disk is full.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with (
            closing(_connect(source, "rw")) as original,
            closing(_connect(target, "rw")) as copy,
        ):
            original.backup(copy)
            if original.execute("PRAGMA journal_mode").fetchone() == ("wal",):
                copy.execute("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError:
        target.unlink()
        raise
    except sqlite3.DatabaseError:
        target.unlink()
        shutil.copyfile(source, target)
    shutil.copystat(source, target)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
