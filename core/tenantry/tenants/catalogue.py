"""The catalogue: what the tenants folder says, as a set. It builds nothing and serves nothing."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tenantry.errors import Problem
from tenantry.tenants.file import list_tenant_files, read_content
from tenantry.tenants.loader import Loader
from tenantry.tenants.model import Tenant
from tenantry.tenants.uniqueness import AcceptedTenants, Conflict
from tenantry.tenants.validation import DisabledTenant, RejectedTenant, validate_file

CONFLICTS_SHOWN = 8
"""Maximum number of conflicts in one rejection. A prefix can be above those of 10,000 tenants."""


@dataclass(frozen=True)
class Catalogue:
    """One look at the tenants folder. Every file is in exactly one of the three."""

    tenants: tuple[Tenant, ...] = ()
    rejected: tuple[RejectedTenant, ...] = ()
    disabled: tuple[DisabledTenant, ...] = ()

    @property
    def problems(self) -> list[Problem]:
        """Every problem of the rejected tenants, in the order of names."""
        return [problem for tenant in self.rejected for problem in tenant.problems]


def scan_tenants(
    folder: Path,
    data_dir: Path,
    loader: Loader,
    only: Collection[str] = (),
    *,
    rank: Callable[[Tenant], int] = lambda _: 0,
) -> Catalogue:
    """Validate every tenant file of a folder, and compare the tenants with each other.

    Args:
        folder: the tenants folder.
        data_dir: the host's data folder.
        loader: runs the files.
        only: names to read, as if no other file existed. Empty: all.
        rank: of two tenants in conflict, the one with the lower rank is accepted, else the first
            in name order.

    Raises:
        OSError: the folder cannot be read.
    """
    paths = [path for path in list_tenant_files(folder) if not only or path.stem in only]
    results = [validate_file(read_content(path), data_dir, loader) for path in paths]
    valid = [result for result in results if isinstance(result, Tenant)]
    rejected = [result for result in results if isinstance(result, RejectedTenant)]
    accepted = AcceptedTenants()
    for tenant in sorted(valid, key=rank):  # stable: within a rank, the order of names
        if conflicts := accepted.conflicts(tenant):
            rejected.append(rejection_of(tenant, conflicts))
        else:
            accepted.add(tenant)
    names = {tenant.name for tenant in rejected}
    return Catalogue(
        tenants=tuple(tenant for tenant in valid if tenant.name not in names),
        rejected=tuple(
            _without_taken_prefix(tenant, accepted)
            for tenant in sorted(rejected, key=lambda tenant: tenant.name)
        ),
        disabled=tuple(result for result in results if isinstance(result, DisabledTenant)),
    )


def rejection_of(tenant: Tenant, conflicts: Iterable[Conflict]) -> RejectedTenant:
    """Return the rejection of a tenant that conflicts with accepted ones."""
    problems = tuple(conflict.problem for conflict in conflicts)[:CONFLICTS_SHOWN]
    return RejectedTenant(tenant.name, tenant.url_prefix, problems, tenant.digest)


def _without_taken_prefix(rejected: RejectedTenant, accepted: AcceptedTenants) -> RejectedTenant:
    """Remove the prefix if an accepted tenant is at, above or below it."""
    if rejected.prefix is None or accepted.is_free(rejected.prefix):
        return rejected
    return replace(rejected, prefix=None)
