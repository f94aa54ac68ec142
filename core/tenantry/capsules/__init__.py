"""Backs up a running tenant into one file, a capsule, and restores tenants from capsules.

The commands `backup`, `restore` and `clone` import only the names in `__all__`. This package may
import `tenants`, `migrations` and lower packages, but no other package of its own layer.

The function `write_capsule` makes a backup. A restore first calls `read_capsule`, which checks
every byte of the capsule, and then `restore_tenant`, which creates the tenant. A failed restore
leaves no folder, database, secret or tenant file behind. A capsule is untrusted input, so Tenantry
never executes the content of a capsule.
"""

from tenantry.capsules.backup import write_capsule
from tenantry.capsules.capsule import Capsule, CapsuleSummary, ProgressCallback, read_capsule
from tenantry.capsules.configuration import describe_access
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
    "describe_access",
    "is_server_database",
    "new_tenant_staging",
    "read_capsule",
    "restore_tenant",
    "write_capsule",
]
