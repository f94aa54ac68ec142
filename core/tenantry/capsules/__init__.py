"""Capsules: one tenant as one file, written while the tenant serves, and restored from it.

The commands `backup`, `restore` and `clone` call this package first, through the names below. It
may import `tenants`, `migrations` and what is below them, and no other package of its layer. A
backup is `write_capsule`. A restore is `read_capsule`, which checks every byte and creates nothing,
then `restore_tenant`, which creates a folder, a database, secrets and the tenant file, or nothing.
A capsule is untrusted input: nothing in it is run.
"""

from tenantry.capsules.backup import write_capsule
from tenantry.capsules.capsule import Capsule, CapsuleSummary, ProgressCallback, read_capsule
from tenantry.capsules.new_database import is_server_database
from tenantry.capsules.new_tenant import (
    RestoredTenant,
    RestoreRequest,
    new_tenant_staging,
    restore_tenant,
)
from tenantry.capsules.postgres_database import create_clone_database
from tenantry.capsules.staging import backup_staging

__all__ = [
    "Capsule",
    "CapsuleSummary",
    "ProgressCallback",
    "RestoreRequest",
    "RestoredTenant",
    "backup_staging",
    "create_clone_database",
    "is_server_database",
    "new_tenant_staging",
    "read_capsule",
    "restore_tenant",
    "write_capsule",
]
