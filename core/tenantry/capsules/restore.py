"""A capsule becomes a tenant's folder and database, or leaves nothing.

Writes no tenant file and no secret: commands do, inside `restore_capsule`.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import URL

from tenantry.capsules.archive import ArchiveMember, CapsuleError
from tenantry.capsules.capsule import (
    Capsule,
    CapsuleMetadata,
    CapsuleSummary,
    ProgressCallback,
    TableMetadata,
    sentence,
)
from tenantry.capsules.new_database import NewDatabase, NewDatabaseFile, is_server_database
from tenantry.capsules.postgres_database import NewPostgresDatabase
from tenantry.capsules.reading import file_path, parts_again, rows_of
from tenantry.capsules.row_import import RowImport, importing_rows
from tenantry.capsules.rows import Table
from tenantry.capsules.staging import RestoreStaging
from tenantry.capsules.tenant_folder import is_of_database, lay_out
from tenantry.errors import EndpointError, TenantryError
from tenantry.migrations.revisions import Branch, format_revisions, read_branches
from tenantry.migrations.runner import MigrationRunner, MigrationTarget
from tenantry.migrations.version_table import describe_error

SPARE_BYTES = 64 << 20
"""What stays free on the disk, for the tenants that serve."""

BLOCK_BYTES = 4096
"""What a file or a folder takes on a disk, however little is in it."""


class PendingRestore:
    """A tenant's folder and database that are there, and go again unless they are `kept`.

    Args:
        amounts: how much there is; what the capsule has and no migration here makes is left out.
        workplace: where the folder was made.
        database: the database.
    """

    def __init__(
        self, amounts: CapsuleSummary, workplace: RestoreStaging, database: NewDatabase
    ) -> None:
        self.summary = amounts
        self._workplace = workplace
        self._database = database

    def add(self, path: Path, text: str) -> None:
        """Write a file below `<data>` that goes with them, for its owner only.

        Raises:
            TenantryError: it is there.
        """
        self._workplace.add(path, text)

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Let all stay, if the block does not fail: in it, the tenant file is written.

        A process that is killed in the block leaves a folder and a database without a tenant file.
        The other way round, what is swept could be a tenant's.

        Raises:
            TenantryError: they cannot stay.
        """
        self._database.keep()
        with self._workplace.commit():
            yield


@contextmanager
def restore_capsule(
    capsule: Capsule, workplace: RestoreStaging, url: URL | None, tell: ProgressCallback
) -> Iterator[PendingRestore]:
    """Make a tenant's folder and database; both are gone again after the block if it fails.

    Args:
        capsule: what `read_capsule` returned.
        workplace: of the tenant to be; nobody else makes it now.
        url: its database, in which nothing is; None: the default file in its folder.
        tell: is told how far it is.

    Raises:
        TenantryError: it cannot be done; the text says if anything is left.
    """
    branches = capsule_branches(capsule.metadata)
    with _taking_back(_database(workplace, url)) as database:
        _check_room(capsule, workplace.data_dir, database.folder)
        with _explained(capsule.path):
            text = database.url.render_as_string(hide_password=False)
            target = MigrationTarget(
                tenant=workplace.name,
                url=text,
                branches=branches,
                lock_file=workplace.folder / "lock",
                destination=capsule.metadata.target_revisions,
            )
            _migrate(target, tell)
            database.note()
            amounts = _fill(capsule, workplace, database, tell)
            workplace.move()
        tell("done", 0, 0)
        yield PendingRestore(amounts, workplace, database)


def capsule_branches(contents: CapsuleMetadata) -> tuple[Branch, ...]:
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
            names = format_revisions(unknown)
            text = f"its tables of {name!r} are at {names}, which this code does not know"
            raise CapsuleError(f"{text}; run the code that does (Tenantry {contents.tenantry!r}).")
        found += branches
    return tuple(found)


def _check_room(capsule: Capsule, data_dir: Path, rows_in: Path | None) -> None:
    """Check that the disks have room for what a capsule says that it holds.

    Raises:
        CapsuleError: they have not.
    """
    amounts = capsule.summary
    count = amounts.files + capsule.folders
    needed = {data_dir: amounts.files_size_bytes + count * BLOCK_BYTES}
    if rows_in is not None:
        folder = data_dir if rows_in.is_relative_to(data_dir) else rows_in
        needed[folder] = needed.get(folder, 0) + amounts.rows_size_bytes
    for folder, size in needed.items():
        if size > (free := _free(folder)):
            text = f"{capsule.path} needs {size:,} bytes, and {folder} has {free:,} to spare"
            raise CapsuleError(f"{text}; make room.")
    system = os.statvfs(data_dir)
    if system.f_files and count > system.f_favail:
        text = f"{capsule.path} holds {count:,} files and folders, and {data_dir} can take"
        raise CapsuleError(f"{text} {system.f_favail:,} more; make room.")


def _check_left(folder: Path | None, part: ArchiveMember) -> None:
    """Check the same on the way: others write, too, and a database is larger than its rows."""
    if folder is not None and part.size_bytes > (free := _free(folder)):
        text = f"{part.name!r} needs {part.size_bytes:,} bytes, and {folder} has {free:,} to spare"
        raise CapsuleError(f"{text}; make room")


def _free(folder: Path) -> int:
    return max(shutil.disk_usage(folder).free - SPARE_BYTES, 0)


def _database(workplace: RestoreStaging, url: URL | None) -> NewDatabase:
    if url is None:
        return NewDatabase(workplace.tenant / f"{workplace.name}.sqlite3")
    return NewPostgresDatabase(url) if is_server_database(url) else NewDatabaseFile(url)


@contextmanager
def _taking_back(database: NewDatabase) -> Iterator[NewDatabase]:
    """Take back what was made in a database when the block fails, and say if that fails too."""
    failure: BaseException | None = None
    try:
        with database:
            try:
                yield database
            except BaseException as error:
                failure = error
                raise
    except TenantryError as left:
        if failure is None or left is failure:
            raise
        raise CapsuleError(f"{sentence(failure)}\n{left}") from failure


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say of which capsule whatever is raised in the block is."""
    try:
        yield
    except TenantryError as error:
        raise CapsuleError(f"{path}: {sentence(error)}") from error
    except Exception as error:  # whatever a driver or the system raises
        raise CapsuleError(f"{path}: {describe_error(error)}.") from error


def _migrate(target: MigrationTarget, tell: ProgressCallback) -> None:
    """Make the tables as they were when the capsule was made, in a process of its own."""
    if not target.branches:
        return
    tell("making tables", 0, 0)
    with MigrationRunner() as runner:
        result = runner.upgrade(target)
    if result.state not in ("migrated", "unchanged"):
        raise CapsuleError(f"its tables cannot be made: {result.reason}")


def _fill(
    capsule: Capsule, workplace: RestoreStaging, database: NewDatabase, tell: ProgressCallback
) -> CapsuleSummary:
    """Put rows and files where they belong; rows in one transaction, which ends with the file."""
    contents, amounts = capsule.metadata, CapsuleSummary()
    with ExitStack() as ending, capsule.path.open("rb") as file:
        tables: RowImport | None = None
        fitting: list[Table] = []
        if contents.revisions:
            tables = ending.enter_context(importing_rows(database.url, contents.engine))
            fitting = _fitting(tables, [_table(one) for one in contents.tables])
            tables.clear(fitting)
        amounts.rows = dict.fromkeys((one.name for one in fitting), 0)
        amounts.left_out = [one.name for one in contents.tables if _table(one) not in fitting]
        for part, said in parts_again(capsule, file):
            if said is None:
                path = file_path(part)
                if is_of_database(path, f"{workplace.name}.sqlite3"):
                    amounts.left_out.append(str(path))  # a file that would be its database
                    continue
                _check_left(workplace.data_dir, part)
                lay_out(workplace.tenant, path, part.chunks(), part.mode, part.mtime)
                amounts.files += 1
                amounts.files_size_bytes += part.size_bytes
                tell("files", amounts.files, capsule.summary.files)
            elif tables is not None and said.name in amounts.rows:
                _check_left(database.folder, part)
                amounts.rows[said.name] += _put(tables, part, _table(said))
                amounts.rows_size_bytes += part.size_bytes
                done, total = amounts.rows[said.name], capsule.summary.rows[said.name]
                tell(f"rows of {said.name}", done, total)
        if tables is not None:
            tables.finish(fitting)
    return amounts


def _put(tables: RowImport, part: ArchiveMember, table: Table) -> int:
    """Put the rows of a part into their table; return how many they are."""
    count = 0
    for rows in rows_of(part, len(table.columns)):
        tables.insert(table, rows)
        count += len(rows)
    return count


def _table(said: TableMetadata) -> Table:
    return Table(said.name, tuple(said.columns), said.positions)


def _fitting(database: RowImport, tables: list[Table]) -> list[Table]:
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
