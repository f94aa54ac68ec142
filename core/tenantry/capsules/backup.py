"""Writes a tenant's capsule while the tenant serves."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from tenantry.capsules.archive import CapsuleError
from tenantry.capsules.archive_writer import ArchiveWriter
from tenantry.capsules.capsule import (
    CONFIG,
    HEADER_LIMIT_BYTES,
    METADATA,
    ROW_CHUNK_BYTES,
    ROW_LIMIT_BYTES,
    CapsuleMetadata,
    CapsuleSummary,
    CapsuleTable,
    ProgressCallback,
    naming_errors,
    table_folder,
)
from tenantry.capsules.configuration import without_secrets
from tenantry.capsules.json_values import check_structure, dump_value
from tenantry.capsules.new_database import is_server_database
from tenantry.capsules.snapshot import Snapshot
from tenantry.capsules.staging import backup_staging
from tenantry.capsules.tenant_folder import FolderSnapshot
from tenantry.endpoints.finding import available_endpoints
from tenantry.migrations.revisions import read_branches
from tenantry.migrations.version_table import check_file_not_lost
from tenantry.tenants.loader import LoadedFile
from tenantry.tenants.model import Tenant


def write_capsule(
    tenant: Tenant,
    loaded: LoadedFile,
    data_dir: Path,
    path: Path,
    on_progress: ProgressCallback,
) -> CapsuleSummary:
    """Write the capsule of a tenant, and return a summary of its content.

    The capsule contains all rows and files as of one moment, as described in `FolderSnapshot`. If
    an app changes a file in place during the backup, the capsule may contain the file's new
    content. A capsule contains no secrets.

    Args:
        tenant: the tenant, which may serve requests during the backup.
        loaded: the content of the tenant file.
        data_dir: the host's `DATA_DIR`.
        path: the path of the capsule. A complete new capsule replaces an older capsule at the same
            path.
        on_progress: a function that receives the progress of the backup.

    Raises:
        CapsuleError: the database or a file cannot be read, or the capsule cannot be written. If
            the backup fails, no capsule is written.
    """
    folder, url, summary = data_dir / tenant.name, tenant.database_url, CapsuleSummary()
    with (
        naming_errors(f"tenant {tenant.name!r}"),
        closing(_open_snapshot(url, tenant.database_options)) as snapshot,
        backup_staging(data_dir, tenant.name) as staging,
    ):
        files = FolderSnapshot(
            folder,
            staging,
            database=_path_in_folder(folder, url),
            default_database=f"{tenant.name}.sqlite3",
        )
        on_progress("looking at files", 0, 0)
        files.freeze(snapshot.begin)
        summary.left_out = sorted(files.left_out)
        tables = snapshot.tables()
        with ArchiveWriter(path) as archive:
            _add_headers(archive, tenant, loaded, snapshot, tables)
            for table in tables:
                _add_rows(archive, table, snapshot.rows(table), summary, on_progress)
            _add_files(archive, files.files(), summary, on_progress)
    return summary


def _open_snapshot(url: URL, options: Mapping[str, Any]) -> Snapshot:
    if not is_server_database(url):
        check_file_not_lost(url)
    return Snapshot(url, options)


def _add_headers(
    archive: ArchiveWriter,
    tenant: Tenant,
    loaded: LoadedFile,
    snapshot: Snapshot,
    tables: list[CapsuleTable],
) -> None:
    """Add `capsule.json` and `config.json` to the archive."""
    secrets = [*loaded.secrets, tenant.secret_key.get_secret_value()]
    secrets += [key.get_secret_value() for key in tenant.secret_key_fallbacks]
    secrets.append(str(tenant.database_url.password or ""))
    config, secret_keys = without_secrets(loaded.values, secrets)
    revisions = snapshot.revisions()
    by_endpoint = _revisions_by_endpoint(tenant, revisions)
    _check_can_be_restored(snapshot.without_definition, by_endpoint, tenant.app_dir)
    metadata = CapsuleMetadata(
        format=1,
        tenant=tenant.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tenantry=version("tenantry"),
        engine=tenant.database_url.get_backend_name(),
        revisions=by_endpoint,
        unknown_revisions=sorted(revisions.difference(*by_endpoint.values())),
        tables=tables,
        secret_keys=secret_keys,
    )
    _add_header(archive, METADATA, metadata.model_dump_json(indent=2, exclude_defaults=True))
    _add_header(archive, CONFIG, dump_value(config))


def _check_can_be_restored(
    without_definition: Mapping[str, str], endpoints: Iterable[str], app_dir: str
) -> None:
    """Check that a restore can create every table and view of the database.

    Migrations create a table or view if the text of a migration contains the name of the table or
    view. Any other table needs a definition in the capsule.

    Raises:
        CapsuleError: the capsule could not hold a table or view.
    """
    if not without_definition:
        return
    folders = [branch.folder for name in endpoints for branch in read_branches([name], app_dir)]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    for name, reason in sorted(without_definition.items()):
        if not re.search(rf"\b{re.escape(name)}\b", text):
            raise CapsuleError(
                f"a capsule cannot hold {name!r}, because {reason}, and no migration of an "
                "endpoint creates it; use the tools of the database"
            )


def _add_header(archive: ArchiveWriter, name: str, text: str) -> None:
    content = text.encode() + b"\n"
    try:
        check_structure(content)
    except ValueError as error:
        raise CapsuleError(f"{name} would be too complex to restore: {error}") from error
    if len(content) > HEADER_LIMIT_BYTES:
        raise CapsuleError(f"{name} would exceed {HEADER_LIMIT_BYTES >> 20} MiB")
    archive.add(name, content)


def _revisions_by_endpoint(tenant: Tenant, revisions: frozenset[str]) -> dict[str, list[str]]:
    """Return the revisions of each endpoint with tables in the database, even if it is disabled."""
    found = {}
    for name in (*tenant.blueprints, *available_endpoints()):
        for branch in read_branches([name], tenant.app_dir):
            if of_branch := revisions & branch.revisions:
                found[name] = sorted(of_branch)
                revisions -= of_branch
    return found


def _add_rows(
    archive: ArchiveWriter,
    table: CapsuleTable,
    rows: Iterator[list[Any]],
    summary: CapsuleSummary,
    on_progress: ProgressCallback,
) -> None:
    summary.rows[table.name] = 0
    for number, lines in enumerate(_row_chunks(table, rows), 1):
        content = b"".join(lines)
        archive.add(f"{table_folder(table.name)}/{number:06}.jsonl", content)
        summary.rows[table.name] += len(lines)
        summary.rows_size_bytes += len(content)
        on_progress(f"rows of {table.name}", summary.rows[table.name], 0)


def _row_chunks(table: CapsuleTable, rows: Iterator[list[Any]]) -> Iterator[list[bytes]]:
    """Yield the rows of a table as lines of JSON, in chunks of about 1 MiB."""
    lines, size = [], 0
    for row in rows:
        line = dump_value(row).encode() + b"\n"
        if len(line) > ROW_LIMIT_BYTES:
            limit = f"{ROW_LIMIT_BYTES >> 20} MiB"
            raise CapsuleError(f"a row of table {table.name!r} exceeds {limit}")
        lines.append(line)
        size += len(line)
        if size >= ROW_CHUNK_BYTES:
            yield lines
            lines, size = [], 0
    if lines:
        yield lines


def _add_files(
    archive: ArchiveWriter,
    files: list[tuple[str, Path]],
    summary: CapsuleSummary,
    on_progress: ProgressCallback,
) -> None:
    for name, path in files:
        with path.open("rb") as file:
            summary.files_size_bytes += archive.add_file(f"files/{name}", file)
        summary.files += 1
        on_progress("files", summary.files, len(files))


def _path_in_folder(folder: Path, url: URL) -> str:
    """Return the path of a SQLite file relative to a folder; "" for any other database."""
    if is_server_database(url) or not url.database:
        return ""
    path = Path(url.database.removeprefix("file:")).absolute()
    is_below = path.is_relative_to(folder.absolute())
    return str(path.relative_to(folder.absolute())) if is_below else ""
