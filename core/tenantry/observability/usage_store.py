"""Usage: what each tenant used since ever and since when, over deaths and restarts of processes.

The ledgers of all processes are folded into `<data>/.usage/usage.sqlite3`, each count exactly
once: what has been taken from a file stands in the same transaction as what it was added to, so
`kill -9` at any moment doubles and loses nothing. Anybody may fold, a hung process's file too; a
file is removed when its process is gone and all of it is folded. (A power cut may cost what was
counted since the last fold.)

Buckets are minutes at first, hours after two days and days after two months, in UTC.
"""

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from tenantry.errors import TenantryError
from tenantry.observability.usage_counters import (
    NOTHING,
    Counts,
    Reading,
    counters_folder,
    lock_if_ended,
    read_counters,
)

FOLD_S = 60.0
"""Between two folds: how much a power cut may cost, and how fine `since` can be."""

FIRST_FOLD_S = 5.0
"""How long a process waits for its first: those that it replaces have ended by then."""

WAIT_S = 30.0
"""How long one fold waits for another: each takes milliseconds."""

KEPT_S = 3600.0
"""How long it is known what was taken from a file that is gone: who reads the files first and the
totals then must not count it twice."""

MINUTE, HOUR, DAY = 60, 3600, 86_400
_COARSER = ((MINUTE, HOUR, 2 * DAY), (HOUR, DAY, 62 * DAY))
"""Buckets of this length become that long when they are so old."""

_SUMMED = Counts._fields[:-1]
_COLUMNS = ", ".join(Counts._fields)
_DEFINED = ", ".join(f"{name} INTEGER NOT NULL" for name in Counts._fields)
_MARKS = ", ".join("?" * len(Counts._fields))
_SUMS = ", ".join([*(f"sum({name})" for name in _SUMMED), "max(used_ns)"])
_ADDED = ", ".join(
    [*(f"{name} = {name} + excluded.{name}" for name in _SUMMED),
     "used_ns = max(used_ns, excluded.used_ns)"]
)  # fmt: skip
_REPLACED = ", ".join(f"{name} = excluded.{name}" for name in Counts._fields)

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS bucket (   -- start in seconds since the epoch, length in seconds
    start INTEGER NOT NULL, length INTEGER NOT NULL, tenant TEXT NOT NULL, {_DEFINED},
    PRIMARY KEY (length, start, tenant)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS total (    -- in the order of their first traffic
    id INTEGER PRIMARY KEY, tenant TEXT NOT NULL UNIQUE, {_DEFINED}
);
CREATE TABLE IF NOT EXISTS folded (   -- what was taken from each file
    file TEXT NOT NULL, tenant TEXT NOT NULL, {_DEFINED}, seen REAL NOT NULL,
    PRIMARY KEY (file, tenant)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fold (at REAL NOT NULL);
"""

_logger = logging.getLogger(__name__)

Folded = dict[tuple[str, str], Counts]
"""What was taken from each file, by its name and the tenant's."""


def usage_file(data_dir: Path) -> Path:
    """Return where usage is kept."""
    return counters_folder(data_dir) / "usage.sqlite3"


def collect_periodically(data_dir: Path, stopping: threading.Event) -> None:
    """Fold every now and then until `stopping`; what fails is logged once, and tried again."""
    is_failing = False
    pause_s = FIRST_FOLD_S
    while not stopping.wait(pause_s):
        pause_s = FOLD_S
        try:
            fold(data_dir, at_most_every_s=FOLD_S / 2)  # another process may have done it
            is_failing = False
        except (OSError, sqlite3.Error) as error:
            if not is_failing:
                _logger.error("usage.not_folded", extra={"reason": str(error)})
            is_failing = True


def fold(data_dir: Path, *, now: float | None = None, at_most_every_s: float = 0.0) -> None:
    """Take what is new from the ledgers of all processes, and remove those of the dead.

    Raises:
        OSError, sqlite3.Error: the folder cannot be written; what was not taken stays for the next.
    """
    now = time.time() if now is None else now
    folder = counters_folder(data_dir)
    with closing(_open(folder / "usage.sqlite3")) as connection, contextlib.ExitStack() as held:
        with _transaction(connection):
            _add_new_counts(connection)
            last = connection.execute("SELECT max(at) FROM fold").fetchone()[0] or 0.0
            if 0 <= now - last < at_most_every_s:
                return
            # Inside the transaction: what somebody else folds is there, or not begun.
            ended = _take_hold(folder, held)
            readings = read_counters(folder)
            _take(connection, readings, now)
            seen = [(now, path.name) for path in ended]
            connection.executemany("UPDATE folded SET seen = ? WHERE file = ?", seen)
            _make_coarser(connection, now)
            _forget(connection, {one.path.name for one in readings}, now)
            connection.execute("DELETE FROM fold")
            connection.execute("INSERT INTO fold VALUES (?)", (now,))
        for path in ended:  # all of it is folded, and nobody adds to it
            path.unlink(missing_ok=True)


def _take_hold(folder: Path, held: contextlib.ExitStack) -> list[Path]:
    """Return the files of processes that are gone, each held for this fold alone."""
    ended = []
    for path in sorted(folder.glob("*.ledger")):
        fd = lock_if_ended(path)
        if fd is not None:
            held.callback(os.close, fd)
            ended.append(path)
    return ended


def _take(connection: sqlite3.Connection, readings: Iterable[Reading], now: float) -> None:
    taken = _folded(connection)
    for reading in readings:
        file = reading.path.name
        for tenant, counts in reading.counts.items():
            if counts == taken.get((file, tenant)):
                continue
            new = counts.minus(taken.get((file, tenant), NOTHING))
            used = min(counts.used_ns / 1e9, now) or now  # it may have ended long ago
            start = int(used) // MINUTE * MINUTE
            connection.execute(
                f"INSERT INTO bucket (start, length, tenant, {_COLUMNS}) "
                f"VALUES (?, ?, ?, {_MARKS}) ON CONFLICT DO UPDATE SET {_ADDED}",
                (start, MINUTE, tenant, *new),
            )
            connection.execute(
                f"INSERT INTO total (tenant, {_COLUMNS}) VALUES (?, {_MARKS}) "
                f"ON CONFLICT DO UPDATE SET {_ADDED}",
                (tenant, *new),
            )
            connection.execute(
                f"INSERT INTO folded (file, tenant, {_COLUMNS}, seen) VALUES (?, ?, {_MARKS}, ?) "
                f"ON CONFLICT DO UPDATE SET {_REPLACED}",
                (file, tenant, *counts, now),
            )


def _make_coarser(connection: sqlite3.Connection, now: float) -> None:
    for length, longer, age in _COARSER:
        until = int(now - age) // longer * longer
        where = "FROM bucket WHERE length = ? AND start < ?"
        connection.execute(
            f"INSERT INTO bucket (start, length, tenant, {_COLUMNS}) "
            f"SELECT start / {longer} * {longer} AS since, {longer}, tenant, {_SUMS} "
            f"{where} GROUP BY since, tenant ON CONFLICT DO UPDATE SET {_ADDED}",
            (length, until),
        )
        connection.execute(f"DELETE {where}", (length, until))


def _forget(connection: sqlite3.Connection, files: set[str], now: float) -> None:
    for (file,) in connection.execute(
        "SELECT file FROM folded GROUP BY file HAVING max(seen) < ?", (now - KEPT_S,)
    ).fetchall():
        if file not in files:
            connection.execute("DELETE FROM folded WHERE file = ?", (file,))


# -- what was used --------------------------------------------------------------------------------


def totals(data_dir: Path) -> dict[str, Counts]:
    """Return what each tenant used since ever, up to now, in the order of their first traffic.

    It writes nothing, so it works on a full disk and while a process hangs.

    Raises:
        TenantryError: the file is there and cannot be read.
    """
    return _with_unfolded(data_dir, f"SELECT tenant, {_COLUMNS} FROM total ORDER BY id", (), 0.0)


def used_since(data_dir: Path, since: float) -> dict[str, Counts]:
    """Return what each tenant used since then (seconds since the epoch), in the order of names.

    A bucket counts if it began then or later, and so does the one that `since` is in.

    Raises:
        TenantryError: the file is there and cannot be read.
    """
    query = f"SELECT tenant, {_SUMS} FROM bucket WHERE start + length > ? GROUP BY tenant"
    return dict(sorted(_with_unfolded(data_dir, query, (since,), since).items()))


def _with_unfolded(
    data_dir: Path, query: str, values: tuple[float, ...], since: float
) -> dict[str, Counts]:
    # The files first: what is folded meanwhile is in the totals, and known to be taken from them.
    readings = read_counters(counters_folder(data_dir))
    found, taken = _read(usage_file(data_dir), query, values)
    for reading in readings:
        for tenant, counts in reading.counts.items():
            new = counts.minus(taken.get((reading.path.name, tenant), NOTHING))
            is_since = counts.used_ns / 1e9 >= since or not counts.used_ns
            if is_since and any(new[:-1]):
                found[tenant] = found.get(tenant, NOTHING).plus(new)
    return found


def _read(path: Path, query: str, values: tuple[float, ...]) -> tuple[dict[str, Counts], Folded]:
    if not path.exists():
        return {}, {}
    try:
        with closing(_connect(path)) as connection:
            connection.execute("BEGIN")  # both of one moment
            rows = connection.execute(_as_known(connection, query), values)
            return {tenant: Counts(*row) for tenant, *row in rows}, _folded(connection)
    except sqlite3.Error as error:
        text = f"cannot read the usage in {path}: {error}; mend or remove it."
        raise TenantryError(text) from error


def _folded(connection: sqlite3.Connection) -> Folded:
    query = _as_known(connection, f"SELECT file, tenant, {_COLUMNS} FROM folded")
    rows = connection.execute(query)
    return {(file, tenant): Counts(*counts) for file, tenant, *counts in rows}


def _new_counts(connection: sqlite3.Connection) -> list[str]:
    """Return the counts that a file of an older release does not have."""
    known = {column[1] for column in connection.execute("PRAGMA table_info(total)")}
    return [name for name in Counts._fields if name not in known]


def _as_known(connection: sqlite3.Connection, query: str) -> str:
    """Return a query that asks for 0 in the place of what the file does not have."""
    for name in _new_counts(connection):
        query = query.replace(name, "0")
    return query


def _add_new_counts(connection: sqlite3.Connection) -> None:
    for name in _new_counts(connection):
        for table in ("bucket", "total", "folded"):
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0")


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    connection = _connect(path)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # a ledger is removed after it
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
