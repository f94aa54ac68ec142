"""A capsule is read and checked, from its first byte to its last; nothing is made of it.

What it says is not trusted: names, sizes, keys and values are those that Tenantry writes, or it is
refused.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pydantic import ValidationError

from core.capsules.config import NOT_TAKEN, check_key
from core.capsules.contents import (
    CONFIG,
    CONFIG_LIMIT_BYTES,
    CONTENTS,
    PART_BYTES,
    ROW_LIMIT_BYTES,
    Amounts,
    Capsule,
    Contents,
    Tell,
    folder_of,
    sentence,
)
from core.capsules.file import CapsuleError, Part, read_parts
from core.capsules.folder import checked_path
from core.capsules.values import load_value


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
        raise CapsuleError(f"{path}: {sentence(error)}") from error


def _read(path: Path, file: IO[bytes], tell: Tell) -> Capsule:
    tell("checking the capsule", 0, 0)
    parts = read_parts(file)
    contents = _contents(next(parts, None))
    config = _config(next(parts, None))
    tables = {folder_of(one.name): one.name for one in contents.tables}
    amounts = Amounts(dict.fromkeys(tables.values(), 0))
    for part in parts:
        table = tables.get(str(PurePosixPath(part.name).parent))
        if table is not None:
            amounts.rows[table] += part.read(PART_BYTES + ROW_LIMIT_BYTES).count(b"\n")
        else:
            file_path(part, "")
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


def file_path(part: Part, database: str) -> PurePosixPath:
    """Return where a part belongs below a tenant's folder.

    Raises:
        CapsuleError: it is no file of a tenant's.
    """
    folder, _, name = part.name.partition("/")
    if folder != "files":
        raise CapsuleError(f"it holds {part.name!r}, which is not known here")
    try:
        return checked_path(name, database)
    except ValueError as error:
        raise CapsuleError(str(error)) from error


def parts_again(capsule: Capsule, file: IO[bytes]) -> Iterator[Part]:
    """Yield what comes after the heads, no more than was there when it was checked.

    Raises:
        CapsuleError: it is another capsule by now.
    """
    left = capsule.amounts.size_bytes
    parts = read_parts(file)
    if _contents(next(parts, None)) != capsule.contents or next(parts, None) is None:
        raise CapsuleError("it was changed while it was read")
    for part in parts:
        left -= part.size_bytes
        if left < 0:
            raise CapsuleError("it was changed while it was read")
        yield part


def rows_of(part: Part, width: int) -> list[list[Any]]:
    """Return the rows of a part of a table with as many columns.

    Raises:
        CapsuleError: it holds something else.
    """
    try:
        rows = [load_value(line) for line in part.read(PART_BYTES + ROW_LIMIT_BYTES).splitlines()]
    except ValueError as error:
        raise CapsuleError(f"{part.name}: {error}") from error
    if not all(isinstance(row, list) and len(row) == width for row in rows):
        raise CapsuleError(f"{part.name}: a row has not a value for each column")
    return rows
