"""The journal of fleet runs: what each run did to each tenant's database.

One SQLite file under the data folder. It is true after `kill -9` at any moment: a step is written
as running, with what the database is at, before anything is done to it. (A power cut may cost the
last lines: to wait for the disk twice per tenant would take longer than most migrations.)
"""

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tenantry.errors import TenantryError

StepState = Literal["pending", "running", "done", "failed", "taken back"]

_REMEDIES = {
    sqlite3.SQLITE_BUSY: "another process holds it: wait for it or end it",
    sqlite3.SQLITE_CANTOPEN: "let this user write its folder",
    sqlite3.SQLITE_FULL: "make room on its disk",
    sqlite3.SQLITE_READONLY: "let this user write it and its folder",
}

WAIT_S = 30.0
"""How long one run waits for another one's line in the journal: each takes microseconds."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    heads TEXT NOT NULL,     -- JSON: endpoint → the revisions that its code ends in
    started REAL NOT NULL    -- seconds since the epoch
);
CREATE TABLE IF NOT EXISTS step (
    run INTEGER NOT NULL REFERENCES run,
    tenant TEXT NOT NULL,
    state TEXT NOT NULL,
    before TEXT,             -- JSON: what its database was at; NULL until the step runs
    database TEXT,           -- which one that was; NULL until then
    after TEXT,              -- JSON: what the run brings it to
    reason TEXT NOT NULL DEFAULT '',
    changed REAL NOT NULL,   -- seconds since the epoch
    PRIMARY KEY (run, tenant)
) WITHOUT ROWID;
"""


class JournalError(TenantryError):
    """The journal cannot be made, read or written. Nothing is lost but the line that was to be."""


@dataclass(frozen=True)
class Step:
    """What one run did to one tenant's database."""

    run: int
    tenant: str
    state: StepState
    before: frozenset[str] | None
    """What the database was at; None when nothing was begun."""
    database: str | None
    """Which one that was; None when nothing was begun."""
    after: frozenset[str]
    reason: str
    """Why it failed; also, why it could not be taken back."""


def journal_file(data_dir: Path) -> Path:
    """Return where the journal is; no tenant's name begins with a dot."""
    return data_dir / ".migrations" / "journal.sqlite3"


class Journal:
    """The open journal, until the end of a `with` block. Thread-safe, and safe between processes.

    Raises:
        JournalError: by each of its methods; the text says what to do.
    """

    def __init__(self, data_dir: Path) -> None:
        self._path = path = journal_file(data_dir)
        self._lock = threading.Lock()  # one statement or transaction at a time
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path, timeout=WAIT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._set_up()
            except BaseException:
                self._connection.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    def _set_up(self) -> None:
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.executescript(_SCHEMA)
        columns = [row[1] for row in self._connection.execute("PRAGMA table_info(step)")]
        if "database" not in columns:  # made before it was written
            self._connection.execute("ALTER TABLE step ADD COLUMN database TEXT")

    def _unusable(self, error: OSError | sqlite3.Error) -> JournalError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        remedy = _REMEDIES.get(code, "mend or remove it")
        return JournalError(f"cannot use the journal {self._path}: {error}; {remedy}.")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()

    def open_run(
        self,
        heads: Mapping[str, Collection[str]],
        tenants: Mapping[str, Collection[str]],
        databases: Mapping[str, str],
    ) -> int:
        """Return the run that brings these tenants to these heads.

        All of them are pending in it, but those that it is done with.

        That is the last run, if it has left something to do, its endpoints had the same heads and
        its tenants these databases; otherwise a new one.

        Args:
            heads: endpoint → what its code ends in.
            tenants: name → what its database is to be brought to.
            databases: name → which one that is.
        """
        wanted = {name: sorted(heads[name]) for name in heads}
        with self._transaction() as connection:
            run = _unfinished(connection, wanted, databases)
            if run is None:
                row = connection.execute(
                    "INSERT INTO run (heads, started) VALUES (?, ?) RETURNING id",
                    (json.dumps(wanted), time.time()),
                ).fetchone()
                run = int(row[0])
            connection.executemany(
                "INSERT INTO step (run, tenant, state, after, changed) "
                "VALUES (?, ?, 'pending', ?, ?) ON CONFLICT (run, tenant) DO UPDATE "
                "SET state = 'pending', reason = '', after = excluded.after "
                "WHERE state = 'failed'",
                [(run, name, _dump(to), time.time()) for name, to in tenants.items()],
            )
        return run

    def note_running(
        self, run: int, tenant: str, before: Collection[str], after: Collection[str], database: str
    ) -> None:
        """Write that a tenant's database is being changed, which one, what it is at and comes to.

        What it was at when this run first began with it stays: a run that was killed goes on. But
        not if the run was done with it: what it did has been undone by others.
        """
        self._write(
            "UPDATE step SET "
            "before = CASE state WHEN 'done' THEN ? ELSE coalesce(before, ?) END, database = ?, "
            "state = 'running', after = ?, changed = ? WHERE run = ? AND tenant = ?",
            (_dump(before), _dump(before), database, _dump(after), time.time(), run, tenant),
        )

    def note_done(self, run: int, tenant: str) -> None:
        """Write that a tenant's database is where the run brings it."""
        self._write(
            "UPDATE step SET state = 'done', reason = '', changed = ? WHERE run = ? AND tenant = ?",
            (time.time(), run, tenant),
        )

    def note_failed(self, run: int, tenant: str, reason: str) -> None:
        """Write why a tenant's database could not be brought there; not over another's success."""
        self._write(
            "UPDATE step SET state = 'failed', reason = ?, changed = ? "
            "WHERE run = ? AND tenant = ? AND state != 'done'",
            (reason, time.time(), run, tenant),
        )

    def note_at_head(self, databases: Mapping[str, str]) -> None:
        """Write what is known of tenants whose databases turn out to be at head.

        In the last run, one that was begun has been brought there by it, if it is still the same;
        one that was not, by somebody else, and the run has nothing to do with it.

        Args:
            databases: name → which one is at head.
        """
        with self._transaction() as connection:
            connection.executemany(
                "UPDATE step SET state = 'done', reason = '' WHERE before IS NOT NULL AND "
                "state IN ('pending', 'running', 'failed') AND "
                "run = (SELECT max(id) FROM run) AND tenant = ? AND coalesce(database, ?) = ?",
                [(name, database, database) for name, database in databases.items()],
            )
            connection.executemany(
                "DELETE FROM step WHERE before IS NULL AND state IN ('pending', 'failed') AND "
                "run = (SELECT max(id) FROM run) AND tenant = ?",
                [(name,) for name in databases],
            )

    def note_taken_back(self, run: int, tenant: str) -> None:
        """Write that a tenant's database is again at what it was at before the run."""
        self._write(
            "UPDATE step SET state = 'taken back', reason = '', changed = ? "
            "WHERE run = ? AND tenant = ?",
            (time.time(), run, tenant),
        )

    def note_not_taken_back(self, run: int, tenant: str, reason: str) -> None:
        """Write why what a run did could not be taken back; it still counts as done."""
        self._write(
            "UPDATE step SET reason = ?, changed = ? WHERE run = ? AND tenant = ?",
            (reason, time.time(), run, tenant),
        )

    def runs(self) -> list[int]:
        """Return the numbers of all runs, the last one first."""
        with self._alone() as connection:
            rows = connection.execute("SELECT id FROM run ORDER BY id DESC").fetchall()
        return [int(run) for (run,) in rows]

    def last_applied(self) -> tuple[int | None, int | None]:
        """Return the last run that applied something, and the last with something to take back.

        They are two where the last one is taken back already.
        """
        with self._alone() as connection:
            row = connection.execute(
                "SELECT max(run), max(CASE WHEN state != 'taken back' THEN run END) FROM step "
                "WHERE state IN ('done', 'taken back') OR "
                "(before IS NOT NULL AND state IN ('pending', 'running'))"
            ).fetchone()
        return row[0], row[1]

    def steps(self, run: int) -> list[Step]:
        """Return what a run did, in the order of names."""
        with self._alone() as connection:
            rows = connection.execute(
                "SELECT tenant, state, before, database, after, reason FROM step "
                "WHERE run = ? ORDER BY tenant",
                (run,),
            ).fetchall()
        return [
            Step(
                run,
                name,
                state,
                None if before is None else _load(before),
                database,
                _load(to),
                text,
            )
            for name, state, before, database, to, text in rows
        ]

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        with self._alone() as connection:
            connection.execute(statement, values)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._alone() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # SQLite ends some itself, as on a full disk
                    connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _alone(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise self._unusable(error) from error


def _unfinished(
    connection: sqlite3.Connection, wanted: Mapping[str, list[str]], databases: Mapping[str, str]
) -> int | None:
    """Return the last run, if it is to go on; it learns of endpoints that it had not."""
    row = connection.execute("SELECT id, heads FROM run ORDER BY id DESC LIMIT 1").fetchone()
    if row is None:
        return None
    run, had = int(row[0]), json.loads(row[1])
    steps = connection.execute("SELECT tenant, state, database FROM step WHERE run = ?", (run,))
    states = set()
    for tenant, state, database in steps:
        states.add(state)
        if database not in (None, databases.get(tenant, database)):
            return None  # what it did to that one is not to be written over
    is_same = all(had.get(name, ids) == ids for name, ids in wanted.items())
    if not is_same or "taken back" in states or not states & {"pending", "running", "failed"}:
        return None
    text = json.dumps(had | dict(wanted))
    connection.execute("UPDATE run SET heads = ? WHERE id = ?", (text, run))
    return run


def _dump(revisions: Collection[str]) -> str:
    return json.dumps(sorted(revisions))


def _load(text: str) -> frozenset[str]:
    return frozenset(json.loads(text))
