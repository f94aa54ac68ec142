"""What a capsule says of itself, and how much is in it: the words of its two directions.

    capsule.json                what it is: `CapsuleMetadata`
    config.json                 the keys of the tenant file that hold no secret
    tables/<table>/000001.jsonl rows, a JSON list per line, about a MiB per part
    files/<path>                the files of the tenant's folder

The first two come first, in this order: what follows is read by what they say.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field

from tenantry.capsules.archive import Trailer
from tenantry.capsules.configuration import check_key

CONTENTS, CONFIG = "capsule.json", "config.json"

PART_BYTES = 1 << 20
"""A part of rows is ended when it is as large."""

ROW_LIMIT_BYTES = 64 << 20
"""A larger row is refused, on the way out and on the way in: some copies of it are in memory."""

HEAD_LIMIT_BYTES = 4 << 20
"""The same of each of the first two: a tenant file of 1 MiB at most is to be made of it."""

ProgressCallback = Callable[[str, int, int], None]
"""Is told what is worked on, how much of it is done, and of how much: 0 where that is not known."""


_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def _check_shown(text: str) -> str:
    if _UNSHOWN.search(text):
        raise ValueError("holds control characters")
    return text


Name = Annotated[str, AfterValidator(_check_shown)]
"""A name that can be shown as it is."""

Names = Annotated[list[Name], FailFast()]
"""The first mistake is enough: each would be an object of its own."""


class TableMetadata(BaseModel):
    """A table, and the order of the values in its rows."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: Name
    columns: Names
    positions: dict[Name, Annotated[int, Field(ge=1, lt=1 << 63)]] = {}
    """The last number that was given to a row, by column: no other row gets it again."""


def _check_order(tables: list[TableMetadata]) -> list[TableMetadata]:
    if any(one.name >= other.name for one, other in pairwise(tables)):
        raise ValueError("they are not in the order of their names, or one comes twice")
    return tables


class CapsuleMetadata(BaseModel):
    """What a capsule says about itself."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal[1]
    tenant: Name
    created: Name
    tenantry: Name
    """The version that wrote it."""
    engine: Name
    """Of the database: `sqlite` or `postgresql`."""
    revisions: dict[Name, Names]
    """What the database was at, by endpoint."""
    unknown_revisions: Names
    """Those that belonged to no endpoint any more."""
    tables: Annotated[list[TableMetadata], FailFast(), AfterValidator(_check_order)]
    secret_keys: Annotated[list[Annotated[str, AfterValidator(check_key)]], FailFast()]
    """Keys of the tenant file that are left out."""

    @property
    def target_revisions(self) -> frozenset[str]:
        """What the restored database is brought to."""
        return frozenset(one for revisions in self.revisions.values() for one in revisions)


@dataclass
class CapsuleSummary:
    """How much there is."""

    rows: dict[str, int] = field(default_factory=dict)
    """By table."""
    files: int = 0
    rows_size_bytes: int = 0
    """Of rows, as they stand in the capsule."""
    files_size_bytes: int = 0
    left_out: list[str] = field(default_factory=list)
    """What was not taken: what is neither file nor folder, or of a SQLite file that is not the
    tenant's database; tables that no migration here makes."""

    @property
    def size_bytes(self) -> int:
        """Of all of it."""
        return self.rows_size_bytes + self.files_size_bytes


@dataclass(frozen=True)
class Capsule:
    """A capsule that was read once, and is whole."""

    path: Path
    seal: Trailer
    metadata: CapsuleMetadata
    config: Mapping[str, Any]
    summary: CapsuleSummary
    folders: int
    """How many its files are in."""


def folder_of(table: str) -> str:
    """Return where the rows of a table are in a capsule."""
    return f"tables/{quote(table, safe='')}"


def sentence(error: BaseException) -> str:
    """Return an error's text with one full stop."""
    return f"{str(error).rstrip('.')}."
