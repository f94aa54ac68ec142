"""Capsules: one tenant as one file, made while it serves, and made a tenant again.

    backup      out: a tenant that serves becomes a capsule
    restore     in: a capsule becomes a folder and a database, or nothing
    clone       where the database of a clone belongs
    reading     a capsule is checked, whole, before anything is made of it
    contents    what a capsule says of itself; its parts by name
    config      the tenant file's keys: without secrets, and as a tenant file again
    folder      the tenant's folder: a copy of one moment, and laying one out
    rows        the rows of its database: out in one snapshot, and in again
    database    the database that is restored into: empty before, and after a failure
    file        the form: a tar archive in zstd, a manifest, hashes
    values      the form of values in it

Commands use the names below; they write the tenant file and the secret, no room here does. A
capsule that is read is not trusted: nothing of it is run, and what it says is checked before
anything is made.
"""

from core.capsules.backup import write_capsule
from core.capsules.clone import make_beside
from core.capsules.config import literal, tenant_text
from core.capsules.contents import Amounts, Capsule, Tell
from core.capsules.database import is_server
from core.capsules.folder import staging
from core.capsules.reading import read_capsule
from core.capsules.restore import Place, known_branches, restoring

__all__ = [
    "Amounts",
    "Capsule",
    "Place",
    "Tell",
    "is_server",
    "known_branches",
    "literal",
    "make_beside",
    "read_capsule",
    "restoring",
    "staging",
    "tenant_text",
    "write_capsule",
]
