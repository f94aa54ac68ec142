"""Completes the names of tenants on the command line of a shell.

Click itself completes commands and options. Completion must print no error. Therefore, on an error
such as a missing tenants folder, nothing is completed.
"""

import click

from tenantry.errors import TenantryError
from tenantry.settings import SettingsError, read_settings


def complete_tenant(_: click.Context, __: click.Parameter, typed: str) -> list[str]:
    """Return the names of the tenants that begin with what the operator has typed."""
    from tenantry.tenants.catalogue import tenant_files  # noqa: PLC0415 - only for completion

    try:
        names = [path.stem for path in tenant_files(read_settings().tenants_dir)]
    except (TenantryError, SettingsError):
        return []
    return [name for name in names if name.startswith(typed)]
