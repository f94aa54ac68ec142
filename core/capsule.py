"""Capsules: one tenant as one file, made while it serves, and made a tenant again.

    capsule.json                what it is: `Contents`
    config.json                 the keys of the tenant file that hold no secret
    tables/<table>/000001.jsonl rows, a JSON list per line, about a MiB per part
    files/<path>                the files of the tenant's folder

Writes no tenant file and no secret: commands do, inside `restoring`. A capsule that is read is not
trusted: nothing of it is run, and what it says is checked before anything is made.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from sqlalchemy import URL

from core import capsule_database
from core.capsule_config import NOT_TAKEN, check_key, without_secrets
from core.capsule_file import CapsuleError, CapsuleWriter, ChangedFileError, Part, read_parts
from core.capsule_folder import FolderCopy, checked_path, lay_out, staging
from core.capsule_rows import Filling, Snapshot, Table, filling
from core.capsule_values import dump_value, load_value
from core.endpoints import available_endpoints
from core.errors import EndpointError, TenantryError
from core.loader import LoadedFile
from core.migration_children import Nursery
from core.migrator import Migrator, Target
from core.revisions import Branch, one_line, read_branches, shown
from core.tenant import Tenant

CONTENTS, CONFIG = "capsule.json", "config.json"

PART_BYTES = 1 << 20
"""A part of rows is ended when it is as large."""

ROW_LIMIT_BYTES = 256 << 20
"""A larger row is refused on the way out, and on the way in: a row is in memory as a whole."""

CONFIG_LIMIT_BYTES = 64 << 20
"""A tenant file hands back 16 MiB at most."""

Tell = Callable[[str, int, int], None]
"""Is told what is worked on, how much of it is done, and of how much: 0 where that is not known."""


class TableContents(BaseModel):
    """A table, and the order of the values in its rows."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: str
    columns: list[str]


class Contents(BaseModel):
    """What a capsule says about itself."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal[1]
    tenant: str
    created: str
    tenantry: str
    """The version that wrote it."""
    engine: str
    """Of the database: `sqlite` or `postgresql`."""
    revisions: dict[str, list[str]]
    """What the database was at, by endpoint."""
    unknown_revisions: list[str]
    """Those that belonged to no endpoint any more."""
    tables: list[TableContents]
    secret_keys: list[Annotated[str, AfterValidator(check_key)]]
    """Keys of the tenant file that are left out."""

    @property
    def goal(self) -> frozenset[str]:
        """What the restored database is brought to."""
        return frozenset(one for revisions in self.revisions.values() for one in revisions)


@dataclass
class Amounts:
    """How much there is."""

    rows: dict[str, int] = field(default_factory=dict)
    """By table."""
    files: int = 0
    size_bytes: int = 0
    """Of rows, as they stand in the capsule, and files."""
    left_out: list[str] = field(default_factory=list)
    """What was not taken: neither files nor folders, or tables that no migration here makes."""


@dataclass(frozen=True)
class Capsule:
    """A capsule that was read once, and is whole."""

    path: Path
    contents: Contents
    config: Mapping[str, Any]
    amounts: Amounts


@dataclass(frozen=True)
class Place:
    """Where a capsule becomes a tenant."""

    name: str
    data_dir: Path
    database: URL | None = None
    """None: the default file in its folder."""


# -- out ------------------------------------------------------------------------------------------


def backup(tenant: Tenant, loaded: LoadedFile, data_dir: Path, path: Path, tell: Tell) -> Amounts:
    """Write a tenant's capsule, while it serves.

    Rows and files are those of one moment: see `FolderCopy`. A file that its app changes in place
    is what it was when it was read.

    Raises:
        TenantryError: something cannot be read or written; no capsule was written.
    """
    folder = data_dir / tenant.name
    url = tenant.database_url
    amounts = Amounts()
    try:
        _check_not_lost(url)
        snapshot = Snapshot(url)
        with staging(data_dir, tenant.name) as staged, closing(snapshot):
            copy = FolderCopy(folder, staged, _below(folder, url))
            tell("looking at files", 0, 0)
            copy.freeze(snapshot.begin)
            amounts.left_out = sorted(copy.left_out)
            tables = snapshot.tables()
            with CapsuleWriter(path) as capsule:
                _write_heads(capsule, tenant, loaded, snapshot, tables)
                for table in tables:
                    _write_rows(capsule, snapshot, table, amounts, tell)
                _write_files(capsule, copy.files(), amounts, tell)
    except TenantryError as error:
        raise CapsuleError(f"tenant {tenant.name!r}: {_sentence(error)}") from error
    except ChangedFileError as error:
        text = f"tenant {tenant.name!r}: a file became shorter while it was read; try again."
        raise CapsuleError(text) from error
    except Exception as error:
        text = f"tenant {tenant.name!r}: no capsule was written: {one_line(error)}."
        raise CapsuleError(text) from error
    return amounts


def _check_not_lost(url: URL) -> None:
    """Refuse a SQLite file that was there and is gone: its capsule would have no rows."""
    path = Path((url.database or "").removeprefix("file:"))
    marker = path.with_name(f"{path.name or 'none'}.made")
    if not capsule_database.is_server(url) and marker.exists() and not path.exists():
        raise CapsuleError(f"its file {path} is gone; restore it, or delete {marker.name} too")


def _write_heads(
    capsule: CapsuleWriter,
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
    contents = Contents(
        format=1,
        tenant=tenant.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tenantry=version("tenantry"),
        engine=tenant.database_url.get_backend_name(),
        revisions=revisions,
        unknown_revisions=sorted(rows.difference(*revisions.values())),
        tables=[TableContents(name=one.name, columns=[*one.columns]) for one in tables],
        secret_keys=secret_keys,
    )
    capsule.add(CONTENTS, contents.model_dump_json(indent=2).encode() + b"\n")
    capsule.add(CONFIG, dump_value(config).encode() + b"\n")


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
    capsule: CapsuleWriter, snapshot: Snapshot, table: Table, amounts: Amounts, tell: Tell
) -> None:
    count = 0
    part: list[bytes] = []
    size, number = 0, 1

    def end_part() -> None:
        nonlocal part, size, number
        content = b"".join(part)
        capsule.add(f"{_folder_of(table.name)}/{number:06}.jsonl", content)
        amounts.size_bytes += len(content)
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
    capsule: CapsuleWriter, files: list[tuple[str, Path]], amounts: Amounts, tell: Tell
) -> None:
    for name, path in files:
        with path.open("rb") as file:
            amounts.size_bytes += capsule.add_file(f"files/{name}", file)
        amounts.files += 1
        tell("files", amounts.files, len(files))


def _folder_of(table: str) -> str:
    return f"tables/{quote(table, safe='')}"


def _below(folder: Path, url: URL) -> str:
    """Return the path of a SQLite file below a folder; "" if it is not there."""
    if capsule_database.is_server(url) or not url.database:
        return ""
    path = Path(url.database.removeprefix("file:")).absolute()
    is_below = path.is_relative_to(folder.absolute())
    return str(path.relative_to(folder.absolute())) if is_below else ""


# -- in -------------------------------------------------------------------------------------------


def read_capsule(path: Path, tell: Tell) -> Capsule:
    """Read a capsule from its first byte to its last, and make nothing.

    Raises:
        CapsuleError: it is no whole capsule, or of a kind that is not known here.
    """
    try:
        with path.open("rb") as file:
            return _read(path, file, tell)
    except OSError as error:
        raise CapsuleError(f"cannot read {path}: {error.strerror}.") from error
    except CapsuleError as error:
        raise CapsuleError(f"{path}: {_sentence(error)}") from error


def _read(path: Path, file: IO[bytes], tell: Tell) -> Capsule:
    tell("checking the capsule", 0, 0)
    parts = read_parts(file)
    contents = _contents(next(parts, None))
    config = _config(next(parts, None))
    tables = {_folder_of(one.name): one.name for one in contents.tables}
    amounts = Amounts(dict.fromkeys(tables.values(), 0))
    for part in parts:
        table = tables.get(str(PurePosixPath(part.name).parent))
        if table is not None:
            amounts.rows[table] += part.read(PART_BYTES + ROW_LIMIT_BYTES).count(b"\n")
        else:
            _file_path(part, "")
            amounts.files += 1
        amounts.size_bytes += part.size_bytes
    return Capsule(path, contents, config, amounts)


def _contents(part: Part | None) -> Contents:
    if part is None or part.name != CONTENTS:
        raise CapsuleError(f"it does not begin with {CONTENTS}")
    try:
        return Contents.model_validate_json(part.read(CONFIG_LIMIT_BYTES))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        text = f"{CONTENTS}: {place!r}: {first['msg']}; a newer Tenantry may know it"
        raise CapsuleError(text) from error


def _config(part: Part | None) -> dict[str, Any]:
    try:
        if part is None or part.name != CONFIG:
            raise ValueError("it is not there")  # noqa: TRY301 - one kind of error for both
        config = load_value(part.read(CONFIG_LIMIT_BYTES))
        if not isinstance(config, dict):
            raise ValueError("it is no configuration")  # noqa: TRY301, TRY004
        for key in config:
            check_key(key)
        if own := config.keys() & NOT_TAKEN:
            raise ValueError(f"{min(own)!r} is in no capsule of ours")  # noqa: TRY301
    except ValueError as error:
        raise CapsuleError(f"{CONFIG}: {error}") from error
    return config


def _file_path(part: Part, database: str) -> PurePosixPath:
    folder, _, name = part.name.partition("/")
    if folder != "files":
        raise CapsuleError(f"it holds {part.name!r}, which is not known here")
    try:
        return checked_path(name, database)
    except ValueError as error:
        raise CapsuleError(str(error)) from error


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
        capsule_database.check_empty(place.database)
    _check_room(capsule, place.data_dir)
    with staging(place.data_dir, place.name) as staged:
        built = staged / "tenant"
        built.mkdir(mode=0o700)
        with ExitStack() as undo, _taken_back(undo):
            url = _building_at(place, built)
            if capsule_database.is_server(url):
                undo.callback(capsule_database.empty, url)
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
            raise CapsuleError(f"{_sentence(error)}\n{left}") from error
        raise


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say of which capsule whatever is raised in the block is."""
    try:
        yield
    except TenantryError as error:
        raise CapsuleError(f"{path}: {_sentence(error)}") from error
    except Exception as error:  # whatever a driver or the system raises
        raise CapsuleError(f"{path}: {one_line(error)}.") from error


def _building_at(place: Place, built: Path) -> URL:
    """Return where the database is made: files under another name, until all is there."""
    if place.database is None:
        path = built / f"{place.name}.sqlite3"
    elif capsule_database.is_server(place.database):
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
        tables = {_folder_of(one.name): _table(one) for one in capsule.contents.tables}
        database: Filling | None = None
        fitting: list[Table] = []
        if capsule.contents.revisions:
            database = ending.enter_context(filling(url))
            fitting = _fitting(database, list(tables.values()))
            database.clear(fitting)
        amounts = Amounts(dict.fromkeys((one.name for one in fitting), 0))
        amounts.left_out = [one.name for one in tables.values() if one not in fitting]
        for part in _parts_again(capsule, file):
            table = tables.get(str(PurePosixPath(part.name).parent))
            if table is None:
                path = _file_path(part, f"{place.name}.sqlite3")
                lay_out(built, path, part.chunks(), part.mode, part.mtime)
                amounts.files += 1
                tell("files", amounts.files, capsule.amounts.files)
            elif database is not None and table in fitting:
                rows = _rows(part, len(table.columns))
                database.insert(table, rows)
                amounts.rows[table.name] += len(rows)
                done, total = amounts.rows[table.name], capsule.amounts.rows[table.name]
                tell(f"rows of {table.name}", done, total)
            amounts.size_bytes += part.size_bytes
        if database is not None:
            database.finish(fitting)
    return amounts


def _parts_again(capsule: Capsule, file: IO[bytes]) -> Iterator[Part]:
    """Yield what comes after the heads, no more than was there when it was checked."""
    left = capsule.amounts.size_bytes
    parts = read_parts(file)
    if _contents(next(parts, None)) != capsule.contents or next(parts, None) is None:
        raise CapsuleError("it was changed while it was read")
    for part in parts:
        left -= part.size_bytes
        if left < 0:
            raise CapsuleError("it was changed while it was read")
        yield part


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


def _rows(part: Part, width: int) -> list[list[Any]]:
    try:
        rows = [load_value(line) for line in part.read(PART_BYTES + ROW_LIMIT_BYTES).splitlines()]
    except ValueError as error:
        raise CapsuleError(f"{part.name}: {error}") from error
    if not all(isinstance(row, list) and len(row) == width for row in rows):
        raise CapsuleError(f"{part.name}: a row has not a value for each column")
    return rows


def _move(url: URL, place: Place, built: Path, undo: ExitStack) -> None:
    """Give everything its name."""
    if place.database is not None and not capsule_database.is_server(url):
        final = Path(str(place.database.database))
        Path(str(url.database)).rename(final)
        undo.callback(final.unlink, missing_ok=True)
    folder = place.data_dir / place.name
    built.rename(folder)
    undo.callback(shutil.rmtree, folder)


def _sentence(error: BaseException) -> str:
    return f"{str(error).rstrip('.')}."
