"""Pulls one lever of one tenant; what `disable`, `enable` and `maintenance` have in common."""

from dataclasses import replace

from tenantry.cli.tenants import known_name
from tenantry.settings import read_settings
from tenantry.tenants.operator_state import OperatorState, change_operator_state


def pull(name: str, **changes: bool | int | str) -> OperatorState:
    """Change some of a tenant's levers, in running workers too; return all of them.

    Of two commands at once the second waits for the first, and loses nothing of it.

    Raises:
        UnknownTenantError: it has no file.
        TenantryError: its levers cannot be read or written; they are as they were then.
    """
    settings = read_settings()
    known_name(settings, name)
    return change_operator_state(
        settings.data_dir,
        name,
        lambda levers: replace(levers, **changes),  # type: ignore[arg-type]
    )
