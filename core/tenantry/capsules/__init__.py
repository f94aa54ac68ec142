"""Capsules: one tenant as one file, made while it serves, and made a tenant again.

    backup      out: a tenant that serves becomes a capsule
    restore     in: a capsule becomes a folder and a database, or nothing
    clone       where the database of a clone belongs
    reading     a capsule is checked, whole, before anything is made of it
    contents    what a capsule says of itself; its parts by name
    workplace   where capsules and tenants are made; what killed processes left there
    config      the tenant file's keys: without secrets, and as a tenant file again
    folder      the tenant's folder: a copy of one moment, and laying one out
    snapshot    the rows of its database go out, of one moment
    filling     and in again
    server      the database that is restored into: a server's; empty before, and after a failure
    database    the same in a file
    writer      the file of a capsule is written
    file        its form: a tar archive in zstd, a manifest, hashes; and reading it
    rows        what taking rows out and putting them in share
    values      the form of values in it
    locks       who works in a folder or a file, and that nobody does any more

Commands use the names below; they write the tenant file and the secret, no room here does. A
capsule that is read is not trusted: nothing of it is run, and what it says is checked before
anything is made.
"""

from tenantry.capsules.backup import write_capsule
from tenantry.capsules.clone import make_beside
from tenantry.capsules.config import literal, tenant_text
from tenantry.capsules.contents import Amounts, Capsule, Tell
from tenantry.capsules.database import is_server
from tenantry.capsules.reading import read_capsule
from tenantry.capsules.restore import known_branches, restoring
from tenantry.capsules.workplace import Workplace, staging

__all__ = [
    "Amounts",
    "Capsule",
    "Tell",
    "Workplace",
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
