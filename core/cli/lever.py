"""Pulls one lever of one tenant; what `disable`, `enable` and `maintenance` have in common."""

from dataclasses import replace

from config.settings import read_settings
from core.cli.tenants import known_name
from core.levers import Levers, read_levers, write_levers


def pull(name: str, **changes: bool | str) -> Levers:
    """Change some of a tenant's levers, in running workers too; return all of them.

    Raises:
        UnknownTenantError: it has no file.
        TenantryError: its levers cannot be read or written; they are as they were then.
    """
    settings = read_settings()
    known_name(settings, name)
    levers = replace(read_levers(settings.data_dir, name), **changes)  # type: ignore[arg-type]
    write_levers(settings.data_dir, name, levers)
    return levers
