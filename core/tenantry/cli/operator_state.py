"""Changes the operator state of one tenant, for `disable`, `enable` and `maintenance`."""

from dataclasses import replace

from tenantry.settings import read_settings
from tenantry.tenants.catalogue import check_tenant_exists
from tenantry.tenants.operator_state import OperatorState, change_operator_state


def change_tenant_state(name: str, **changes: bool | int | str) -> OperatorState:
    """Change fields of a tenant's operator state and return the new state.

    The change takes effect in running workers within 2 s. If two commands change the operator state
    at the same time, the second command waits for the first command.

    Raises:
        UnknownTenantError: The tenant has no tenant file. TenantryError: The operator state cannot
        be read or written. The operator state is unchanged.
    """
    settings = read_settings()
    check_tenant_exists(settings, name)
    return change_operator_state(
        settings.data_dir,
        name,
        lambda state: replace(state, **changes),  # type: ignore[arg-type]
    )
