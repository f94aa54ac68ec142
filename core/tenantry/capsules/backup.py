"""A tenant becomes a capsule while it serves; no secret goes into it."""

from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from sqlalchemy import URL

from tenantry.capsules.archive import CapsuleError
from tenantry.capsules.archive_writer import ArchiveWriter, ChangedFileError
from tenantry.capsules.capsule import (
    CONFIG,
    CONTENTS,
    HEAD_LIMIT_BYTES,
    PART_BYTES,
    ROW_LIMIT_BYTES,
    CapsuleMetadata,
    CapsuleSummary,
    ProgressCallback,
    TableMetadata,
    folder_of,
    sentence,
)
from tenantry.capsules.configuration import without_secrets
from tenantry.capsules.json_values import check_form, dump_value
from tenantry.capsules.new_database import is_server_database
from tenantry.capsules.rows import Table
from tenantry.capsules.snapshot import Snapshot
from tenantry.capsules.staging import backup_staging
from tenantry.capsules.tenant_folder import FolderSnapshot
from tenantry.endpoints.loading import available_endpoints
from tenantry.errors import TenantryError
from tenantry.migrations.revisions import read_branches
from tenantry.migrations.version_table import check_file_not_lost, describe_error
from tenantry.tenants.loader import LoadedFile
from tenantry.tenants.model import Tenant


def write_capsule(
    tenant: Tenant, loaded: LoadedFile, data_dir: Path, path: Path, tell: ProgressCallback
) -> CapsuleSummary:
    """Write a tenant's capsule, while it serves.

    Rows and files are those of one moment: see `FolderSnapshot`. A file that the app changes
    in place
    is what it was when it was read.

    Raises:
        TenantryError: something cannot be read or written; no capsule was written.
    """
    folder = data_dir / tenant.name
    url = tenant.database_url
    amounts = CapsuleSummary()
    try:
        if not is_server_database(url):
            check_file_not_lost(url)
        snapshot = Snapshot(url)
        with backup_staging(data_dir, tenant.name) as staged, closing(snapshot):
            copy = FolderSnapshot(folder, staged, _below(folder, url), f"{tenant.name}.sqlite3")
            tell("looking at files", 0, 0)
            copy.freeze(snapshot.begin)
            amounts.left_out = sorted(copy.left_out)
            tables = snapshot.tables()
            with ArchiveWriter(path) as capsule:
                _write_heads(capsule, tenant, loaded, snapshot, tables)
                for table in tables:
                    _write_rows(capsule, snapshot, table, amounts, tell)
                _write_files(capsule, copy.files(), amounts, tell)
    except TenantryError as error:
        raise CapsuleError(f"tenant {tenant.name!r}: {sentence(error)}") from error
    except ChangedFileError as error:
        text = f"tenant {tenant.name!r}: a file became shorter while it was read; try again."
        raise CapsuleError(text) from error
    except Exception as error:
        text = f"tenant {tenant.name!r}: no capsule was written: {describe_error(error)}."
        raise CapsuleError(text) from error
    return amounts


def _write_heads(
    capsule: ArchiveWriter,
    tenant: Tenant,
    loaded: LoadedFile,
    snapshot: Snapshot,
    tables: list[Table],
) -> None:
    secrets = [*loaded.secrets, tenant.secret_key.get_secret_value()]
    secrets += [one.get_secret_value() for one in tenant.secret_key_fallbacks]
    secrets.append(str(tenant.database_url.password or ""))
    config, secret_keys = without_secrets(loaded.values, secrets)
    rows = snapshot.revisions()
    revisions = _by_endpoint(tenant.blueprints, rows)
    contents = CapsuleMetadata(
        format=1,
        tenant=tenant.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tenantry=version("tenantry"),
        engine=tenant.database_url.get_backend_name(),
        revisions=revisions,
        unknown_revisions=sorted(rows.difference(*revisions.values())),
        tables=[
            TableMetadata(name=one.name, columns=[*one.columns], positions={**one.positions})
            for one in tables
        ],
        secret_keys=secret_keys,
    )
    for part, text in (
        (CONTENTS, contents.model_dump_json(indent=2, exclude_defaults=True)),
        (CONFIG, dump_value(config)),
    ):
        capsule.add(part, _head(part, text))


def _head(part: str, text: str) -> bytes:
    content = text.encode() + b"\n"
    try:
        check_form(content)
    except ValueError as error:
        raise CapsuleError(f"its {part} cannot be read again: {error}") from error
    if len(content) > HEAD_LIMIT_BYTES:
        raise CapsuleError(f"its {part} is over {HEAD_LIMIT_BYTES >> 20} MiB")
    return content


def _by_endpoint(enabled: tuple[str, ...], rows: frozenset[str]) -> dict[str, list[str]]:
    """Return what a database is at by endpoint, those included that are not enabled any more."""
    found = {}
    left = rows
    for name in (*enabled, *available_endpoints()):
        for branch in read_branches([name]):
            if at := left & branch.revisions:
                found[name] = sorted(at)
                left -= at
    return found


def _write_rows(
    capsule: ArchiveWriter,
    snapshot: Snapshot,
    table: Table,
    amounts: CapsuleSummary,
    tell: ProgressCallback,
) -> None:
    count = 0
    part: list[bytes] = []
    size, number = 0, 1

    def end_part() -> None:
        nonlocal part, size, number
        content = b"".join(part)
        capsule.add(f"{folder_of(table.name)}/{number:06}.jsonl", content)
        amounts.rows_size_bytes += len(content)
        part, size, number = [], 0, number + 1
        tell(f"rows of {table.name}", count, 0)

    for row in snapshot.rows(table):
        line = dump_value(row).encode() + b"\n"
        if len(line) > ROW_LIMIT_BYTES:
            raise CapsuleError(f"a row of {table.name} is over {ROW_LIMIT_BYTES >> 20} MiB")
        part.append(line)
        size, count = size + len(line), count + 1
        if size >= PART_BYTES:
            end_part()
    if part:
        end_part()
    amounts.rows[table.name] = count


def _write_files(
    capsule: ArchiveWriter,
    files: list[tuple[str, Path]],
    amounts: CapsuleSummary,
    tell: ProgressCallback,
) -> None:
    for name, path in files:
        with path.open("rb") as file:
            amounts.files_size_bytes += capsule.add_file(f"files/{name}", file)
        amounts.files += 1
        tell("files", amounts.files, len(files))


def _below(folder: Path, url: URL) -> str:
    """Return the path of a SQLite file below a folder; "" if it is not there."""
    if is_server_database(url) or not url.database:
        return ""
    path = Path(url.database.removeprefix("file:")).absolute()
    is_below = path.is_relative_to(folder.absolute())
    return str(path.relative_to(folder.absolute())) if is_below else ""
