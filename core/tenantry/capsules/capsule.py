"""Defines the content of a capsule, and checks capsules without creating anything.

    capsule.json                metadata: `CapsuleMetadata`
    config.json                 the keys of the tenant file that hold no secret
    tables/<table>/000001.jsonl rows of a table, one JSON list per line, in chunks of about 1 MiB
    files/<path>                the files of the tenant's folder

The files `capsule.json` and `config.json` come first, because they are necessary to read the tables
and files. A capsule is untrusted input. Therefore, `read_capsule` rejects a capsule with names,
sizes, keys or values that Tenantry never writes, and a capsule with its members in another order.
While a capsule is read, about 1 MiB of rows is in memory, or one row if the row is larger.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError

from tenantry.capsules.archive import (
    ArchiveMember,
    CapsuleError,
    Trailer,
    read_members,
    verify_trailer,
)
from tenantry.capsules.configuration import EXCLUDED_KEYS, check_key
from tenantry.capsules.definition import TableDefinition
from tenantry.capsules.json_values import check_structure, load_value
from tenantry.capsules.printable_name import Name, Names
from tenantry.capsules.tenant_folder import checked_path
from tenantry.errors import TenantryError
from tenantry.migrations.version_table import describe_error

METADATA, CONFIG = "capsule.json", "config.json"

VERSION_TABLE = "alembic_version"
MARK_TABLE = "tenantry_restoring"
"""A table that lists what a restore into PostgreSQL has created."""

_RESERVED_TABLES = (VERSION_TABLE, MARK_TABLE)
"""Tables that control migrations and restores.

The rows of these tables never come from a capsule.
"""

_SQLITE_PREFIX = "sqlite_"
"""Prefix of the names of SQLite's own tables."""

ROW_CHUNK_BYTES = 1 << 20
"""Approximate size of a chunk of rows, in bytes of JSON."""

ROW_LIMIT_BYTES = 64 << 20
"""Maximum size of a row, in bytes of JSON.

Backup and restore keep several copies of a row in memory, so both reject larger rows.
"""

HEADER_LIMIT_BYTES = 4 << 20
"""Maximum size of `capsule.json` and of `config.json`. A tenant file has up to 1 MiB."""

ProgressCallback = Callable[[str, int, int], None]
"""A function that receives the name of the current step, the amount done, and the total amount.

An amount of 0 means that the amount is unknown.
"""

_ROW_CHUNK = re.compile(r"[0-9]{6,12}\.jsonl")


def check_table_name(name: str) -> str:
    """Return the name of a table whose rows can be in a capsule.

    Raises:
        ValueError: the table belongs to Alembic, to Tenantry or to SQLite.
    """
    folded = name.lower()
    if folded in _RESERVED_TABLES or folded.startswith(_SQLITE_PREFIX):
        raise ValueError(f"the table {name!r} is never part of a capsule")
    return name


class CapsuleTable(BaseModel):
    """A table in a capsule."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: Annotated[Name, AfterValidator(check_table_name)]
    columns: Names
    """Names of the columns, in the order of the values in each row.

    Computed columns are omitted.
    """
    positions: dict[Name, Annotated[int, Field(ge=1, lt=1 << 63)]] = {}
    """Maps a column to the last number that its sequence has generated.

    The row with the last number may have been deleted.
    """
    definition: TableDefinition | None = None
    """A definition that creates the table without a migration; None if it cannot be expressed."""


def _check_order(tables: list[CapsuleTable]) -> list[CapsuleTable]:
    if any(table.name >= following.name for table, following in pairwise(tables)):
        raise ValueError("the table names are not sorted, or a name occurs twice")
    return tables


class CapsuleMetadata(BaseModel):
    """The content of `capsule.json`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal[1]
    tenant: Name
    created: Name
    """Time of the backup (UTC) in ISO 8601 format."""
    tenantry: Name
    """The version of Tenantry that wrote the capsule."""
    engine: Name
    """The engine of the tenant's database: `sqlite` or `postgresql`."""
    revisions: dict[Name, Names]
    """Maps each endpoint to its Alembic revisions in the database."""
    unknown_revisions: Names
    """Revisions in the database that belonged to no endpoint of the original host."""
    tables: Annotated[list[CapsuleTable], FailFast(), AfterValidator(_check_order)]
    secret_keys: Annotated[list[Annotated[str, AfterValidator(check_key)]], FailFast()]
    """Keys of the tenant file that the capsule omits, because their values are secret."""

    @property
    def target_revisions(self) -> frozenset[str]:
        """The Alembic revisions to which a restore migrates the new database."""
        return frozenset(name for names in self.revisions.values() for name in names)


@dataclass
class CapsuleSummary:
    """The rows and files that a backup has written or a restore has read."""

    rows: dict[str, int] = field(default_factory=dict)
    """Maps each table to its number of rows."""
    files: int = 0
    rows_size_bytes: int = 0
    """Size of all rows, in bytes of JSON."""
    files_size_bytes: int = 0
    left_out: list[str] = field(default_factory=list)
    """Files and tables that the backup or the restore has omitted.

    A backup omits special files, such as sockets, and a SQLite file that is no longer the tenant's
    database. A restore omits tables that no migration creates, and a file whose name is the name of
    the new tenant's database.
    """

    templates_left_out: int = 0
    """Number of templates and static files that a restore without `with_templates` has omitted."""

    @property
    def size_bytes(self) -> int:
        """Total size of the rows and files, in bytes."""
        return self.rows_size_bytes + self.files_size_bytes


@dataclass(frozen=True)
class Capsule:
    """A capsule that `read_capsule` has checked completely."""

    path: Path
    trailer: Trailer
    metadata: CapsuleMetadata
    config: Mapping[str, Any]
    """Maps each key of the tenant file to its value."""
    summary: CapsuleSummary

    def members(self, file: IO[bytes]) -> Iterator[tuple[ArchiveMember, CapsuleTable | None]]:
        """Yield each chunk of rows with the chunk's table, then each file with None.

        Args:
            file: the capsule, open for reading.

        Raises:
            CapsuleError: the file has changed since `read_capsule` checked it.
        """
        if verify_trailer(file) != self.trailer:
            raise CapsuleError("the capsule changed while it was read")
        members = read_members(file, self.trailer)
        next(members)  # skip capsule.json
        next(members)  # skip config.json
        yield from _in_order(members, self.metadata)


def read_capsule(path: Path, on_progress: ProgressCallback) -> Capsule:
    """Check every byte of a capsule, and return the capsule, without creating anything.

    Raises:
        CapsuleError: the file cannot be read, is damaged, or is not a capsule.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise CapsuleError(f"cannot read {path}: {error.strerror}.") from error
    with file, naming_errors(str(path)):
        return _read(path, file, on_progress)


def _read(path: Path, file: IO[bytes], on_progress: ProgressCallback) -> Capsule:
    step = "checking the capsule"
    on_progress(step, 0, 0)
    trailer = verify_trailer(file)
    members = read_members(file, trailer)
    metadata = _read_metadata(next(members, None))
    config = _read_config(next(members, None))
    summary = CapsuleSummary(rows={table.name: 0 for table in metadata.tables})
    for member, table in _in_order(members, metadata):
        if table is None:
            summary.files += 1
            summary.files_size_bytes += member.size_bytes
        else:
            summary.rows[table.name] += sum(1 for _ in _lines(member))
            summary.rows_size_bytes += member.size_bytes
        on_progress(step, summary.size_bytes, trailer.size_bytes)
    return Capsule(path, trailer, metadata, config, summary)


def _in_order(
    members: Iterator[ArchiveMember], metadata: CapsuleMetadata
) -> Iterator[tuple[ArchiveMember, CapsuleTable | None]]:
    """Yield each chunk of rows with the chunk's table, then each file with None.

    Raises:
        CapsuleError: a member has an unknown name, occurs twice, or is in the wrong order. In the
            correct order, a capsule contains first all rows, by table and number, and then all
            files, by name.
    """
    tables = {table_folder(table.name): index for index, table in enumerate(metadata.tables)}
    previous: tuple[int, int, str] = (-1, 0, "")
    for member in members:
        folder, _, name = member.name.rpartition("/")
        index = tables.get(folder) if _ROW_CHUNK.fullmatch(name) else None
        if index is None:
            file_path(member)
            position = (len(tables), 0, member.name)
        else:
            position = (index, len(name), name)
        if position <= previous:
            raise CapsuleError(f"the capsule holds {member.name!r} twice, or in the wrong order")
        previous = position
        yield member, None if index is None else metadata.tables[index]


def _read_metadata(member: ArchiveMember | None) -> CapsuleMetadata:
    if member is None or member.name != METADATA:
        raise CapsuleError(f"the capsule does not begin with {METADATA}")
    try:
        content = member.read(HEADER_LIMIT_BYTES)
        check_structure(content)
        return CapsuleMetadata.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        text = f"{METADATA}: {key!r}: {first['msg']}; a newer version of Tenantry may read it"
        raise CapsuleError(text) from error
    except ValueError as error:
        raise CapsuleError(f"{METADATA}: {error}") from error


def _read_config(member: ArchiveMember | None) -> dict[str, Any]:
    if member is None or member.name != CONFIG:
        raise CapsuleError(f"{CONFIG} is missing")
    try:
        config = load_value(member.read(HEADER_LIMIT_BYTES))
        for key in config if isinstance(config, dict) else ():
            check_key(key)
    except ValueError as error:
        raise CapsuleError(f"{CONFIG}: {error}") from error
    if not isinstance(config, dict):
        raise CapsuleError(f"{CONFIG} does not hold a dict")
    if excluded := config.keys() & EXCLUDED_KEYS:
        raise CapsuleError(f"{CONFIG}: {min(excluded)!r} is never part of a capsule")
    return config


def file_path(member: ArchiveMember) -> PurePosixPath:
    """Return the path of a file, relative to the tenant's folder.

    Raises:
        CapsuleError: the member of the capsule is not a file of the tenant.
    """
    folder, _, path = member.name.partition("/")
    if folder != "files":
        raise CapsuleError(f"the capsule holds {member.name!r}, which this version does not know")
    try:
        return checked_path(path)
    except ValueError as error:
        raise CapsuleError(str(error)) from error


def read_rows(member: ArchiveMember, column_count: int) -> Iterator[list[list[Any]]]:
    """Yield the rows of a chunk in batches of about 1 MiB of JSON.

    Raises:
        CapsuleError: a line is not a row with `column_count` values.
    """
    rows: list[list[Any]] = []
    size = 0
    for line in _lines(member):
        rows.append(_parse_row(member, line, column_count))
        size += len(line)
        if size >= ROW_CHUNK_BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _lines(member: ArchiveMember) -> Iterator[bytes]:
    """Yield the lines of a chunk of rows."""
    line = bytearray()
    for chunk in member.chunks():
        *endings, beginning = chunk.split(b"\n")
        for ending in endings:
            line += ending
            yield bytes(line)
            line.clear()
        line += beginning
        if len(line) > ROW_LIMIT_BYTES:
            raise CapsuleError(f"{member.name}: a row exceeds {ROW_LIMIT_BYTES >> 20} MiB")
    if line:
        raise CapsuleError(f"{member.name}: the last row is incomplete")


def _parse_row(member: ArchiveMember, line: bytes, column_count: int) -> list[Any]:
    try:
        row = load_value(line)
    except ValueError as error:
        raise CapsuleError(f"{member.name}: {error}") from error
    if not isinstance(row, list) or len(row) != column_count:
        raise CapsuleError(f"{member.name}: a row does not have one value for each column")
    return row


def table_folder(table: str) -> str:
    """Return the folder in the capsule that contains the rows of a table."""
    return f"tables/{quote(table, safe='')}"


@contextmanager
def naming_errors(subject: str) -> Iterator[None]:
    """Convert any exception of the `with` block to a `CapsuleError` whose text names `subject`.

    Raises:
        CapsuleError: the `with` block raised an exception.
    """
    try:
        yield
    except TenantryError as error:
        raise CapsuleError(f"{subject}: {as_sentence(error)}") from error
    except Exception as error:  # drivers raise many classes of exceptions
        raise CapsuleError(f"{subject}: {describe_error(error)}.") from error


def as_sentence(error: BaseException) -> str:
    """Return the text of an error, with a full stop at the end."""
    return f"{str(error).rstrip('.')}."
