"""A capsule becomes a tenant's folder and database, or leaves nothing.

Writes no tenant file and no secret: commands do, inside `restoring`.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sqlalchemy import URL

from core.capsules.contents import (
    Amounts,
    Capsule,
    Contents,
    TableContents,
    Tell,
    folder_of,
    sentence,
)
from core.capsules.database import check_empty, empty, is_server
from core.capsules.file import CapsuleError
from core.capsules.folder import lay_out, staging
from core.capsules.reading import file_path, parts_again, rows_of
from core.capsules.rows import Filling, Table, filling
from core.errors import EndpointError, TenantryError
from core.migration_children import Nursery
from core.migrator import Migrator, Target
from core.revisions import Branch, one_line, read_branches, shown


@dataclass(frozen=True)
class Place:
    """Where a capsule becomes a tenant."""

    name: str
    data_dir: Path
    database: URL | None = None
    """None: the default file in its folder."""


@contextmanager
def restoring(capsule: Capsule, place: Place, tell: Tell) -> Iterator[Amounts]:
    """Make a tenant's folder and database; both are gone again if the block fails.

    Args:
        capsule: what `read_capsule` returned.
        place: where; there is no folder of this name, and nothing in the database.
        tell: is told how far it is.

    Yields:
        How much was restored; what the capsule has and no migration here makes is left out.

    Raises:
        TenantryError: it cannot be done; the text says if anything is left.
    """
    branches = known_branches(capsule.contents)
    if place.database is not None:
        check_empty(place.database)
    _check_room(capsule, place.data_dir)
    with staging(place.data_dir, place.name) as staged:
        built = staged / "tenant"
        built.mkdir(mode=0o700)
        with ExitStack() as undo, _taken_back(undo):
            url = _building_at(place, built)
            if is_server(url):
                undo.callback(empty, url)
            else:
                undo.callback(_remove_sqlite, url)
            with _explained(capsule.path):
                text = url.render_as_string(hide_password=False)
                goal = capsule.contents.goal
                _migrate(Target(place.name, text, branches, staged / "lock", goal=goal), tell)
                amounts = _fill(capsule, place, url, built, tell)
                _move(url, place, built, undo)
            tell("done", 0, 0)
            yield amounts
            undo.pop_all()


def known_branches(contents: Contents) -> tuple[Branch, ...]:
    """Return the endpoints whose tables a capsule has, those included that are not enabled.

    Raises:
        CapsuleError: this code does not know what the tables were at.
    """
    found: list[Branch] = []
    for name, revisions in contents.revisions.items():
        try:
            branches = read_branches([name])
        except EndpointError as error:
            raise CapsuleError(str(error)) from error
        known = frozenset[str]().union(*(branch.revisions for branch in branches))
        if unknown := frozenset(revisions) - known:
            text = f"its tables of {name!r} are at {shown(unknown)}, which this code does not know"
            raise CapsuleError(f"{text}; run the code that does (Tenantry {contents.tenantry!r}).")
        found += branches
    return tuple(found)


def _check_room(capsule: Capsule, data_dir: Path) -> None:
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    free = shutil.disk_usage(data_dir).free
    if capsule.amounts.size_bytes > free:
        text = f"{capsule.path} holds {capsule.amounts.size_bytes:,} bytes, and {data_dir} has"
        raise CapsuleError(f"{text} {free:,} left; make room.")


@contextmanager
def _taken_back(undo: ExitStack) -> Iterator[None]:
    """Take back what was done when the block fails, and say what is left if that fails too."""
    try:
        yield
    except BaseException as error:
        try:
            undo.close()
        except TenantryError as left:
            raise CapsuleError(f"{sentence(error)}\n{left}") from error
        raise


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say of which capsule whatever is raised in the block is."""
    try:
        yield
    except TenantryError as error:
        raise CapsuleError(f"{path}: {sentence(error)}") from error
    except Exception as error:  # whatever a driver or the system raises
        raise CapsuleError(f"{path}: {one_line(error)}.") from error


def _building_at(place: Place, built: Path) -> URL:
    """Return where the database is made: files under another name, until all is there."""
    if place.database is None:
        path = built / f"{place.name}.sqlite3"
    elif is_server(place.database):
        return place.database
    else:
        final = Path(str(place.database.database))
        path = final.with_name(f".{final.name}.restoring")
        path.unlink(missing_ok=True)
    return URL.create("sqlite", database=str(path.absolute()))


def _remove_sqlite(url: URL) -> None:
    for end in ("", "-journal", "-wal", "-shm"):
        Path(f"{url.database}{end}").unlink(missing_ok=True)


def _migrate(target: Target, tell: Tell) -> None:
    """Make the tables as they were when the capsule was made, in a process of its own."""
    if not target.branches:
        return
    tell("making tables", 0, 0)
    with Nursery() as nursery, Migrator(nursery) as migrator:
        result = migrator.upgrade(target, lambda _: None)
    if result.state == "failed":
        raise CapsuleError(f"its tables cannot be made: {result.reason}")


def _fill(capsule: Capsule, place: Place, url: URL, built: Path, tell: Tell) -> Amounts:
    """Put rows and files where they belong; rows in one transaction, which ends with the file."""
    with ExitStack() as ending, capsule.path.open("rb") as file:
        tables = {folder_of(one.name): _table(one) for one in capsule.contents.tables}
        database: Filling | None = None
        fitting: list[Table] = []
        if capsule.contents.revisions:
            database = ending.enter_context(filling(url))
            fitting = _fitting(database, list(tables.values()))
            database.clear(fitting)
        amounts = Amounts(dict.fromkeys((one.name for one in fitting), 0))
        amounts.left_out = [one.name for one in tables.values() if one not in fitting]
        for part in parts_again(capsule, file):
            table = tables.get(str(PurePosixPath(part.name).parent))
            if table is None:
                path = file_path(part, f"{place.name}.sqlite3")
                lay_out(built, path, part.chunks(), part.mode, part.mtime)
                amounts.files += 1
                tell("files", amounts.files, capsule.amounts.files)
            elif database is not None and table in fitting:
                rows = rows_of(part, len(table.columns))
                database.insert(table, rows)
                amounts.rows[table.name] += len(rows)
                done, total = amounts.rows[table.name], capsule.amounts.rows[table.name]
                tell(f"rows of {table.name}", done, total)
            amounts.size_bytes += part.size_bytes
        if database is not None:
            database.finish(fitting)
    return amounts


def _table(said: TableContents) -> Table:
    return Table(said.name, tuple(said.columns))


def _fitting(database: Filling, tables: list[Table]) -> list[Table]:
    """Return the tables that the migrations have made.

    Raises:
        CapsuleError: one has other columns than its rows.
    """
    there = database.there()
    fitting = [table for table in tables if table.name in there]
    for table in fitting:
        if other := there[table.name].symmetric_difference(table.columns):
            text = f"table {table.name!r}: its migrations make other columns than it had"
            raise CapsuleError(f"{text}: {', '.join(sorted(other))}")
    return fitting


def _move(url: URL, place: Place, built: Path, undo: ExitStack) -> None:
    """Give everything its name."""
    if place.database is not None and not is_server(url):
        final = Path(str(place.database.database))
        Path(str(url.database)).rename(final)
        undo.callback(final.unlink, missing_ok=True)
    folder = place.data_dir / place.name
    built.rename(folder)
    undo.callback(shutil.rmtree, folder)
