"""Records in a journal how fleet runs and the host change the tenants' databases.

The journal is a SQLite file in the data folder. Before a database changes, the journal records the
revisions of the database, and that the migration is running. Therefore, the journal is correct even
if the process is killed at any moment. A power failure may lose the last records. Waiting for the
disk would prevent the loss of records, but would take longer than most migrations.
"""

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from tenantry.errors import TenantryError

StepState = Literal["pending", "running", "done", "failed", "downgraded"]

_REMEDIES = {
    sqlite3.SQLITE_BUSY: "another process holds the journal; wait for that process or end it",
    sqlite3.SQLITE_CANTOPEN: "give this user write access to the folder",
    sqlite3.SQLITE_FULL: "free some disk space",
    sqlite3.SQLITE_READONLY: "give this user write access to the file and its folder",
}

LOCK_TIMEOUT_S = 30.0
"""Maximum seconds to wait while another process writes to the journal.

A write to the journal takes microseconds.
"""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    heads TEXT NOT NULL,     -- JSON: endpoint → heads of its code
    started REAL NOT NULL    -- seconds since the epoch
);
CREATE TABLE IF NOT EXISTS step (
    run INTEGER NOT NULL REFERENCES run,
    tenant TEXT NOT NULL,
    state TEXT NOT NULL,
    before TEXT,             -- JSON: revisions before the run; NULL until the step starts
    database TEXT,           -- identity of the database; NULL until the step starts
    after TEXT,              -- JSON: revisions that the run migrates to
    reason TEXT NOT NULL DEFAULT '',
    changed REAL NOT NULL,   -- seconds since the epoch
    PRIMARY KEY (run, tenant)
) WITHOUT ROWID;
"""


_STEP_COLUMNS = "run, tenant, state, before, database, after, reason"


class JournalError(TenantryError):
    """The journal cannot be created, read or written.

    Earlier records in the journal are not lost.
    """


@dataclass(frozen=True)
class MigrationStep:
    """A step of a fleet run: the migration of one tenant's database."""

    run: int
    tenant: str
    state: StepState
    before: frozenset[str] | None
    """The revisions of the database before the run, or None if the step has not started."""
    database: str | None
    """The identity of the database, or None if the step has not started."""
    after: frozenset[str]
    reason: str
    """Why the migration or its downgrade failed."""

    @property
    def is_applied(self) -> bool:
        """Whether the run has changed the database, or may have done so before it was killed."""
        return self.before is not None and self.state in ("done", "running", "pending")


def journal_file(data_dir: Path) -> Path:
    """Return the path of the journal.

    The name begins with a dot, so no tenant has the same name.
    """
    return data_dir / ".migrations" / "journal.sqlite3"


class Journal:
    """The journal, which is open during a `with` block. Safe for threads and processes.

    Raises:
        JournalError: SQLite failed in any method. The text of the error says what the operator can
            do.
    """

    def __init__(self, data_dir: Path) -> None:
        self._path = path = journal_file(data_dir)
        self._lock = threading.Lock()  # allows one statement or transaction at a time
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=NORMAL")
                self._connection.executescript(_SCHEMA)
            except BaseException:
                self._connection.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise self._journal_error(error) from error

    def _journal_error(self, error: OSError | sqlite3.Error) -> JournalError:
        primary_code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        remedy = _REMEDIES.get(primary_code, "repair or remove the file")
        return JournalError(f"cannot use the journal {self._path}: {error}; {remedy}.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def open_run(
        self,
        heads: Mapping[str, Collection[str]],
        destinations: Mapping[str, Collection[str]],
        databases: Mapping[str, str],
        *,
        joins_finished: bool = False,
    ) -> int:
        """Continue or start a run that upgrades the given tenants, and return its number.

        The last run continues if it is unfinished, if its endpoints have the same heads, and if its
        tenants have the same databases. If the last run cannot continue, a new run starts. Each
        step that is not done becomes pending.

        Args:
            heads: maps each endpoint to the heads of its code.
            destinations: maps each tenant to the revisions to which its database is upgraded.
            databases: maps each tenant to the identity of its database.
            joins_finished: whether the last run can continue even if the run is finished. The host
                upgrades one database at a time, but all its upgrades to the same heads belong to
                one run, which `tenantry db downgrade` undoes at once.
        """
        sorted_heads = {name: sorted(heads[name]) for name in heads}
        with self._transaction() as connection:
            run = _run_to_continue(
                connection, sorted_heads, databases, joins_finished=joins_finished
            )
            if run is None:
                row = connection.execute(
                    "INSERT INTO run (heads, started) VALUES (?, ?) RETURNING id",
                    (json.dumps(sorted_heads), time.time()),
                ).fetchone()
                run = int(row[0])
            connection.executemany(
                "INSERT INTO step (run, tenant, state, after, changed) "
                "VALUES (?, ?, 'pending', ?, ?) ON CONFLICT (run, tenant) DO UPDATE "
                "SET state = 'pending', reason = '', after = excluded.after "
                "WHERE state = 'failed'",
                [(run, name, _dump(to), time.time()) for name, to in destinations.items()],
            )
        return run

    def record_start(
        self, run: int, tenant: str, before: Collection[str], after: Collection[str], database: str
    ) -> None:
        """Record that a migration starts. Call this method before the database is changed.

        If a killed run continues, the journal keeps the revisions from the first start. If the step
        was already done, the database has been downgraded since then, so the new revisions replace
        the recorded revisions.
        """
        self._execute(
            "UPDATE step SET "
            "before = CASE state WHEN 'done' THEN ? ELSE coalesce(before, ?) END, database = ?, "
            "state = 'running', after = ?, changed = ? WHERE run = ? AND tenant = ?",
            (_dump(before), _dump(before), database, _dump(after), time.time(), run, tenant),
        )

    def record_success(self, run: int, tenant: str) -> None:
        """Record that the database of a tenant has been migrated."""
        self._execute(
            "UPDATE step SET state = 'done', reason = '', changed = ? WHERE run = ? AND tenant = ?",
            (time.time(), run, tenant),
        )

    def record_failure(self, run: int, tenant: str, reason: str) -> None:
        """Record why a migration failed, unless a concurrent run has completed the migration."""
        self._execute(
            "UPDATE step SET state = 'failed', reason = ?, changed = ? "
            "WHERE run = ? AND tenant = ? AND state != 'done'",
            (reason, time.time(), run, tenant),
        )

    def record_at_head(self, databases: Mapping[str, str]) -> None:
        """Complete the steps of the last run whose databases are already at their heads.

        If the last run had started a step, that run has upgraded the database, and the step is
        done. Otherwise, another process has upgraded the database, and the step is removed.

        Args:
            databases: maps each tenant to the identity of its database.
        """
        with self._transaction() as connection:
            connection.executemany(
                "UPDATE step SET state = 'done', reason = '' WHERE before IS NOT NULL AND "
                "state IN ('pending', 'running', 'failed') AND "
                "run = (SELECT max(id) FROM run) AND tenant = ? AND database = ?",
                list(databases.items()),
            )
            connection.executemany(
                "DELETE FROM step WHERE before IS NULL AND state IN ('pending', 'failed') AND "
                "run = (SELECT max(id) FROM run) AND tenant = ?",
                [(name,) for name in databases],
            )

    def record_downgrade(self, run: int, tenant: str) -> None:
        """Record that the database of a tenant is back at its earlier revisions."""
        self._execute(
            "UPDATE step SET state = 'downgraded', reason = '', changed = ? "
            "WHERE run = ? AND tenant = ?",
            (time.time(), run, tenant),
        )

    def record_downgrade_failure(self, run: int, tenant: str, reason: str) -> None:
        """Record why the downgrade of a step failed.

        A step whose downgrade failed still counts as applied.
        """
        self._execute(
            "UPDATE step SET reason = ?, changed = ? WHERE run = ? AND tenant = ?",
            (reason, time.time(), run, tenant),
        )

    def runs(self) -> list[int]:
        """Return the numbers of all runs, with the newest first."""
        with self._exclusive() as connection:
            rows = connection.execute("SELECT id FROM run ORDER BY id DESC").fetchall()
        return [int(run) for (run,) in rows]

    def last_applied(self, tenants: Collection[str]) -> tuple[int | None, int | None]:
        """Return the last run that changed a database of the tenants, and the last one to undo.

        The second value is the last of these runs that has not been downgraded.
        """
        with self._exclusive() as connection:
            rows = connection.execute(
                "SELECT tenant, max(run), max(CASE WHEN state != 'downgraded' THEN run END) "
                "FROM step WHERE state IN ('done', 'downgraded') OR "
                "(before IS NOT NULL AND state IN ('pending', 'running')) GROUP BY tenant"
            ).fetchall()
        chosen = [row for row in rows if row[0] in tenants]
        changed = [int(run) for _, run, _ in chosen]
        remaining = [int(run) for _, _, run in chosen if run is not None]
        return max(changed, default=None), max(remaining, default=None)

    def last_step(self, tenant: str, database: str) -> MigrationStep | None:
        """Return the newest step of a tenant's database, or None if no step exists."""
        with self._exclusive() as connection:
            row = connection.execute(
                f"SELECT {_STEP_COLUMNS} FROM step WHERE tenant = ? AND "  # noqa: S608 - the columns are constant
                "coalesce(database, ?) = ? ORDER BY run DESC LIMIT 1",
                (tenant, database, database),
            ).fetchone()
        return None if row is None else _step(row)

    def rename_tenant(self, name: str, new: str, databases: Mapping[str, str]) -> None:
        """Assign the steps of a renamed tenant to its new name. Idempotent.

        Args:
            name: the former name.
            new: the new name.
            databases: maps the former identity of each database that has moved to the new identity.
        """
        with self._transaction() as connection:
            connection.execute(
                "UPDATE OR REPLACE step SET tenant = ? WHERE tenant = ?", (new, name)
            )
            connection.executemany(
                "UPDATE step SET database = ? WHERE tenant = ? AND database = ?",
                [(after, new, before) for before, after in databases.items()],
            )

    def steps(self, run: int) -> list[MigrationStep]:
        """Return the steps of a run, sorted by tenant."""
        with self._exclusive() as connection:
            rows = connection.execute(
                f"SELECT {_STEP_COLUMNS} FROM step WHERE run = ? ORDER BY tenant",  # noqa: S608 - the columns are constant
                (run,),
            ).fetchall()
        return [_step(row) for row in rows]

    def _execute(self, statement: str, values: tuple[object, ...]) -> None:
        with self._exclusive() as connection:
            connection.execute(statement, values)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._exclusive() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # If the disk was full, SQLite has already rolled back the transaction.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise self._journal_error(error) from error


def _run_to_continue(
    connection: sqlite3.Connection,
    heads: Mapping[str, list[str]],
    databases: Mapping[str, str],
    *,
    joins_finished: bool,
) -> int | None:
    """Return the last run if it can continue, after adding new endpoints to the run."""
    row = connection.execute("SELECT id, heads FROM run ORDER BY id DESC LIMIT 1").fetchone()
    if row is None:
        return None
    run, heads_of_run = int(row[0]), json.loads(row[1])
    steps = connection.execute("SELECT tenant, state, database FROM step WHERE run = ?", (run,))
    states = set()
    for tenant, state, database in steps:
        states.add(state)
        if database not in (None, databases.get(tenant, database)):
            # The new run must not overwrite the record of a tenant's former database.
            return None
    has_same_heads = all(heads_of_run.get(name, ids) == ids for name, ids in heads.items())
    can_join = joins_finished or bool(states & {"pending", "running", "failed"})
    if not has_same_heads or not can_join or "downgraded" in states:
        return None
    text = json.dumps(heads_of_run | dict(heads))
    connection.execute("UPDATE run SET heads = ? WHERE id = ?", (text, run))
    return run


def _step(row: tuple[Any, ...]) -> MigrationStep:
    return MigrationStep(
        run=row[0],
        tenant=row[1],
        state=row[2],
        before=None if row[3] is None else _load(row[3]),
        database=row[4],
        after=_load(row[5]),
        reason=row[6],
    )


def _dump(revisions: Collection[str]) -> str:
    return json.dumps(sorted(revisions))


def _load(text: str) -> frozenset[str]:
    return frozenset(json.loads(text))
