"""Runs Alembic on one database, in one transaction.

Only `process_child` imports this module, because the code of a revision may do anything to the
process that runs the revision. Alembic's `op` is one object per process, so databases are migrated
one after the other.
"""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationStep
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, NullPool, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from tenantry.migrations.locks import migration_lock
from tenantry.migrations.process import MigrationReply, MigrationRequest, OnStart
from tenantry.migrations.revisions import (
    Branch,
    RevisionStatus,
    compare,
    describe_unknown,
    format_revisions,
)
from tenantry.migrations.version_table import (
    check_file_not_lost,
    describe_error,
    describe_unreachable,
    read_versions_on,
    with_connect_timeout,
)

OnCommit = Callable[[], None]
"""Called before each COMMIT of a migration. If the process dies during a COMMIT, the COMMIT's
effect is unknown."""

TRANSACTIONAL_ENGINES = ("postgresql", "sqlite")
"""The engines that can roll back DDL. SQLite requires the events that `_connect` adds."""

_COMMIT = re.compile(r"\s*(commit|end)\b", re.IGNORECASE)


def migrate(
    request: MigrationRequest,
    branches: tuple[Branch, ...],
    on_start: OnStart,
    on_commit: OnCommit,
) -> MigrationReply:
    """Migrate a database to the destination of the request.

    Raises:
        DatabaseLockedError: another process migrates the database.
    """
    try:
        connection = _connect(request.url)
    except Exception as error:  # noqa: BLE001 - whatever a driver raises
        return MigrationReply("unreachable", reason=describe_unreachable(error))
    lock = migration_lock(connection, Path(request.lock_file), request.lock_timeout_s)
    with connection, lock:
        status = compare(branches, read_versions_on(connection))
        connection.rollback()  # Alembic does not commit a transaction that Alembic did not begin.
        if refusal := _refusal(status, request):
            return refusal
        destination = _destination(status, request)
        if _is_done(status, request):
            return MigrationReply("unchanged", sorted(status.current))
        on_start(status.current)
        commits = _CommitCounter(connection, on_commit)
        try:
            _run_alembic(connection, branches, lambda script: _steps(script, status, request))
        except BaseException as error:  # noqa: BLE001 - a migration may raise anything
            commits_total = commits.count - (1 if _is_rejected_commit(error) else 0)
            is_rolled_back = connection.dialect.name in TRANSACTIONAL_ENGINES and commits_total == 0
            reason = describe_error(error)
            return MigrationReply("failed", reason=reason, is_rolled_back=is_rolled_back)
        return MigrationReply("migrated", sorted(destination))


def _refusal(status: RevisionStatus, request: MigrationRequest) -> MigrationReply | None:
    """Return why a database cannot be migrated from its revisions; None if nothing is wrong."""
    if request.downgrade_from is None:
        if not status.unknown:
            return None
        return MigrationReply("ahead", reason=describe_unknown(status))
    expected = frozenset(request.downgrade_from)
    if status.current in (expected, _destination(status, request)):
        return None
    return MigrationReply(
        "failed",
        reason=f"the database is at {format_revisions(status.current)}, but the run left it at "
        f"{format_revisions(expected)}; first downgrade later runs, with the code that they used",
    )


def _destination(status: RevisionStatus, request: MigrationRequest) -> frozenset[str]:
    return status.heads if request.destination is None else frozenset(request.destination)


def _is_done(status: RevisionStatus, request: MigrationRequest) -> bool:
    if request.destination is None:
        return status.state == "at head"
    return status.current == frozenset(request.destination)


class _CommitCounter:
    """Counts the COMMITs on a connection, before each COMMIT is sent."""

    def __init__(self, connection: Connection, on_commit: OnCommit) -> None:
        self.count = 0
        self._on_commit = on_commit
        event.listen(connection, "commit", self._note_commit)
        event.listen(connection, "before_cursor_execute", self._note_statement)

    def _note_commit(self, _: Connection) -> None:
        self._on_commit()
        self.count += 1

    def _note_statement(self, connection: Connection, _: Any, statement: str, *_args: Any) -> None:
        if _COMMIT.match(statement):  # A migration may run op.execute("COMMIT"), for example.
            self._note_commit(connection)


def _is_rejected_commit(error: BaseException) -> bool:
    """Return whether the engine answered COMMIT with an error.

    If the connection was lost, the effect of the COMMIT is unknown.
    """
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return False
    return error.statement is None  # Only a failed COMMIT has no statement in SQLAlchemy's error.


def _run_alembic(
    connection: Connection,
    branches: tuple[Branch, ...],
    steps: Callable[[ScriptDirectory], Iterator[MigrationStep]],
) -> None:
    script = _script_directory(tuple(branch.folder for branch in branches))
    engine = connection.dialect.name
    # Alembic passes the rows of alembic_version to `fn`, and raises for an unknown revision. The
    # table can have rows of former endpoints, so only the known revisions determine the steps.
    with EnvironmentContext(Config(), script, fn=lambda *_: list(steps(script))) as environment:
        environment.configure(
            connection=connection, transactional_ddl=engine in TRANSACTIONAL_ENGINES
        )
        with environment.begin_transaction():
            environment.run_migrations()
            if engine == "sqlite":
                _check_foreign_keys(connection)


def _steps(
    script: ScriptDirectory, status: RevisionStatus, request: MigrationRequest
) -> Iterator[MigrationStep]:
    current = tuple(sorted(status.current))
    destination = tuple(sorted(_destination(status, request)))
    if request.downgrade_from is None:
        found = list(script.iterate_revisions(destination, current, implicit_base=True))
        for revision in reversed(found):
            yield MigrationStep.upgrade_from_script(script.revision_map, revision)
    else:
        # The steps of a downgrade are the steps of the upgrade from the destination, in reverse
        # order.
        for revision in script.iterate_revisions(current, destination, implicit_base=True):
            yield MigrationStep.downgrade_from_script(script.revision_map, revision)


def _check_foreign_keys(connection: Connection) -> None:
    """Check foreign keys at the end, because SQLite has foreign keys off during migrations."""
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        tables = ", ".join(sorted({str(row[0]) for row in broken}))
        raise ValueError(f"{len(broken)} rows of {tables} refer to rows that do not exist")


@lru_cache
def _script_directory(folders: tuple[Path, ...]) -> ScriptDirectory:
    """Return the revisions of the given folders, cached for all databases with the same folders."""
    return ScriptDirectory(folders[0], version_locations=list(folders))


def _connect(text: str) -> Connection:
    url = with_connect_timeout(make_url(text))
    engine = create_engine(url, poolclass=NullPool)
    if url.get_backend_name() == "sqlite":
        if not url.database or ":memory:" in url.database or url.query.get("mode") == "memory":
            raise ValueError("another process cannot migrate a database in memory")
        check_file_not_lost(url)
        event.listen(engine, "connect", _disable_implicit_transactions)
        event.listen(engine, "begin", lambda each: each.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine.connect()


def _disable_implicit_transactions(connection: Any, _: object) -> None:
    """Keep Python's sqlite3 from beginning implicit transactions, which exclude DDL."""
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout = 30000")  # milliseconds
