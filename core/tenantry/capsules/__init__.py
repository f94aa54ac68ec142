"""Capsules: one tenant as one file, written while the tenant serves, and restored from it.

The commands `backup`, `restore` and `clone` call this package first, through the names below; they
write the tenant file and its secrets. The package may import `tenants`, `migrations` and what is
below them, and no other package of their layer. A backup goes through `backup.write_capsule`,
a restore through `capsule.read_capsule`, which checks every byte, and `restore.restore_capsule`.
A capsule is untrusted input: nothing in it is run, and nothing is created before all of it has
been checked.
"""

from tenantry.capsules.backup import write_capsule
from tenantry.capsules.capsule import Capsule, CapsuleSummary, ProgressCallback
from tenantry.capsules.clone import create_clone_database
from tenantry.capsules.configuration import python_literal, render_tenant_file
from tenantry.capsules.new_database import is_server_database
from tenantry.capsules.reading import read_capsule
from tenantry.capsules.restore import capsule_branches, restore_capsule
from tenantry.capsules.staging import RestoreStaging, backup_staging

__all__ = [
    "Capsule",
    "CapsuleSummary",
    "ProgressCallback",
    "RestoreStaging",
    "backup_staging",
    "capsule_branches",
    "create_clone_database",
    "is_server_database",
    "python_literal",
    "read_capsule",
    "render_tenant_file",
    "restore_capsule",
    "write_capsule",
]
