"""Reads the state of the tenants' databases for `tenantry db`, without changing anything.

If a database cannot be read, its status contains the reason.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

from tenantry.database.url import parse_database_url
from tenantry.errors import EndpointError
from tenantry.migrations.revisions import (
    Branch,
    compare,
    describe_unknown,
    format_revisions,
    heads_of,
    read_branches,
)
from tenantry.migrations.runner import MigrationTarget, migration_target
from tenantry.migrations.version_table import describe_unreachable, read_versions
from tenantry.tenants.model import Tenant

READ_THREADS = 8
"""Default number of databases to read at the same time. A thread mostly waits for a server."""

SAMPLE_SIZE = 8
"""Size of the sample of databases that an upgrade reads first.

If all databases in the sample are outdated, the upgrade assumes that all other databases are also
outdated, and does not read their revisions. Reading a database takes 5 ms, which is a sixth of a
small migration.
"""

TenantState = Literal[
    "no tables", "at head", "behind", "ahead", "unreachable", "upgraded", "downgraded", "failed"
]

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class MigrationStatus:
    """The state of a tenant's database, or the result of its migration."""

    tenant: str
    state: TenantState
    before: frozenset[str] = frozenset()
    """The revisions before the migration. Without a migration, the current revisions."""
    after: frozenset[str] = frozenset()
    """The revisions after the migration. Without a migration, the newest revisions in the code."""
    reason: str = ""
    """The problem of the database, and what to do about it."""
    target: MigrationTarget | None = field(default=None, repr=False, compare=False)
    """The migration target, or None if the tenant has no tables or its revisions cannot be read."""


OnStatus = Callable[[MigrationStatus], None]

_ReadBranches = Callable[[tuple[str, ...], str, str | None], tuple[Branch, ...]]


def fleet_status(
    tenants: Iterable[Tenant],
    data_dir: Path,
    on_status: OnStatus | None = None,
    *,
    threads: int = READ_THREADS,
) -> list[MigrationStatus]:
    """Read the state of each tenant's database, with one connection per database.

    Args:
        tenants: the tenants to read.
        data_dir: the folder of the journal and of the default databases.
        on_status: a function that receives each status as soon as it is known, in the calling
            thread.
        threads: the number of databases to read at the same time.

    Returns:
        One status for each tenant, in the order of `tenants`.
    """
    read_once = lru_cache(read_branches)
    data_dir = data_dir.absolute()
    with ThreadPoolExecutor(threads, thread_name_prefix="tenantry-status") as pool:
        futures = [pool.submit(_status, tenant, data_dir, read_once) for tenant in tenants]
        for status in as_they_complete(pool, futures):
            if on_status is not None:
                on_status(status)
    return [future.result() for future in futures]


def pending_in_apps(tenants: Iterable[Tenant], data_dir: Path) -> dict[str, str]:
    """Return a note for each tenant with pending migrations in `MIGRATIONS`.

    A database that cannot be read gets no note. Only tenants with `MIGRATIONS` are read.
    """
    notes: dict[str, str] = {}
    for status in fleet_status([each for each in tenants if each.migrations], data_dir):
        branches = () if status.target is None else status.target.branches
        heads = heads_of(branch for branch in branches if branch.is_of_app)
        if status.state == "failed":
            notes[status.tenant] = status.reason.rstrip(".")
        elif status.state in ("behind", "ahead") and not heads <= status.before:
            notes[status.tenant] = status.reason.rstrip(".") or (
                f"the application's migrations are pending: the database is at "
                f"{format_revisions(status.before)}, the code at {format_revisions(heads)}; run: "
                f"tenantry db upgrade --tenant {status.tenant}"
            )
    return notes


def status_before_upgrade(tenants: Sequence[Tenant], data_dir: Path) -> list[MigrationStatus]:
    """Read a sample of the databases.

    If all databases of the sample are outdated, assume that all other databases are outdated.

    Because the assumption can be wrong, the process that migrates a database reads its revisions
    again while it holds the lock.
    """
    sample = tenants[:: max(1, len(tenants) // SAMPLE_SIZE)]
    statuses = {status.tenant: status for status in fleet_status(sample, data_dir)}
    rest = [tenant for tenant in tenants if tenant.name not in statuses]
    if all(status.state == "behind" for status in statuses.values()):
        read_once = lru_cache(read_branches)
        others = [_assumed_status(tenant, data_dir.absolute(), read_once) for tenant in rest]
    else:
        others = fleet_status(rest, data_dir)
    statuses |= {status.tenant: status for status in others}
    return [statuses[tenant.name] for tenant in tenants]


def _status(tenant: Tenant, data_dir: Path, read: _ReadBranches) -> MigrationStatus:
    assumed = _assumed_status(tenant, data_dir, read)
    target = assumed.target
    if target is None:
        return assumed
    try:
        versions = read_versions(parse_database_url(target.url), target.options)
    except Exception as error:  # noqa: BLE001 - drivers raise many classes of exceptions
        reason = describe_unreachable(error)
        return MigrationStatus(tenant.name, "unreachable", reason=reason, target=target)
    found = compare(target.branches, versions)
    reason = describe_unknown(found) if found.unknown else ""
    return MigrationStatus(
        tenant.name, found.state, found.current, found.heads, reason=reason, target=target
    )


def _assumed_status(tenant: Tenant, data_dir: Path, read: _ReadBranches) -> MigrationStatus:
    """Return the status that a tenant would have with an empty database."""
    try:
        branches = read(tuple(tenant.blueprints), tenant.app_dir, tenant.migrations)
    except EndpointError as error:
        return MigrationStatus(tenant.name, "failed", reason=str(error))
    if not branches:
        return MigrationStatus(tenant.name, "no tables")
    url = tenant.database_uri.get_secret_value()
    target = migration_target(tenant.name, url, branches, data_dir, tenant.database_options)
    return MigrationStatus(tenant.name, "behind", after=target.heads, target=target)


def as_they_complete(pool: ThreadPoolExecutor, futures: list["Future[_Item]"]) -> Iterator[_Item]:
    """Yield the results of futures as they complete. On an error, cancel waiting futures."""
    try:
        for future in as_completed(futures):
            yield future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
