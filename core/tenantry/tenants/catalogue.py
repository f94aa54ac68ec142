"""The catalogue: reads one tenant or all tenants from the tenants folder, for commands.

No function of this module builds an app. A function that runs tenant files starts a loader process
and ends that process before returning.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tenantry.errors import Problem, TenantryError, UnknownTenantError
from tenantry.settings import HostSettings
from tenantry.tenants.file import list_tenant_files, read_content
from tenantry.tenants.loader import LoadedFile, Loader
from tenantry.tenants.model import Tenant
from tenantry.tenants.uniqueness import AcceptedTenants, Conflict
from tenantry.tenants.validation import (
    DisabledTenant,
    RejectedTenant,
    ValidationResult,
    load_content,
    validate_file,
    validate_loaded,
)

CONFLICTS_SHOWN = 8
"""Maximum number of conflicts that one rejection lists. A prefix can conflict with 10,000
tenants."""


@dataclass(frozen=True)
class Catalogue:
    """The result of one scan of the tenants folder: accepted, rejected and disabled tenants."""

    tenants: tuple[Tenant, ...] = ()
    rejected: tuple[RejectedTenant, ...] = ()
    disabled: tuple[DisabledTenant, ...] = ()

    @property
    def problems(self) -> list[Problem]:
        """Every problem of the rejected tenants, in the order of the tenants' names."""
        return [problem for tenant in self.rejected for problem in tenant.problems]


def scan_tenants(
    settings: HostSettings, *, rank: Callable[[Tenant], int] = lambda _: 0
) -> Catalogue:
    """Validate every tenant file that the host serves, and compare the tenants with each other.

    Args:
        settings: the host's settings.
        rank: returns a number for a tenant. In a conflict, the tenant with the lower number is
            accepted; if the numbers are equal, the tenant whose name comes first.

    Raises:
        TenantryError: the folder cannot be read.
    """
    paths = tenant_files(settings.tenants_dir)
    with Loader(data_dir=settings.data_dir) as loader:
        results = [
            validate_file(read_content(path), settings, loader)
            for path in paths
            if not settings.only or path.stem in settings.only
        ]
    return _catalogue(results, rank)


def _catalogue(results: Sequence[ValidationResult], rank: Callable[[Tenant], int]) -> Catalogue:
    valid = [result for result in results if isinstance(result, Tenant)]
    rejected = [result for result in results if isinstance(result, RejectedTenant)]
    disabled = [result for result in results if isinstance(result, DisabledTenant)]
    accepted = AcceptedTenants()
    # Python's sort is stable, so results of equal rank stay in name order.
    for result in sorted(results, key=lambda one: rank(one) if isinstance(one, Tenant) else 0):
        if not isinstance(result, Tenant):
            accepted.hold(result.name, result.address)
        elif conflicts := accepted.conflicts(result):
            rejected.append(rejection_of(result, conflicts))
            accepted.hold(result.name, result.address)
        else:
            accepted.add(result)
    names = {tenant.name for tenant in rejected}
    return Catalogue(
        tenants=tuple(tenant for tenant in valid if tenant.name not in names),
        rejected=tuple(
            replace(tenant, address=accepted.free_part(tenant.name, tenant.address))
            for tenant in sorted(rejected, key=lambda tenant: tenant.name)
        ),
        disabled=tuple(disabled),
    )


def rejection_of(tenant: Tenant, conflicts: Iterable[Conflict]) -> RejectedTenant:
    """Return the rejection of a tenant that conflicts with accepted tenants."""
    problems = tuple(conflict.problem for conflict in conflicts)[:CONFLICTS_SHOWN]
    return RejectedTenant(tenant.name, tenant.address, problems, tenant.digest)


def load_tenant(
    settings: HostSettings, name: str, *, creates_secrets: bool = False
) -> tuple[Tenant, LoadedFile]:
    """Return one tenant, enabled or disabled, and the values that the tenant file sets.

    Args:
        settings: the host's settings.
        name: the tenant's name.
        creates_secrets: whether the file may create secrets, because the tenant is going to run.

    Raises:
        UnknownTenantError: the tenant has no file.
        TenantFileError: the tenant file is rejected.
    """
    check_tenant_exists(settings, name)
    with Loader(data_dir=settings.data_dir, creates_secrets=creates_secrets) as loader:
        loaded = load_content(read_content(settings.tenants_dir / f"{name}.py"), loader)
    return validate_loaded(loaded, settings), loaded


def check_tenant_exists(settings: HostSettings, name: str) -> None:
    """Check that a tenant has a file, even if the file is not valid.

    Raises:
        UnknownTenantError: the tenant has no file.
    """
    names = [path.stem for path in tenant_files(settings.tenants_dir)]
    if name not in names:
        raise UnknownTenantError(name, names)


def tenant_files(folder: Path) -> list[Path]:
    """Return the tenant files of a folder, sorted by name.

    Raises:
        TenantryError: the folder cannot be read.
    """
    try:
        return list_tenant_files(folder)
    except OSError as error:
        raise TenantryError(
            f"cannot read the folder {folder}: {error.strerror}; "
            "create it, or set TENANTRY_TENANTS_DIR to another folder."
        ) from error
