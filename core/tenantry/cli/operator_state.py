"""Changes the operator state of a tenant: whether it is disabled, parked or in maintenance."""

from dataclasses import replace

from tenantry.settings import read_settings
from tenantry.tenants.catalogue import check_tenant_exists
from tenantry.tenants.operator_state import OperatorState, change_operator_state


def change_tenant_state(name: str, **changes: bool | int | str) -> OperatorState:
    """Change fields of a tenant's operator state, and return the new state.

    The change takes effect in running workers within 2 s. Concurrent changes are applied one after
    another.

    Raises:
        UnknownTenantError: There is no tenant of this name.
        TenantryError: The operator state cannot be read or written, and is unchanged.
    """
    settings = read_settings()
    check_tenant_exists(settings, name)
    return change_operator_state(
        settings.data_dir,
        name,
        lambda state: replace(state, **changes),  # type: ignore[arg-type]
    )
