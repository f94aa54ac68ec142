"""Runs the Alembic migrations of one database, those of all endpoints in one transaction.

Only `process_child` imports this module, because a revision may run any code in its process.
Alembic has only one `op` object for each process, so databases are migrated one after another.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import (
    HeadMaintainer,
    MigrationContext,
    MigrationStep,
    RevisionStep,
)
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from tenantry.database.options import command_options
from tenantry.migrations.foresight import PostgresForesight
from tenantry.migrations.locks import lift_timeouts, migration_lock
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
    read_version_table,
    with_connect_timeout,
)

OnCommit = Callable[[], None]
"""A function that is called before each COMMIT.

If the process dies during a COMMIT, nobody knows whether the transaction was committed.
"""

TRANSACTIONAL_ENGINES = ("postgresql", "sqlite")
"""The engines that can roll back DDL. In SQLite, this requires explicit transactions."""

READ_ONLY_STATE = "25006"  # SQLSTATE of read_only_sql_transaction

_COMMIT = re.compile(r"\s*(commit|end)\b", re.IGNORECASE)


def migrate(
    request: MigrationRequest,
    branches: tuple[Branch, ...],
    on_start: OnStart,
    on_commit: OnCommit,
) -> MigrationReply:
    """Migrate a database as requested.

    Raises:
        DatabaseLockedError: another process is migrating the database.
    """
    try:
        connection = _connect(request.url, request.options)
    except Exception as error:  # noqa: BLE001 - drivers raise many classes of exceptions
        return MigrationReply("unreachable", reason=describe_unreachable(error))
    lock = migration_lock(connection, Path(request.lock_file), request.lock_timeout_s)
    with connection, lock:
        versions = read_version_table(connection)
        status = compare(branches, versions or ())
        connection.rollback()  # Alembic does not commit a transaction that it did not begin.
        if refusal := _refusal(status, request):
            return refusal
        destination = _destination(status, request)
        if _is_done(status, request):
            return MigrationReply("unchanged", sorted(status.current))
        on_start(status.current)
        commits = _CommitCounter(connection, on_commit)
        foresight = PostgresForesight(connection) if request.is_foreseeing else None
        refusals = [] if foresight is None else foresight.refusals
        run = _Run(connection, request, status.current, destination, commits)
        try:
            run.migrate(branches, versions)
        except BaseException as error:  # noqa: BLE001 - a migration may raise any exception
            commits_total = commits.count - (1 if _is_rejected_commit(error) else 0)
            is_rolled_back = connection.dialect.name in TRANSACTIONAL_ENGINES and commits_total == 0
            reason = _describe_failure(error)
            return MigrationReply(
                "failed", reason=reason, is_rolled_back=is_rolled_back, refusals=refusals
            )
        return MigrationReply("migrated", sorted(destination), refusals=refusals)


def _refusal(status: RevisionStatus, request: MigrationRequest) -> MigrationReply | None:
    """Return why a database cannot be migrated, or None if it can."""
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


def _describe_failure(error: BaseException) -> str:
    reason = describe_error(error)
    if getattr(getattr(error, "orig", None), "sqlstate", None) == READ_ONLY_STATE:
        reason += "; the database is read-only; run the upgrade on a server that accepts writes"
    return reason


class _CommitCounter:
    """Counts each COMMIT on a connection before it is sent."""

    def __init__(self, connection: Connection, on_commit: OnCommit) -> None:
        self.count = 0
        self._on_commit = on_commit
        event.listen(connection, "commit", self._note_commit)
        event.listen(connection, "before_cursor_execute", self._note_statement)

    @contextmanager
    def of_all_connections(self) -> Iterator[None]:
        """Also count the commits of every connection that opens during the `with` block."""
        event.listen(Engine, "commit", self._note_commit)
        event.listen(Engine, "before_cursor_execute", self._note_statement)
        try:
            yield
        finally:
            event.remove(Engine, "commit", self._note_commit)
            event.remove(Engine, "before_cursor_execute", self._note_statement)

    def note(self) -> None:
        """Count a commit that is about to happen, or that nobody can see."""
        self._on_commit()
        self.count += 1

    def _note_commit(self, _: Connection) -> None:
        self.note()

    def _note_statement(self, connection: Connection, _: Any, statement: str, *_args: Any) -> None:
        if _COMMIT.match(statement):  # a migration may run op.execute("COMMIT")
            self._note_commit(connection)


def _is_rejected_commit(error: BaseException) -> bool:
    """Whether the engine rejected a COMMIT.

    If the connection was lost, nobody knows whether the transaction was committed.
    """
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return False
    return error.statement is None  # SQLAlchemy sets no statement for a COMMIT


@dataclass(frozen=True)
class _Run:
    """The migrations of one database. Those of endpoints run in one transaction."""

    connection: Connection
    request: MigrationRequest
    current: frozenset[str]
    destination: frozenset[str]
    commits: _CommitCounter

    def migrate(self, branches: tuple[Branch, ...], versions: frozenset[str] | None) -> None:
        """Run the migrations of the endpoints, then of the application; reversed for a downgrade.

        Args:
            branches: the revisions in the code.
            versions: the rows of the version table, or None if the table does not exist.
        """
        is_of_app = [False, True] if self.request.downgrade_from is None else [True, False]
        for kind in is_of_app:
            chosen = tuple(branch for branch in branches if branch.is_of_app is kind)
            revisions = frozenset[str]().union(*(branch.revisions for branch in chosen))
            if self.current & revisions == self.destination & revisions:
                continue
            if kind:
                self._migrate_app(chosen[0], revisions)
                versions = read_version_table(self.connection)
                self.connection.rollback()
            else:
                script = _script_directory(tuple(branch.folder for branch in chosen))
                steps = self._steps(script, revisions)
                _run_alembic(self.connection, script, versions, steps)

    def _migrate_app(self, branch: Branch, revisions: frozenset[str]) -> None:
        # Only a process with an application imports Flask.
        from tenantry.migrations.app_environment import (  # noqa: PLC0415 - see above
            AppMigrationError,
            run_app_migrations,
        )

        with self.commits.of_all_connections():
            if self.connection.dialect.name != "postgresql":
                self.commits.note()  # on this engine, the connection of env.py commits each step
            run_app_migrations(
                self.request.tenant,
                Path(branch.endpoint),
                self.request.url,
                lambda script: self._steps(script, revisions),
            )
        found = (read_version_table(self.connection) or frozenset()) & revisions
        self.connection.rollback()
        if found != self.destination & revisions:
            raise AppMigrationError(
                f"its env.py left the database at {format_revisions(found)}; end env.py with "
                "context.run_migrations() in context.begin_transaction(), and commit the "
                "transaction of the connection"
            )

    def _steps(self, script: ScriptDirectory, revisions: frozenset[str]) -> list[RevisionStep]:
        return list(
            _steps(
                script,
                tuple(sorted(self.current & revisions)),
                tuple(sorted(self.destination & revisions)),
                is_downgrade=self.request.downgrade_from is not None,
            )
        )


def _run_alembic(
    connection: Connection,
    script: ScriptDirectory,
    versions: frozenset[str] | None,
    steps: Sequence[RevisionStep],
) -> None:
    """Run migrations, and record each migration in the table `alembic_version`.

    Alembic's own loop, `run_migrations`, searches the system catalogs twice for the table, which
    takes 3 ms of the 20 ms of a small migration.

    Args:
        connection: an open connection without a transaction.
        script: the revisions in the code.
        versions: the rows of the table, or None if the table does not exist. The table can have
            rows of former endpoints.
        steps: the migrations in the order in which they run.
    """
    engine = connection.dialect.name
    with EnvironmentContext(Config(), script) as environment:
        environment.configure(
            connection=connection, transactional_ddl=engine in TRANSACTIONAL_ENGINES
        )
        context = environment.get_context()
        with environment.begin_transaction(), Operations.context(context):
            if engine == "postgresql":
                lift_timeouts(connection)
            if versions is None:
                _create_version_table(connection, context)
            heads = HeadMaintainer(context, versions or ())
            for step in steps:
                step.migration_fn()
                heads.update_to_step(step)
            if engine == "sqlite":
                _check_foreign_keys(connection)


def _create_version_table(connection: Connection, context: MigrationContext) -> None:
    table = context.impl.version_table_impl(
        version_table=context.version_table, version_table_schema=None, version_table_pk=True
    )
    table.create(connection, checkfirst=False)


def _steps(
    script: ScriptDirectory,
    current: tuple[str, ...],
    destination: tuple[str, ...],
    *,
    is_downgrade: bool,
) -> Iterator[RevisionStep]:
    if not is_downgrade:
        found = list(script.iterate_revisions(destination, current, implicit_base=True))
        for revision in reversed(found):
            yield MigrationStep.upgrade_from_script(script.revision_map, revision)
    else:
        # A downgrade undoes the steps of the corresponding upgrade, in reverse order.
        for revision in script.iterate_revisions(current, destination, implicit_base=True):
            yield MigrationStep.downgrade_from_script(script.revision_map, revision)


def _check_foreign_keys(connection: Connection) -> None:
    """Check foreign keys, because SQLite does not enforce them during migrations."""
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        tables = ", ".join(sorted({str(row[0]) for row in broken}))
        raise ValueError(f"{len(broken)} rows of {tables} refer to rows that do not exist")


@lru_cache
def _script_directory(folders: tuple[Path, ...]) -> ScriptDirectory:
    """Return the revisions in the given folders. The result is cached."""
    return ScriptDirectory(folders[0], version_locations=list(folders))


def _connect(text: str, options: Mapping[str, Any]) -> Connection:
    url = with_connect_timeout(make_url(text))
    engine = create_engine(url, poolclass=NullPool, connect_args=command_options(url, options))
    if url.get_backend_name() == "sqlite":
        if not url.database or ":memory:" in url.database or url.query.get("mode") == "memory":
            raise ValueError("another process cannot migrate a database in memory")
        check_file_not_lost(url)
        event.listen(engine, "connect", _disable_implicit_transactions)
        event.listen(engine, "begin", lambda each: each.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine.connect()


def _disable_implicit_transactions(connection: Any, _: object) -> None:
    """Stop sqlite3 from beginning implicit transactions, because these transactions exclude DDL."""
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout = 30000")  # milliseconds
