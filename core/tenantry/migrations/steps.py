"""Brings one database somewhere, by the steps of its endpoints' revisions, all in one transaction.

Whatever a revision does is done to the process that this runs in: `process`. Alembic's
`op` is one for the whole process, so databases are migrated one after the other in each.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationStep
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import DBAPIError

from tenantry.migrations.locks import locked
from tenantry.migrations.revisions import (
    Branch,
    Standing,
    ahead,
    check_not_lost,
    compare,
    look_at,
    one_line,
    shown,
    unreachable,
    with_timeout,
)

TRANSACTIONAL = ("postgresql", "sqlite")
"""The engines whose DDL a transaction takes back; on SQLite, once we begin it ourselves."""

VERSION_TABLE = "alembic_version"
"""Where Alembic keeps what a database is at."""

_COMMIT = re.compile(r"\s*(commit|end)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """One database to bring somewhere."""

    tenant: str
    url: str
    endpoints: list[str]
    lock_file: str
    """What is locked where the engine has no lock of its own."""
    lock_wait_s: float
    take_back: tuple[list[str], list[str]] | None = None
    """From where, to where; None: up, to the goal."""
    goal: list[str] | None = None
    """None: the heads."""


@dataclass(frozen=True)
class Parent:
    """What the process that started this one is told in the middle of a migration."""

    begins: Callable[[frozenset[str]], None]
    """With what the database is at, before it is changed."""
    commits: Callable[[], None]
    """Before each COMMIT: should this process be lost in it, there may be something to look for."""


class UnfitError(Exception):
    """A database is not where it can be brought from."""

    def __init__(self, text: str, state: str = "failed") -> None:
        super().__init__(text)
        self.state = state


def migrate(request: Request, branches: tuple[Branch, ...], parent: Parent) -> Mapping[str, object]:
    """Bring a database where it is wanted; return how that went.

    Raises:
        UnfitError: it cannot be reached, or is not where it can be brought from.
        LockedError: somebody else migrates it.
    """
    with _connected(request) as connection, locked(connection, request):
        standing = compare(branches, look_at(connection))
        connection.rollback()  # Alembic leaves the transaction to whoever has begun one
        _refuse_unfit(standing, request)
        if _is_done(standing, request):
            return {"state": "was there", "current": sorted(standing.current)}
        parent.begins(standing.current)
        commits = _commits(connection, parent.commits)
        try:
            _run(connection, branches, standing, request)
        except BaseException as error:  # noqa: BLE001 - a migration may raise anything
            is_whole = len(commits) == _is_refused_commit(error)
            is_whole = is_whole and connection.dialect.name in TRANSACTIONAL
            return {"state": "failed", "reason": one_line(error), "is_whole": is_whole}
        return {"state": "done", "current": sorted(_goal(standing, request))}


def _commits(connection: Connection, tell: Callable[[], None]) -> list[str]:
    """Return a list that grows with each COMMIT on a connection, before it is tried."""
    commits: list[str] = []

    def note(statement: str) -> None:
        if _COMMIT.match(statement):
            tell()
            commits.append(statement)

    event.listen(connection, "commit", lambda _: note("COMMIT"))
    event.listen(connection, "before_cursor_execute", lambda *words: note(words[2]))
    return commits


def _is_refused_commit(error: BaseException) -> bool:
    """Whether the engine answered a COMMIT with an error; of a lost connection nobody knows."""
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return False
    return error.statement is None  # of all else SQLAlchemy names the statement


def _refuse_unfit(standing: Standing, request: Request) -> None:
    """Refuse a database that is not where it can be brought from.

    Raises:
        UnfitError: it has gone on since the run, or only newer code can know what it is at.
    """
    if request.take_back is None:
        if standing.newer:
            raise UnfitError(ahead(standing), "ahead")
        return
    came_to, goal = map(frozenset, request.take_back)
    if standing.current not in (came_to, goal):
        raise UnfitError(
            f"it is at {shown(standing.current)}, not at {shown(came_to)}, where the run left "
            "it; take back later runs first, with the code that they were made with"
        )


def _is_done(standing: Standing, request: Request) -> bool:
    """Whether nothing is left to do."""
    if request.take_back is None and request.goal is None:
        return standing.state == "at head"
    return standing.current == _goal(standing, request)


def _goal(standing: Standing, request: Request) -> frozenset[str]:
    if request.take_back is not None:
        return frozenset(request.take_back[1])
    return standing.heads if request.goal is None else frozenset(request.goal)


def _run(
    connection: Connection, branches: tuple[Branch, ...], standing: Standing, request: Request
) -> None:
    """Run the migrations of one database, all in one transaction."""
    script = _script(tuple(branch.folder for branch in branches))

    def steps(*_: object) -> list[MigrationStep]:
        # From the rows that are ours: Alembic raises at those of endpoints that are no more.
        return list(_steps(script, standing, request))

    is_transactional = connection.dialect.name in TRANSACTIONAL
    with EnvironmentContext(Config(), script, fn=steps) as environment:
        environment.configure(connection=connection, transactional_ddl=is_transactional)
        with environment.begin_transaction():
            environment.run_migrations()
            if connection.dialect.name == "sqlite":
                _check_foreign_keys(connection)


def _steps(script: ScriptDirectory, standing: Standing, request: Request) -> Iterator[Any]:
    current = tuple(sorted(standing.current))
    goal = tuple(sorted(_goal(standing, request)))
    if request.take_back is None:
        found = list(script.iterate_revisions(goal, current, implicit_base=True))
        for revision in reversed(found):
            yield MigrationStep.upgrade_from_script(script.revision_map, revision)
    else:
        # Exactly what bringing it from there to here applied, backwards.
        for revision in script.iterate_revisions(current, goal, implicit_base=True):
            yield MigrationStep.downgrade_from_script(script.revision_map, revision)


def _check_foreign_keys(connection: Connection) -> None:
    """Do what SQLite's foreign keys would have done: they are off while tables are rebuilt."""
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        tables = ", ".join(sorted({str(row[0]) for row in broken}))
        raise ValueError(f"{len(broken)} rows of {tables} refer to rows that are not there")


@lru_cache
def _script(folders: tuple[Path, ...]) -> ScriptDirectory:
    """Return the revisions of some endpoints; run once, and then the same for every database."""
    return ScriptDirectory(folders[0], version_locations=list(folders))


def _connected(request: Request) -> Connection:
    try:
        return _connect(request)
    except Exception as error:
        raise UnfitError(unreachable(error), "unreachable") from error


def _connect(request: Request) -> Connection:
    url = with_timeout(make_url(request.url))
    if url.get_backend_name() == "sqlite":
        if not url.database or ":memory:" in url.database or url.query.get("mode") == "memory":
            raise ValueError("a database in memory is there for its own process only")
        check_not_lost(url)
        engine = create_engine(url, poolclass=NullPool)
        event.listen(engine, "connect", _leave_transactions_to_us)
        event.listen(engine, "begin", lambda it: it.exec_driver_sql("BEGIN IMMEDIATE"))
        return engine.connect()
    engine = _server(url._replace(username=None, password=None, database=None))
    engine.url = url  # of which there is one at a time
    return engine.connect()


@lru_cache
def _server(server: URL) -> Engine:
    """Return an engine that connects to whichever database of a server its `url` names by then.

    One for all databases of a server: what SQLAlchemy asks a server when an engine first connects,
    and what it compiles, costs more than most migrations.
    """

    def connect() -> Any:
        args, options = engine.dialect.create_connect_args(engine.url)
        return engine.dialect.connect(*args, **options)

    engine = create_engine(server, poolclass=NullPool, creator=connect)
    if engine.dialect.name == "postgresql":
        _look_up_by_name(engine.dialect)
    return engine


def _look_up_by_name(dialect: Any) -> None:
    """Have a PostgreSQL dialect find Alembic's own table by its name, and not by a join.

    Where there is none yet, Alembic and SQLAlchemy each ask for it, by a query over the catalogues
    that costs the server more than it takes to create the table.
    """
    ask = dialect.has_table

    def has_table(connection: Connection, name: str, schema: str | None = None, **how: Any) -> bool:
        if name != VERSION_TABLE or schema is not None:
            return bool(ask(connection, name, schema, **how))
        return connection.exec_driver_sql(f"SELECT to_regclass('{name}')").scalar() is not None

    dialect.has_table = has_table
    one_by_one = getattr(DefaultDialect, "has_multi_table", None)  # new in SQLAlchemy 2.1
    if one_by_one is not None:
        dialect.has_multi_table = partial(one_by_one, dialect)


def _leave_transactions_to_us(connection: Any, _: object) -> None:
    """Keep Python's sqlite3 from beginning transactions at INSERT only, with DDL outside."""
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout = 30000")
