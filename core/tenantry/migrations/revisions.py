"""Which revisions an endpoint's tables have, and where a database stands against them.

Revision files are read, not run, and Alembic is not imported: a host over ten thousand tenants
asks this at every build. `process` is where they run.
"""

import ast
import importlib.util
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tenantry.database.url import SCHEMA_QUERY, schema_problem
from tenantry.endpoints.loading import available_endpoints, find_endpoint
from tenantry.errors import EndpointError, TenantryError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine import URL

QUERY = "SELECT version_num FROM alembic_version"
"""What a database is at: a row per endpoint that has tables in it."""

_QUERY_WITH_SCHEMA = "SELECT version_num, current_schema() FROM alembic_version"
_TABLE_WITH_SCHEMA = "SELECT current_schema(), to_regclass('alembic_version')"

CONNECT_TIMEOUT_S = 10
"""How long a database server may take to answer, unless the URL says it itself."""

State = Literal["at head", "behind", "ahead"]

_REVISION_FILE = re.compile(r"(?!\.#|__init__).*\.py")  # what Alembic takes for one
_NO_TABLE_STATES = ("42P01", "42S02")  # SQLSTATE of PostgreSQL and others: undefined table
_NO_COLUMN_STATES = ("42703", "42S22")
_NO_COLUMN_TEXTS = ("no such column", "has no column named")  # SQLite's


class SchemaError(TenantryError):
    """A PostgreSQL connection is not in the schema that its URL names: it may be another's."""


class LostDatabaseError(TenantryError):
    """A SQLite file was there and is gone: an empty one in its place would hide that."""


@dataclass(frozen=True)
class Branch:
    """The revisions of one endpoint: a branch of the history of every database that has it."""

    endpoint: str
    folder: Path
    revisions: frozenset[str]
    heads: frozenset[str]
    """Those that no other one follows."""


@dataclass(frozen=True)
class Standing:
    """Where one database stands against the code."""

    current: frozenset[str]
    """What it is at, of the endpoints that are asked about."""
    heads: frozenset[str]
    newer: frozenset[str] = frozenset()
    """What it is at, and only newer code of these endpoints can know: it cannot be upgraded."""
    state: State = "at head"
    """`behind`: tables of an endpoint are not what its code wants; `ahead`: some are newer."""


def read_branches(endpoints: Iterable[str]) -> tuple[Branch, ...]:
    """Return the branch of each endpoint that has tables, in their order.

    Args:
        endpoints: as they stand in `BLUEPRINTS`.

    Raises:
        EndpointError: there is no such endpoint, a revision file cannot be read, or two of them
            have one id.
    """
    branches: list[Branch] = []
    owners: dict[str, str] = {}
    for name in endpoints:
        for branch in _branch_of(name):
            for revision in sorted(branch.revisions & owners.keys()):
                text = (
                    f"endpoint {name!r}: revision {revision!r} is one of {owners[revision]!r} too"
                )
                raise EndpointError(name, f"{text}; begin its id with the endpoint's name.")
            owners |= dict.fromkeys(branch.revisions, name)
            branches.append(branch)
    return tuple(branches)


def compare(branches: Collection[Branch], rows: Collection[str]) -> Standing:
    """Return where a database with these rows in `alembic_version` stands.

    Rows of endpoints that a tenant had and has no more count neither for nor against it.
    """
    known = frozenset[str]().union(*(branch.revisions for branch in branches))
    heads = frozenset[str]().union(*(branch.heads for branch in branches))
    unknown = frozenset(rows) - known
    if unknown:
        there = read_branches(available_endpoints())
        unknown = unknown.difference(*(branch.revisions for branch in there))
    current = known.intersection(rows)
    newer = frozenset[str]()
    state: State = "at head"
    for branch in branches:
        if branch.heads <= current:
            continue
        is_begun = bool(branch.revisions & current)
        own = frozenset() if is_begun else frozenset(row for row in unknown if _may_be(row, branch))
        newer |= own
        state = "ahead" if own and state != "behind" else "behind"
    return Standing(current, heads, newer, state)


def _may_be(row: str, branch: Branch) -> bool:
    """Whether a revision that is in no file may be one of newer code of this endpoint."""
    name = branch.endpoint.rpartition(".")[2]
    begins = re.compile(rf"{re.escape(name)}(?![a-zA-Z])").match
    return bool(begins(row)) or not all(begins(known) for known in branch.revisions)


def look(url: "URL") -> frozenset[str]:
    """Return the rows of a database's `alembic_version`, by one query on the bare driver.

    A SQLite file that is not there is at nothing, and is not made.

    Raises:
        LostDatabaseError: it was there.
        SchemaError: its schema is not the one that its URL names.
        Exception: what the driver raises when the database cannot be reached.
    """
    if url.get_backend_name() == "sqlite" and not is_there(url):
        check_not_lost(url)
        return frozenset()
    dialect = url.get_dialect()()
    driver = dialect.import_dbapi()
    args, options = dialect.create_connect_args(with_timeout(url))
    is_postgres = url.get_backend_name() == "postgresql"
    if url.drivername == "postgresql+psycopg":
        options["autocommit"] = True  # one word to the server less
    connection = driver.connect(*args, **options)
    try:
        cursor = connection.cursor()
        found = _rows(cursor, _QUERY_WITH_SCHEMA if is_postgres else QUERY, driver.Error)
        if is_postgres and not found:
            connection.rollback()  # which a missing table has spoiled
            cursor.execute(SCHEMA_QUERY)
        if is_postgres:
            _check_schema(url, found[0][1] if found else cursor.fetchone()[0])
        return frozenset(row[0] for row in found)
    finally:
        connection.close()


def _rows(cursor: Any, query: str, kind: type[Exception]) -> list[Any]:
    """Return what a query finds on the bare driver; nothing where there is no such table."""
    try:
        cursor.execute(query)
        return list(cursor.fetchall())
    except kind as error:
        if _is_without_table(error):
            return []
        raise


def _check_schema(url: "URL", found: str | None) -> None:
    if wrong := schema_problem(url, found):
        raise SchemaError(f"{wrong}.")


def look_through(engine: "Engine") -> frozenset[str]:
    """Return the same through an engine, whose pool and limits hold.

    Raises:
        Exception: what the engine raises when the database cannot be reached.
    """
    with engine.connect() as connection:
        return look_at(connection)


def look_at(connection: "Connection") -> frozenset[str]:
    """Return the same through a connection that is open; begins a transaction on it.

    Raises:
        SchemaError: its schema is not the one that its URL names.
        Exception: what the connection raises when the database cannot be read.
    """
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415 - a connection is there: it is loaded

    if connection.dialect.name == "postgresql":
        schema, table = connection.exec_driver_sql(_TABLE_WITH_SCHEMA).one()
        _check_schema(connection.engine.url, schema)
        if table is None:
            return frozenset()
    try:
        return frozenset(connection.exec_driver_sql(QUERY).scalars())
    except DBAPIError as error:
        if error.orig is None or not _is_without_table(error.orig):
            raise
        return frozenset()


def shown(revisions: Collection[str]) -> str:
    """Return `0001, 0002`, or `nothing`, as messages show them."""
    return ", ".join(sorted(revisions)) or "nothing"


def ahead(standing: Standing) -> str:
    """Say what to do about a database that newer code wrote."""
    return (
        f"it is at {shown(standing.newer)}, which no endpoint here knows: newer code brought it "
        "there, or an endpoint that is not enabled any more; run the code that knows it, or, if "
        "none ever will, delete that row of its table alembic_version."
    )


def unreachable(error: BaseException) -> str:
    """Say that a database does not answer, and how its driver puts it."""
    return f"its database cannot be asked: {one_line(error)}."


def one_line(error: BaseException) -> str:
    """Return what an exception says, on one line, without SQLAlchemy's links and statements."""
    cause = getattr(error, "orig", None) or error
    try:
        text = " ".join(f"{type(cause).__name__}: {cause}".split()).removesuffix(":")
    except BaseException:  # noqa: BLE001 - its own __str__ may raise
        text = type(cause).__name__
    return text.rstrip(".")


def is_there(url: "URL") -> bool:
    """Whether a SQLite URL names a file that is there; in memory, nothing ever is."""
    path = (url.database or "").removeprefix("file:")
    return bool(path) and Path(path).is_file()


def check_not_lost(url: "URL") -> None:
    """Refuse a SQLite file that was there, as the marker beside it says, and is gone.

    Raises:
        LostDatabaseError: it is.
    """
    path = Path((url.database or "").removeprefix("file:"))
    marker = path.with_name(f"{path.name or 'none'}.made")
    if marker.exists() and not path.exists():
        text = f"its file {path} is gone; restore it, or delete {marker.name} too"
        raise LostDatabaseError(text)


def with_timeout(url: "URL") -> "URL":
    """Return the URL with a time limit for connecting, where its driver is known to have one."""
    if url.drivername == "postgresql+psycopg" and "connect_timeout" not in url.query:
        return url.update_query_dict({"connect_timeout": str(CONNECT_TIMEOUT_S)})
    return url


def is_amiss(error: BaseException) -> bool:
    """Whether a driver says that there is no such table or column."""
    if _is_without_table(error) or getattr(error, "sqlstate", None) in _NO_COLUMN_STATES:
        return True
    return any(text in str(error) for text in _NO_COLUMN_TEXTS)


def _is_without_table(error: BaseException) -> bool:
    state = getattr(error, "sqlstate", None)
    return state in _NO_TABLE_STATES or "no such table" in str(error)


def _branch_of(name: str) -> Iterator[Branch]:
    spec = importlib.util.find_spec(find_endpoint(name))
    for package in () if spec is None else spec.submodule_search_locations or ():
        folder = Path(package, "migrations")
        try:
            with os.scandir(folder) as entries:
                files = sorted(
                    (entry.name, entry.stat().st_mtime_ns)
                    for entry in entries
                    if _REVISION_FILE.fullmatch(entry.name)
                )
        except (FileNotFoundError, NotADirectoryError):
            continue  # it has no tables
        if files:
            yield read_branch(name, folder, tuple(files))


@lru_cache(maxsize=1000)
def read_branch(endpoint: str, folder: Path, files: tuple[tuple[str, int], ...]) -> Branch:
    """Return what the revision files of a folder say; remembered while they do not change.

    Args:
        endpoint: as it stands in `BLUEPRINTS`.
        folder: its `migrations/`.
        files: name and time of change of each.

    Raises:
        EndpointError: one of them cannot be read, or there is no order in them.
    """
    follows: dict[str, tuple[str, ...]] = {}
    for file, _ in files:
        try:
            said = _literals((folder / file).read_bytes())
            revision, before = said["revision"], said.get("down_revision")
        except (OSError, SyntaxError, ValueError, KeyError) as error:
            text = f"endpoint {endpoint!r}: migrations/{file} cannot be read: {error!r}"
            remedy = "write revision = '…' and down_revision = '…' or None as plain values."
            raise EndpointError(endpoint, f"{text}; {remedy}") from error
        if revision in follows:
            text = f"endpoint {endpoint!r}: revision {revision!r} is in two files of migrations/"
            raise EndpointError(endpoint, f"{text}; give one of them another.")
        follows[revision] = (before,) if isinstance(before, str) else tuple(before or ())
    followed = {before for ids in follows.values() for before in ids}
    if missing := sorted(followed - follows.keys()):
        text = f"endpoint {endpoint!r}: a revision follows {missing[0]!r}, which is in no file"
        raise EndpointError(endpoint, f"{text} of migrations/; bring it back.")
    heads = frozenset(follows.keys() - followed)
    return Branch(endpoint, folder, frozenset(follows), heads)


def _literals(source: bytes) -> dict[str, Any]:
    """Return what stands at the top of a file as a plain assignment, for the names that count."""
    found: dict[str, Any] = {}
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and target.id in ("revision", "down_revision"):
                value = getattr(node, "value", None)
                found[target.id] = ast.literal_eval(value) if value is not None else None
    if not isinstance(found.get("revision"), str):
        raise ValueError("no revision")  # noqa: TRY004 - one kind of error for the caller
    return found
