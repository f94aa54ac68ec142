"""What several commands ask of the tenants folder."""

from collections.abc import Callable
from pathlib import Path

from tenantry.errors import TenantryError, UnknownTenantError
from tenantry.settings import HostSettings
from tenantry.tenants.catalogue import Catalogue, load_content, scan_tenants, validate_loaded
from tenantry.tenants.folder import list_tenant_files, read_content
from tenantry.tenants.loader import LoadedFile, Loader
from tenantry.tenants.model import Tenant
from tenantry.tenants.operator_state import OperatorState, read_operator_state


def scan(settings: HostSettings, *, rank: Callable[[Tenant], int] = lambda _: 0) -> Catalogue:
    """Read the whole tenants folder, or what of it this host is to serve; see `scan_tenants`.

    Raises:
        TenantryError: there is no such folder.
    """
    folder = settings.tenants_dir
    tenant_files(folder)
    with Loader(data_dir=settings.data_dir) as loader:
        return scan_tenants(folder, settings.data_dir, loader, settings.only, rank=rank)


def operator_state_of(settings: HostSettings, name: str) -> tuple[OperatorState, str]:
    """Return a tenant's operator state, and why it cannot be read.

    It is disabled then, as with a host that starts.
    """
    try:
        return read_operator_state(settings.data_dir, name), ""
    except TenantryError as error:
        return OperatorState(is_disabled=True), f"tenant {name!r} is disabled: {error}"


def known_name(settings: HostSettings, name: str) -> None:
    """Check that a tenant has a file, good or not.

    Raises:
        UnknownTenantError: it has none.
    """
    names = [path.stem for path in tenant_files(settings.tenants_dir)]
    if name not in names:
        raise UnknownTenantError(name, names)


def one_tenant(settings: HostSettings, name: str) -> Tenant:
    """Read one tenant's file, enabled or not.

    Raises:
        UnknownTenantError: it has none.
        TenantFileError: it is rejected.
    """
    return load_one(settings, name)[0]


def load_one(settings: HostSettings, name: str) -> tuple[Tenant, LoadedFile]:
    """Read one tenant's file, enabled or not; return the tenant, and what its file says.

    Raises:
        UnknownTenantError: it has none.
        TenantFileError: it is rejected.
    """
    paths = {path.stem: path for path in tenant_files(settings.tenants_dir)}
    if name not in paths:
        raise UnknownTenantError(name, sorted(paths))
    with Loader(data_dir=settings.data_dir) as loader:
        loaded = load_content(read_content(paths[name]), loader)
    return validate_loaded(loaded, settings.data_dir), loaded


def tenant_files(folder: Path) -> list[Path]:
    """Return the tenant files of `folder`, by name.

    Raises:
        TenantryError: there is no such folder.
    """
    try:
        return list_tenant_files(folder)
    except OSError as error:
        raise TenantryError(
            f"cannot read the folder {folder}: {error.strerror}; "
            "make it, or name another with TENANTRY_TENANTS_DIR."
        ) from error


def counted(number: int) -> str:
    """Return `1 tenant`, `2 tenants`."""
    return f"{number:,} tenant{'s' * (number != 1)}"
