"""The tenants folder as commands read it: one tenant by name, or all of them.

Each function that runs tenant files starts a loader process and ends it before it returns.
"""

from collections.abc import Callable
from pathlib import Path

from tenantry.errors import TenantryError, UnknownTenantError
from tenantry.settings import HostSettings
from tenantry.tenants.catalogue import Catalogue, scan_tenants
from tenantry.tenants.file import list_tenant_files, read_content
from tenantry.tenants.loader import LoadedFile, Loader
from tenantry.tenants.model import Tenant
from tenantry.tenants.operator_state import OperatorState, read_operator_state
from tenantry.tenants.validation import load_content, validate_loaded


def scan(settings: HostSettings, *, rank: Callable[[Tenant], int] = lambda _: 0) -> Catalogue:
    """Read every tenant file that this host serves; `scan_tenants` describes `rank`.

    Raises:
        TenantryError: The tenants folder cannot be read.
    """
    folder = settings.tenants_dir
    tenant_files(folder)
    with Loader(data_dir=settings.data_dir) as loader:
        return scan_tenants(folder, settings.data_dir, loader, settings.only, rank=rank)


def load_tenant(settings: HostSettings, name: str) -> tuple[Tenant, LoadedFile]:
    """Return one tenant, enabled or not, and the values that its file sets.

    Raises:
        UnknownTenantError: The tenant has no file.
        TenantFileError: The file is rejected.
    """
    paths = {path.stem: path for path in tenant_files(settings.tenants_dir)}
    if name not in paths:
        raise UnknownTenantError(name, sorted(paths))
    with Loader(data_dir=settings.data_dir) as loader:
        loaded = load_content(read_content(paths[name]), loader)
    return validate_loaded(loaded, settings.data_dir), loaded


def check_tenant_exists(settings: HostSettings, name: str) -> None:
    """Check that a tenant has a file, valid or not.

    Raises:
        UnknownTenantError: It has none.
    """
    names = [path.stem for path in tenant_files(settings.tenants_dir)]
    if name not in names:
        raise UnknownTenantError(name, names)


def tenant_files(folder: Path) -> list[Path]:
    """Return the tenant files of `folder`, sorted by name.

    Raises:
        TenantryError: The folder cannot be read.
    """
    try:
        return list_tenant_files(folder)
    except OSError as error:
        raise TenantryError(
            f"cannot read the folder {folder}: {error.strerror}; "
            "create it, or set TENANTRY_TENANTS_DIR to another folder."
        ) from error


def effective_operator_state(settings: HostSettings, name: str) -> tuple[OperatorState, str]:
    """Return a tenant's operator state and, if its file cannot be read, the reason.

    A tenant whose operator state cannot be read counts as disabled, as in a host that starts.
    """
    try:
        return read_operator_state(settings.data_dir, name), ""
    except TenantryError as error:
        return OperatorState(is_disabled=True), f"tenant {name!r} is disabled: {error}"
