"""Usage over time: the usage of each tenant, across crashes and restarts of processes.

The database `<data>/.usage/usage.sqlite3` collects the counts from the files of all processes. Each
count is added exactly once, because the transaction that updates the totals also records what has
been collected from each file. A `kill -9` therefore neither doubles nor loses a count. Any process
can collect any file, even the file of a process that hangs. After the last collection, the file of
an ended process is deleted. A power failure can lose the counts since the last collection.

The database keeps usage by the minute for two days, then by the hour for two months, then by the
day, in UTC.
"""

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from tenantry.errors import TenantryError
from tenantry.observability.usage_counters import (
    ZERO,
    Counts,
    ProcessCounts,
    counters_files,
    counters_folder,
    lock_if_ended,
    read_counters,
)

INTERVAL_S = 60.0
"""Seconds between two collections: the resolution of `since`, and the maximum period of usage that
a power failure can lose."""

FIRST_DELAY_S = 5.0
"""Seconds from the start of a process to its first collection. The delay gives the replaced process
time to end."""

LOCK_TIMEOUT_S = 30.0
"""Seconds that one collection waits for another collection. A collection takes milliseconds."""

DELETED_FILE_KEPT_S = 3600.0
"""Seconds that the database remembers the counts collected from a deleted file. A reader that has
read the file before its deletion must not count the file twice."""

MINUTE, HOUR, DAY = 60, 3600, 86_400
_MERGES = ((MINUTE, HOUR, 2 * DAY), (HOUR, DAY, 62 * DAY))
"""How old buckets are merged into longer buckets: the length of the old buckets, the length of the
merged buckets, and the age from which buckets are merged, in seconds."""

_COUNTS = Counts._fields
_DEFINITIONS = ", ".join(f"{name} INTEGER NOT NULL DEFAULT 0" for name in _COUNTS)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS bucket (   -- start in seconds since the epoch, length in seconds
    start INTEGER NOT NULL, length INTEGER NOT NULL, tenant TEXT NOT NULL, {_DEFINITIONS},
    PRIMARY KEY (length, start, tenant)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS total (    -- ordered by first traffic
    id INTEGER PRIMARY KEY, tenant TEXT NOT NULL UNIQUE, {_DEFINITIONS}
);
CREATE TABLE IF NOT EXISTS folded (   -- what has been collected from each file
    file TEXT NOT NULL, tenant TEXT NOT NULL, {_DEFINITIONS}, seen REAL NOT NULL,
    PRIMARY KEY (file, tenant)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fold (at REAL NOT NULL);   -- the time of the last collection
"""

_logger = logging.getLogger(__name__)

Collected = dict[tuple[str, str], Counts]
"""The collected counts by file name and tenant name."""


def usage_file(data_dir: Path) -> Path:
    """Return the path of the usage database."""
    return counters_folder(data_dir) / "usage.sqlite3"


# -- collecting -----------------------------------------------------------------------------------


def collect_periodically(data_dir: Path, stopping: threading.Event) -> None:
    """Collect once a minute until `stopping` is set, and log the first of several failures."""
    is_failing = False
    pause_s = FIRST_DELAY_S
    while not stopping.wait(pause_s):
        pause_s = INTERVAL_S
        try:
            collect(data_dir, min_interval_s=INTERVAL_S / 2)
            is_failing = False
        except (OSError, sqlite3.Error) as error:
            if not is_failing:
                _logger.error("usage.collection_failed", extra={"reason": str(error)})
            is_failing = True


def collect(data_dir: Path, *, now: float | None = None, min_interval_s: float = 0.0) -> None:
    """Add new counts of all processes to the database, and delete the files of ended processes.

    Args:
        data_dir: the host's data folder.
        now: seconds since the epoch; the present time if None.
        min_interval_s: do nothing if any process has collected less than this many seconds ago.

    Raises:
        OSError, sqlite3.Error: the folder is not writable. The next collection adds the missing
            counts.
    """
    now = time.time() if now is None else now
    folder = counters_folder(data_dir)
    with closing(_open(usage_file(data_dir))) as connection, contextlib.ExitStack() as locks:
        with connection:  # the block commits or rolls back the transaction
            connection.execute("BEGIN IMMEDIATE")
            _add_missing_columns(connection)
            last = connection.execute("SELECT max(at) FROM fold").fetchone()[0] or 0.0
            if 0 <= now - last < min_interval_s:
                return
            # The transaction keeps other processes from collecting the same files.
            ended = _lock_ended_files(folder, locks)
            files = read_counters(folder)
            _add_new_counts(connection, files, now)
            seen = [(now, path.name) for path in ended]
            connection.executemany("UPDATE folded SET seen = ? WHERE file = ?", seen)
            _merge_old_buckets(connection, now)
            _forget_deleted_files(connection, {file.path.name for file in files}, now)
            connection.execute("DELETE FROM fold")
            connection.execute("INSERT INTO fold VALUES (?)", (now,))
        for path in ended:
            path.unlink(missing_ok=True)


def _lock_ended_files(folder: Path, locks: contextlib.ExitStack) -> list[Path]:
    """Return the files of ended processes, locked until `locks` closes."""
    ended = []
    for path in counters_files(folder):
        fd = lock_if_ended(path)
        if fd is not None:
            locks.callback(os.close, fd)
            ended.append(path)
    return ended


def _add_new_counts(
    connection: sqlite3.Connection, files: Iterable[ProcessCounts], now: float
) -> None:
    collected = _read_collected(connection)
    for file in files:
        name = file.path.name
        for tenant, counts in file.counts.items():
            before = collected.get((name, tenant), ZERO)
            if counts == before:
                continue
            new = counts.minus(before)
            used_s = min(counts.used_ns / 1e9, now) or now  # the last request may be long ago
            start = int(used_s) // MINUTE * MINUTE
            _add(connection, "bucket", {"start": start, "length": MINUTE, "tenant": tenant}, new)
            _add(connection, "total", {"tenant": tenant}, new)
            _add(connection, "folded", {"file": name, "tenant": tenant, "seen": now}, new)


def _add(
    connection: sqlite3.Connection, table: str, key: Mapping[str, object], counts: Counts
) -> None:
    """Add counts to the row with the key `key`, or insert the row."""
    values = {**key, **counts._asdict()}
    connection.execute(
        f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join('?' * len(values))}) "
        f"ON CONFLICT DO UPDATE SET {_additions()}",
        tuple(values.values()),
    )


def _additions() -> str:
    """Return the SQL that adds the counts of the excluded row, with the later `used_ns`."""
    sums = [f"{name} = {name} + excluded.{name}" for name in _COUNTS if name != "used_ns"]
    return ", ".join([*sums, "used_ns = max(used_ns, excluded.used_ns)"])


def _sums(columns: Iterable[str]) -> str:
    """Return the SQL that adds up the counts of a group, with the latest `used_ns`."""
    return ", ".join(f"{'max' if name == 'used_ns' else 'sum'}({name})" for name in columns)


def _merge_old_buckets(connection: sqlite3.Connection, now: float) -> None:
    for length, longer, age_s in _MERGES:
        end = int(now - age_s) // longer * longer
        old = "FROM bucket WHERE length = ? AND start < ?"
        connection.execute(
            f"INSERT INTO bucket (start, length, tenant, {', '.join(_COUNTS)}) "
            f"SELECT start / {longer} * {longer} AS since, {longer}, tenant, {_sums(_COUNTS)} "
            f"{old} GROUP BY since, tenant ON CONFLICT DO UPDATE SET {_additions()}",
            (length, end),
        )
        connection.execute(f"DELETE {old}", (length, end))


def _forget_deleted_files(connection: sqlite3.Connection, present: set[str], now: float) -> None:
    last_seen = connection.execute("SELECT file, max(seen) FROM folded GROUP BY file").fetchall()
    for file, seen in last_seen:
        if file not in present and seen < now - DELETED_FILE_KEPT_S:
            connection.execute("DELETE FROM folded WHERE file = ?", (file,))


def _add_missing_columns(connection: sqlite3.Connection) -> None:
    """Add missing columns to a usage database of an older release."""
    for name in set(_COUNTS).difference(_count_columns(connection)):
        for table in ("bucket", "total", "folded"):
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0")


def rename_usage(data_dir: Path, old: str, new: str) -> None:
    """Add the usage of a tenant to the usage under its new name. A repeated call changes nothing.

    Raises:
        TenantryError: the database cannot be written.
    """
    if not usage_file(data_dir).exists() and not counters_folder(data_dir).exists():
        return
    try:
        collect(data_dir)
        with closing(_open(usage_file(data_dir))) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            for table, key in (("bucket", "start, length, "), ("total", "")):
                columns = f"{key}tenant, {', '.join(_COUNTS)}"
                values = f"{key}?, {', '.join(_COUNTS)}"
                connection.execute(
                    f"INSERT INTO {table} ({columns}) SELECT {values} FROM {table} "
                    f"WHERE tenant = ? ON CONFLICT DO UPDATE SET {_additions()}",
                    (new, old),
                )
                connection.execute(f"DELETE FROM {table} WHERE tenant = ?", (old,))
    except (OSError, sqlite3.Error) as error:
        raise TenantryError(f"cannot write {usage_file(data_dir)}: {error}.") from error


# -- reading --------------------------------------------------------------------------------------


def totals(data_dir: Path) -> dict[str, Counts]:
    """Return the total usage of each tenant up to now, ordered by first traffic.

    Because the function writes nothing, it works even if the disk is full or a process hangs.

    Raises:
        TenantryError: the database exists but cannot be read.
    """
    return _with_uncollected(data_dir, since=None)


def used_since(data_dir: Path, since: float) -> dict[str, Counts]:
    """Return the usage of each tenant since a point in time, ordered by name.

    Args:
        data_dir: the host's data folder.
        since: seconds since the epoch. The bucket that contains this time counts in full.

    Raises:
        TenantryError: the database exists but cannot be read.
    """
    return dict(sorted(_with_uncollected(data_dir, since).items()))


def _with_uncollected(data_dir: Path, since: float | None) -> dict[str, Counts]:
    # The files are read before the database. If a collection runs in between, the database says
    # which counts of the files it has collected.
    files = read_counters(counters_folder(data_dir))
    found, collected = _read_database(usage_file(data_dir), since)
    for file in files:
        for tenant, counts in file.counts.items():
            new = counts.minus(collected.get((file.path.name, tenant), ZERO))
            is_recent = not counts.used_ns or counts.used_ns / 1e9 >= (since or 0.0)
            if is_recent and new != ZERO._replace(used_ns=new.used_ns):
                found[tenant] = found.get(tenant, ZERO).plus(new)
    return found


def _read_database(path: Path, since: float | None) -> tuple[dict[str, Counts], Collected]:
    if not path.exists():
        return {}, {}
    try:
        with closing(_connect(path)) as connection:
            connection.execute("BEGIN")  # the two queries read one snapshot of the database
            columns = _count_columns(connection)
            if since is None:
                query = f"SELECT tenant, {', '.join(columns)} FROM total ORDER BY id"
                rows = connection.execute(query)
            else:
                query = f"SELECT tenant, {_sums(columns)} FROM bucket WHERE start + length > ?"
                rows = connection.execute(f"{query} GROUP BY tenant", (since,))
            found = {tenant: _counts(columns, values) for tenant, *values in rows}
            return found, _read_collected(connection)
    except sqlite3.Error as error:
        raise TenantryError(
            f"cannot read the usage database {path}: {error}. Restore it from a backup, or delete "
            "it to start from zero."
        ) from error


def _read_collected(connection: sqlite3.Connection) -> Collected:
    columns = _count_columns(connection)
    rows = connection.execute(f"SELECT file, tenant, {', '.join(columns)} FROM folded")
    return {(file, tenant): _counts(columns, values) for file, tenant, *values in rows}


def _count_columns(connection: sqlite3.Connection) -> list[str]:
    """Return the names of the counts in the database, which an older release may have created."""
    columns = {column[1] for column in connection.execute("PRAGMA table_info(total)")}
    return [name for name in _COUNTS if name in columns]


def _counts(columns: Sequence[str], values: Sequence[int]) -> Counts:
    return Counts(**dict(zip(columns, values, strict=True)))


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    connection = _connect(path)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        # The commit must be durable, because the collection deletes counters files afterwards.
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
