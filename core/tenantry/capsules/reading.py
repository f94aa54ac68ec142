"""A capsule is read and checked, from its first byte to its last; nothing is made of it.

What it says is not trusted: names, sizes, keys and values are those that Tenantry writes, in the
order in which it writes them, or it is refused. One row is in memory at a time.
"""

import re
from collections.abc import Iterator
from itertools import accumulate, zip_longest
from operator import or_
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pydantic import ValidationError

from tenantry.capsules.archive import ArchiveMember, CapsuleError, read_members, verify_trailer
from tenantry.capsules.capsule import (
    CONFIG,
    CONTENTS,
    HEAD_LIMIT_BYTES,
    PART_BYTES,
    ROW_LIMIT_BYTES,
    Capsule,
    CapsuleMetadata,
    CapsuleSummary,
    ProgressCallback,
    TableMetadata,
    folder_of,
    sentence,
)
from tenantry.capsules.configuration import NOT_TAKEN, check_key
from tenantry.capsules.json_values import check_form, load_value
from tenantry.capsules.tenant_folder import checked_path

_ROWS = re.compile(r"[0-9]{6,12}\.jsonl")


def read_capsule(path: Path, tell: ProgressCallback) -> Capsule:
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
        raise CapsuleError(f"{path}: {sentence(error)}") from error


def _read(path: Path, file: IO[bytes], tell: ProgressCallback) -> Capsule:
    tell("checking the capsule", 0, 0)
    seal = verify_trailer(file)
    parts = read_members(file, seal)
    contents = _contents(next(parts, None))
    config = _config(next(parts, None))
    amounts = CapsuleSummary({one.name: 0 for one in contents.tables})
    folders, last = 0, list[str]()
    for part, table in _in_order(parts, contents):
        if table is not None:
            amounts.rows[table.name] += sum(1 for _ in _lines(part))
            amounts.rows_size_bytes += part.size_bytes
        else:
            folder = part.name.split("/")[1:-1]
            is_new = [one != other for one, other in zip_longest(folder, last[: len(folder)])]
            folders += sum(accumulate(is_new, or_))  # in order: each folder is begun once
            last = folder
            amounts.files += 1
            amounts.files_size_bytes += part.size_bytes
        tell("checking the capsule", amounts.size_bytes, seal.size_bytes)
    return Capsule(path, seal, contents, config, amounts, folders)


def _in_order(
    parts: Iterator[ArchiveMember], contents: CapsuleMetadata
) -> Iterator[tuple[ArchiveMember, TableMetadata | None]]:
    """Yield the parts after the heads, with the table whose rows they are; None for a file.

    Raises:
        CapsuleError: one is not known here, or not where Tenantry writes it: rows by their tables,
            then files by their names, each once.
    """
    tables = {folder_of(one.name): number for number, one in enumerate(contents.tables)}
    last: tuple[int, int, str] = (-1, 0, "")
    for part in parts:
        folder, _, name = part.name.rpartition("/")
        if folder in tables and _ROWS.fullmatch(name):
            table = contents.tables[tables[folder]]
            place = (tables[folder], len(name), name)
        else:
            table = None
            file_path(part)
            place = (len(tables), 0, part.name)
        if place <= last:
            raise CapsuleError(f"it holds {part.name!r} twice, or not in its place")
        last = place
        yield part, table


def _contents(part: ArchiveMember | None) -> CapsuleMetadata:
    if part is None or part.name != CONTENTS:
        raise CapsuleError(f"it does not begin with {CONTENTS}")
    try:
        content = part.read(HEAD_LIMIT_BYTES)
        check_form(content)
        return CapsuleMetadata.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        text = f"{CONTENTS}: {place!r}: {first['msg']}; a newer Tenantry may know it"
        raise CapsuleError(text) from error
    except ValueError as error:
        raise CapsuleError(f"{CONTENTS}: {error}") from error


def _config(part: ArchiveMember | None) -> dict[str, Any]:
    try:
        if part is None or part.name != CONFIG:
            raise ValueError("it is not there")  # noqa: TRY301 - one kind of error for both
        config = load_value(part.read(HEAD_LIMIT_BYTES))
        if not isinstance(config, dict):
            raise ValueError("it is no configuration")  # noqa: TRY301, TRY004
        for key in config:
            check_key(key)
        if own := config.keys() & NOT_TAKEN:
            raise ValueError(f"{min(own)!r} is in no capsule of ours")  # noqa: TRY301
    except ValueError as error:
        raise CapsuleError(f"{CONFIG}: {error}") from error
    return config


def file_path(part: ArchiveMember) -> PurePosixPath:
    """Return where a part belongs below a tenant's folder.

    Raises:
        CapsuleError: it is no file of a tenant's.
    """
    folder, _, name = part.name.partition("/")
    if folder != "files":
        raise CapsuleError(f"it holds {part.name!r}, which is not known here")
    try:
        return checked_path(name)
    except ValueError as error:
        raise CapsuleError(str(error)) from error


def parts_again(
    capsule: Capsule, file: IO[bytes]
) -> Iterator[tuple[ArchiveMember, TableMetadata | None]]:
    """Yield what comes after the heads, with the table whose rows it is; None for a file.

    Raises:
        CapsuleError: it is another capsule by now.
    """
    if verify_trailer(file) != capsule.seal:
        raise CapsuleError("it was changed while it was read")
    parts = read_members(file, capsule.seal)
    next(parts)  # the heads
    next(parts)
    yield from _in_order(parts, capsule.metadata)


def rows_of(part: ArchiveMember, width: int) -> Iterator[list[list[Any]]]:
    """Yield the rows of a part of a table with as many columns, about a MiB at a time.

    Raises:
        CapsuleError: it holds something else.
    """
    rows: list[list[Any]] = []
    size = 0
    for line in _lines(part):
        rows.append(_row(part, line, width))
        size += len(line)
        if size >= PART_BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _lines(part: ArchiveMember) -> Iterator[bytes]:
    """Yield the lines of a part of a table."""
    line = bytearray()
    for chunk in part.chunks():
        *ended, begun = chunk.split(b"\n")
        for end in ended:
            line += end
            yield bytes(line)
            line.clear()
        line += begun
        if len(line) > ROW_LIMIT_BYTES:
            raise CapsuleError(f"{part.name}: a row is larger than any that Tenantry writes")
    if line:
        raise CapsuleError(f"{part.name}: its last row is cut")


def _row(part: ArchiveMember, line: bytes, width: int) -> list[Any]:
    try:
        row = load_value(line)
    except ValueError as error:
        raise CapsuleError(f"{part.name}: {error}") from error
    if not isinstance(row, list) or len(row) != width:
        raise CapsuleError(f"{part.name}: a row has not a value for each column")
    return row
