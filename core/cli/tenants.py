"""What several commands ask of the tenants folder."""

from config.settings import HostSettings
from core.catalogue import Catalogue, Rejected, read_tenant, scan_tenants, tenant_paths
from core.errors import TenantFileError, TenantryError, UnknownTenantError
from core.loader import Loader
from core.tenant import Tenant


def scan(settings: HostSettings) -> Catalogue:
    """Read the whole tenants folder.

    Raises:
        TenantryError: there is no such folder.
    """
    folder = settings.tenants_dir
    if not folder.is_dir():
        raise TenantryError(
            f"no folder {folder}; make it, or name another with TENANTRY_TENANTS_DIR."
        )
    with Loader(data_dir=settings.data_dir) as loader:
        return scan_tenants(folder, settings.data_dir, loader)


def one_tenant(settings: HostSettings, name: str) -> Tenant:
    """Read one tenant's file.

    Raises:
        UnknownTenantError: it has none.
        TenantFileError: it is rejected.
    """
    paths = {path.stem: path for path in tenant_paths(settings.tenants_dir)}
    if name not in paths:
        raise UnknownTenantError(name, sorted(paths))
    with Loader(data_dir=settings.data_dir) as loader:
        result = read_tenant(paths[name], settings.data_dir, loader)
    if isinstance(result, Rejected):
        raise TenantFileError(result.problems)
    return result
