"""Creates the folder and the database of a tenant from a capsule.

If a step fails, neither the folder nor the database remains.

The module `new_tenant` calls `restore_capsule`, and writes the tenant file and the secrets.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import URL

from tenantry.capsules.archive import ArchiveMember, CapsuleError
from tenantry.capsules.capsule import (
    VERSION_TABLE,
    Capsule,
    CapsuleMetadata,
    CapsuleSummary,
    CapsuleTable,
    ProgressCallback,
    file_path,
    naming_errors,
    read_rows,
)
from tenantry.capsules.definition import create_tables
from tenantry.capsules.new_database import NewDatabase, NewDatabaseFile, is_server_database
from tenantry.capsules.postgres_database import NewPostgresDatabase
from tenantry.capsules.row_import import RowImport, importing_rows
from tenantry.capsules.snapshot import open_engine
from tenantry.capsules.staging import RestoreStaging
from tenantry.capsules.tenant_folder import belongs_to_database, is_program, write_file
from tenantry.database.options import NO_OPTIONS
from tenantry.errors import EndpointError
from tenantry.migrations.revisions import Branch, format_revisions, read_branches
from tenantry.migrations.runner import MigrationRunner, MigrationTarget

SPARE_BYTES = 64 << 20
"""Disk space that a restore leaves free for other tenants, in bytes."""

BLOCK_BYTES = 4096
"""Minimum disk space that a file takes, in bytes."""


@dataclass(frozen=True)
class PendingRestore:
    """The folder and the database of a restored tenant, before the tenant file exists.

    Unless `commit` is called, the end of the `restore_capsule` block removes the folder and the
    database.
    """

    summary: CapsuleSummary
    """The rows and files that were restored."""
    _staging: RestoreStaging
    _database: NewDatabase

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Keep the folder and the database, unless the `with` block fails.

        The caller must write the tenant file in the `with` block, and not earlier. If the process
        is killed in the `with` block, a folder and a database without a tenant file may remain,
        which is harmless. If the tenant file were written first, a killed process could leave a
        tenant file whose folder the next restore would remove.

        Raises:
            TenantryError: the folder or the database cannot be kept.
        """
        self._database.commit()
        with self._staging.commit():
            yield


@contextmanager
def restore_capsule(
    capsule: Capsule,
    staging: RestoreStaging,
    url: URL | None,
    on_progress: ProgressCallback,
    *,
    options: Mapping[str, Any] = NO_OPTIONS,
    app_dir: str | None = None,
    with_templates: bool = False,
    before_placing: Callable[[], None] = lambda: None,
) -> Iterator[PendingRestore]:
    """Create the folder and the database of a tenant, and remove both if the block fails.

    Args:
        capsule: the result of `read_capsule`.
        staging: the staging area of the new tenant.
        url: the URL of an empty database for the new tenant, or None for the default SQLite file in
            the tenant's folder.
        on_progress: a function that receives the progress of the restore.
        options: the `DATABASE_OPTIONS` of the new tenant.
        app_dir: the `APP_DIR` of the new tenant.
        with_templates: whether to restore the folders `templates` and `static`.
        before_placing: a function that is called before the new folder gets its final path.

    Raises:
        TenantryError: the restore failed. The text of the error names each file or database that
            could not be removed.
    """
    branches = capsule_branches(capsule.metadata, app_dir)
    with _new_database(staging, url, options) as database:
        check_disk_space(capsule, staging.data_dir, database.disk_folder)
        with naming_errors(str(capsule.path)):
            target = MigrationTarget(
                tenant=staging.name,
                url=database.url.render_as_string(hide_password=False),
                branches=branches,
                lock_file=staging.folder / "lock",
                destination=capsule.metadata.target_revisions,
                options=options,
            )
            _migrate(target, on_progress)
            _create_tables(capsule.metadata, database)
            database.record_migrated()
            summary = _import(
                capsule, staging, database, on_progress, with_templates=with_templates
            )
            before_placing()
            staging.move_into_place()
        on_progress("done", 0, 0)
        yield PendingRestore(summary, staging, database)


def capsule_branches(metadata: CapsuleMetadata, app_dir: str | None) -> tuple[Branch, ...]:
    """Return the Alembic branches of the endpoints that have tables in a capsule.

    Args:
        metadata: the metadata of the capsule.
        app_dir: the `APP_DIR` of the new tenant.

    Raises:
        CapsuleError: the capsule has a revision that the installed endpoints do not know.
    """
    found: list[Branch] = []
    for name, revisions in metadata.revisions.items():
        try:
            branches = read_branches([name], app_dir)
        except EndpointError as error:
            raise CapsuleError(str(error)) from error
        known = frozenset[str]().union(*(branch.revisions for branch in branches))
        if unknown := frozenset(revisions) - known:
            text = f"the tables of endpoint {name!r} are at {format_revisions(unknown)}"
            remedy = f"run the code that knows it (Tenantry {metadata.tenantry!r})"
            raise CapsuleError(f"{text}, which this code does not know; {remedy}.")
        found += branches
    return tuple(found)


def _new_database(
    staging: RestoreStaging, url: URL | None, options: Mapping[str, Any]
) -> NewDatabase:
    if url is None:
        return NewDatabase(staging.tenant_folder / f"{staging.name}.sqlite3", options)
    kind = NewPostgresDatabase if is_server_database(url) else NewDatabaseFile
    return kind(url, options)


def check_disk_space(capsule: Capsule, data_dir: Path, database_folder: Path | None) -> None:
    """Check that there is enough disk space for the rows and files of a capsule.

    Raises:
        CapsuleError: a disk has too little free space.
    """
    summary = capsule.summary
    needed = {data_dir: summary.files_size_bytes + summary.files * BLOCK_BYTES}
    if database_folder is not None:
        folder = data_dir if database_folder.is_relative_to(data_dir) else database_folder
        needed[folder] = needed.get(folder, 0) + summary.rows_size_bytes
    for folder, size_bytes in needed.items():
        _check_free(folder, size_bytes, str(capsule.path))


def _check_free(folder: Path, size_bytes: int, what: str) -> None:
    free = _free_bytes(folder)
    if size_bytes > free:
        text = f"{what} needs {size_bytes:,} bytes, and {folder} has {free:,} free"
        raise CapsuleError(f"{text}; free some space.")


def _free_bytes(folder: Path) -> int:
    return max(shutil.disk_usage(folder).free - SPARE_BYTES, 0)


def _migrate(target: MigrationTarget, on_progress: ProgressCallback) -> None:
    """Migrate the new database to the revisions in the capsule, in a separate process."""
    if not target.branches:
        return
    on_progress("creating tables", 0, 0)
    with MigrationRunner() as runner:
        result = runner.upgrade(target)
    if result.state not in ("migrated", "unchanged"):
        raise CapsuleError(f"the migrations cannot create its tables: {result.reason}")


def _create_tables(metadata: CapsuleMetadata, database: NewDatabase) -> None:
    """Create the tables that no migration has created, from their definitions in the capsule.

    The database also gets the Alembic revisions that belong to no endpoint, such as those of
    Flask-Migrate.
    """
    if not metadata.tables and not metadata.unknown_revisions:
        return
    with open_engine(database.url, database.options).begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        existing = sa.inspect(connection).get_table_names()
        missing = {
            table.name: table.definition
            for table in metadata.tables
            if table.definition is not None and table.name not in existing
        }
        create_tables(connection, missing, existing)
        if metadata.unknown_revisions:
            _add_revisions(connection, metadata.unknown_revisions)


def _add_revisions(connection: sa.Connection, revisions: list[str]) -> None:
    column = sa.Column("version_num", sa.String(32), primary_key=True)
    table = sa.Table(VERSION_TABLE, sa.MetaData(), column)
    table.create(connection, checkfirst=True)
    connection.execute(table.insert(), [{"version_num": revision} for revision in revisions])


def _import(
    capsule: Capsule,
    staging: RestoreStaging,
    database: NewDatabase,
    on_progress: ProgressCallback,
    *,
    with_templates: bool,
) -> CapsuleSummary:
    """Write all rows in one transaction, write the files, and return a summary."""
    metadata, total = capsule.metadata, capsule.summary
    with ExitStack() as transaction, capsule.path.open("rb") as file:
        rows: RowImport | None = None
        tables: list[CapsuleTable] = []
        if metadata.tables:
            importing = importing_rows(database.url, metadata.engine, database.options)
            rows = transaction.enter_context(importing)
            tables = _existing_tables(rows, metadata.tables)
            rows.clear(tables)
        summary = CapsuleSummary(
            rows={table.name: 0 for table in tables},
            left_out=[table.name for table in metadata.tables if table not in tables],
        )
        for member, table in capsule.members(file):
            if table is None:
                _import_file(member, staging, summary, with_templates=with_templates)
                on_progress("files", summary.files, total.files)
            elif rows is not None and table in tables:
                if database.disk_folder is not None:
                    _check_free(database.disk_folder, member.size_bytes, repr(member.name))
                _import_rows(rows, member, table, summary)
                done = summary.rows[table.name]
                on_progress(f"rows of {table.name}", done, total.rows[table.name])
        if rows is not None:
            rows.finish(tables)
    return summary


def _existing_tables(rows: RowImport, tables: list[CapsuleTable]) -> list[CapsuleTable]:
    """Return the tables of a capsule that the migrations have created.

    Raises:
        CapsuleError: a table does not have the same columns in the database and in the capsule.
    """
    columns = rows.existing_columns()
    existing = [table for table in tables if table.name in columns]
    for table in existing:
        if differing := columns[table.name].symmetric_difference(table.columns):
            raise CapsuleError(
                f"table {table.name!r}: the capsule and the migrations differ in the columns "
                f"{', '.join(sorted(differing))}; restore with the code that wrote the capsule"
            )
    return existing


def _import_file(
    member: ArchiveMember,
    staging: RestoreStaging,
    summary: CapsuleSummary,
    *,
    with_templates: bool,
) -> None:
    path = file_path(member)
    if is_program(path) and not with_templates:
        summary.templates_left_out += 1
        return
    if belongs_to_database(path, f"{staging.name}.sqlite3"):
        summary.left_out.append(str(path))  # the new tenant would use the file as its database
        return
    _check_free(staging.data_dir, member.size_bytes, repr(member.name))
    write_file(staging.tenant_folder, path, member.chunks(), mode=member.mode, mtime=member.mtime)
    summary.files += 1
    summary.files_size_bytes += member.size_bytes


def _import_rows(
    rows: RowImport, member: ArchiveMember, table: CapsuleTable, summary: CapsuleSummary
) -> None:
    for batch in read_rows(member, len(table.columns)):
        rows.insert(table, batch)
        summary.rows[table.name] += len(batch)
    summary.rows_size_bytes += member.size_bytes
