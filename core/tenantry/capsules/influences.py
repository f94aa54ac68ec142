"""Lists what a capsule can influence, with the function that checks each part.

A capsule is untrusted input. Everything that a restore takes from a capsule has a row in this list.
`tenants/README.md` has the same rows. Each function runs where the value is used: a path is checked
where a file is opened, and a name is checked where a statement is composed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tenantry.capsules.archive import ArchiveMember, verify_trailer
from tenantry.capsules.capsule import check_table_name, read_rows
from tenantry.capsules.configuration import EXCLUDED_KEYS, check_key, describe_access
from tenantry.capsules.definition import create_tables
from tenantry.capsules.json_values import check_structure
from tenantry.capsules.restore import check_disk_space
from tenantry.capsules.row_import import RowImport
from tenantry.capsules.snapshot import quote
from tenantry.capsules.tenant_folder import checked_path, is_left_out, is_program
from tenantry.tenants.validation import validate_loaded


@dataclass(frozen=True)
class Influence:
    """One part of a capsule, and what a restore does with it."""

    part: str
    effect: str
    check: Callable[..., Any]
    """The function that checks the part."""


INFLUENCES = (
    Influence(
        "hashes and sizes",
        "The whole capsule is checked before anything is created. The disk must have enough space.",
        verify_trailer,
    ),
    Influence(
        "JSON",
        "Decoded within limits: 1 MiB of structure, 4 MiB for each header, 64 MiB for a row.",
        check_structure,
    ),
    Influence(
        "`" + "`, `".join(EXCLUDED_KEYS) + "`",
        "Rejected. A restored tenant gets a new secret and a new database.",
        check_key,
    ),
    Influence(
        "`CLIENTS`, `OIDC`",
        "Restored. The command shows who can use the tenant before it creates anything.",
        describe_access,
    ),
    Influence(
        "every other key",
        "Restored as plain data, if `tenantry check` would accept it. Code is never restored.",
        validate_loaded,
    ),
    Influence(
        "names of tables and columns",
        "Compared with the new database, and quoted by the driver. Tables of Alembic, Tenantry and "
        "SQLite are rejected.",
        check_table_name,
    ),
    Influence(
        "definitions of tables that no migration creates",
        "Restored with keys, indexes, and types and defaults from a fixed list. SQLAlchemy builds "
        "the statements and quotes every name. No SQL comes from a capsule.",
        create_tables,
    ),
    Influence(
        "names of other constraints, triggers and sequences",
        "Never read from a capsule. They come from the catalogue of the new database.",
        quote,
    ),
    Influence("rows", "Inserted as values, one for each column.", read_rows),
    Influence(
        "references between rows",
        "Checked at the end of the import.",
        RowImport.finish,
    ),
    Influence(
        "paths of files",
        "Files are written only below the tenant's folder. Links, devices and existing files are "
        "rejected.",
        checked_path,
    ),
    Influence(
        "the host's own files in the folder",
        "Rejected. These files contain operator state, quotas and locks.",
        is_left_out,
    ),
    Influence(
        "`templates/`, `static/`",
        "Restored only with `--with-templates`.",
        is_program,
    ),
    Influence(
        "size of files",
        "A restore ends before the disk is full.",
        check_disk_space,
    ),
    Influence("content of files", "Copied as bytes. Nothing is executed.", ArchiveMember.chunks),
)
"""What a capsule can influence."""
