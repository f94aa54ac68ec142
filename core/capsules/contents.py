"""What a capsule says of itself, and how much is in it: the words of its two directions.

    capsule.json                what it is: `Contents`
    config.json                 the keys of the tenant file that hold no secret
    tables/<table>/000001.jsonl rows, a JSON list per line, about a MiB per part
    files/<path>                the files of the tenant's folder

The first two come first, in this order: what follows is read by what they say.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict

from core.capsules.config import check_key

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


def folder_of(table: str) -> str:
    """Return where the rows of a table are in a capsule."""
    return f"tables/{quote(table, safe='')}"


def sentence(error: BaseException) -> str:
    """Return an error's text with one full stop."""
    return f"{str(error).rstrip('.')}."
