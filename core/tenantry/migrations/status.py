"""Where the databases of a fleet stand: looked at in threads, or presumed. Changes nothing.

One tenant's fault, whatever it is, is that tenant's outcome.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

from tenantry.database.url import parse_database_url
from tenantry.errors import EndpointError
from tenantry.migrations.children import Nursery
from tenantry.migrations.revisions import Branch, ahead, compare, look, read_branches, unreachable
from tenantry.migrations.runner import Target, target_of
from tenantry.tenants.model import Tenant

LOOKS = 8
"""Databases that are looked at at once: even more waiting than to migrate them, and no process
each."""

SAMPLE = 8
"""If as many tenants from all over a fleet are all behind, the others are not looked at but by the
process that migrates: a connection costs as much as a small migration."""

State = Literal[
    "no tables", "at head", "behind", "ahead", "unreachable", "upgraded", "taken back", "failed"
]

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Outcome:
    """Where one tenant's database stands, or what was done to it."""

    tenant: str
    state: State
    before: frozenset[str] = frozenset()
    """What it was at."""
    after: frozenset[str] = frozenset()
    """What it is at now; where it is only looked at, what its code wants."""
    reason: str = ""
    """Why it is not where it should be, and what to do."""


Tell = Callable[[Outcome], None]

Found = tuple[Outcome, Target | None]
"""With the target of a tenant that has tables and code that can be read."""

_Read = Callable[[tuple[str, ...]], tuple[Branch, ...]]


def survey(tenants: Iterable[Tenant], data_dir: Path, tell: Tell | None = None) -> list[Found]:
    """Look where each tenant's database stands, by one query each; changes nothing.

    Returns:
        In the order of `tenants`; with the target of each that has tables and code that can be
        read.
    """
    read = _read_once()
    with ThreadPoolExecutor(LOOKS, thread_name_prefix="tenantry-look") as pool:
        looks = [pool.submit(_look_at, tenant, data_dir.absolute(), read) for tenant in tenants]
        for done in as_they_end(pool, looks):
            if tell is not None:
                tell(done[0])
    return [one.result() for one in looks]


def _read_once() -> _Read:
    """Return a `read_branches` that reads the same endpoints once; for one look at a fleet."""
    return lru_cache(read_branches)


def _look_at(tenant: Tenant, data_dir: Path, read: _Read) -> Found:
    presumed, target = _presumed(tenant, data_dir, read)
    if target is None:
        return presumed, None
    try:
        rows = look(parse_database_url(target.url))
    except Exception as error:  # noqa: BLE001 - whatever a driver raises
        return Outcome(tenant.name, "unreachable", reason=unreachable(error)), target
    found = compare(target.branches, rows)
    reason = ahead(found) if found.newer else ""
    return Outcome(tenant.name, found.state, found.current, found.heads, reason), target


def _presumed(tenant: Tenant, data_dir: Path, read: _Read) -> Found:
    """Return where a tenant's database would be, had nothing been done to it yet."""
    try:
        branches = read(tuple(tenant.blueprints))
    except EndpointError as error:
        return Outcome(tenant.name, "failed", reason=str(error)), None
    if not branches:
        return Outcome(tenant.name, "no tables"), None
    text = tenant.database_uri.get_secret_value()
    target = target_of(tenant.name, text, branches, data_dir)
    return Outcome(tenant.name, "behind", after=heads_of(target)), target


def look_or_presume(tenants: Sequence[Tenant], data_dir: Path, nursery: Nursery) -> list[Found]:
    """Look where each tenant's database stands, unless most will be looked at when migrated.

    Args:
        tenants: whose databases.
        data_dir: where the default databases are.
        nursery: is started as soon as a migration is known to come.
    """
    sample = tenants[:: max(1, len(tenants) // SAMPLE)]
    looked = {one.tenant: (one, target) for one, target in survey(sample, data_dir)}
    behind = [target.url for one, target in looked.values() if target and one.state == "behind"]
    if behind:
        nursery.start({url.partition(":")[0] for url in behind})
    rest = [tenant for tenant in tenants if tenant.name not in looked]
    if len(behind) == len(sample):
        read = _read_once()
        others = [_presumed(tenant, data_dir.absolute(), read) for tenant in rest]
    else:
        others = survey(rest, data_dir)
    looked |= {one.tenant: (one, target) for one, target in others}
    return [looked[tenant.name] for tenant in tenants]


def heads_of(target: Target) -> frozenset[str]:
    """Return what the code wants a database to be at."""
    return frozenset[str]().union(*(branch.heads for branch in target.branches))


def as_they_end(pool: ThreadPoolExecutor, work: list["Future[_Item]"]) -> Iterator[_Item]:
    """Yield what each thread made, as they end; what has not begun is dropped if one fails."""
    try:
        for one in as_completed(work):
            yield one.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
