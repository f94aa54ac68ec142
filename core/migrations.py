"""Migrations over a fleet of tenants: where each database stands, up to the code, and back.

Looks in threads, changes in processes of their own (`migrator`). One tenant's fault, whatever it
is, is that tenant's outcome; the journal says what is left.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, TypeVar

from core.database_url import parse_database_url
from core.errors import EndpointError, TenantryError
from core.journal import Journal, Step, journal_file
from core.migrator import LOCK_WAIT_S, TIMEOUT_S, Migrator, Result, Target, target_of
from core.revisions import ahead, compare, look, one_line, read_branches
from core.tenant import Tenant

JOBS = 4
"""Databases that are migrated at once: a migration mostly waits for its server. On 2 processors,
1,000 PostgreSQL databases took least time with 4."""

LOOKS = 8
"""Databases that are looked at at once: that is even more waiting, and no process each."""

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


@dataclass(frozen=True)
class Report:
    """What a run did. `run` is its number in the journal; None if there was nothing to do."""

    run: int | None
    outcomes: tuple[Outcome, ...]


Tell = Callable[[Outcome], None]


@dataclass(frozen=True)
class Limits:
    """How much at once, and for how long."""

    jobs: int = JOBS
    timeout_s: float = TIMEOUT_S
    """For the migrations of one database."""
    lock_wait_s: float = LOCK_WAIT_S
    """For another run that migrates the same database."""


def survey(
    tenants: Iterable[Tenant], data_dir: Path, tell: Tell | None = None
) -> list[tuple[Outcome, Target | None]]:
    """Look where each tenant's database stands, by one query each; changes nothing.

    Returns:
        In the order of `tenants`; with the target of each that has tables and code that can be
        read.
    """
    with ThreadPoolExecutor(LOOKS, thread_name_prefix="tenantry-look") as pool:
        looks = [pool.submit(_look_at, tenant, data_dir.absolute()) for tenant in tenants]
        for done in _as_they_end(pool, looks):
            if tell is not None:
                tell(done[0])
    return [one.result() for one in looks]


def _look_at(tenant: Tenant, data_dir: Path) -> tuple[Outcome, Target | None]:
    try:
        branches = read_branches(tenant.blueprints)
    except EndpointError as error:
        return Outcome(tenant.name, "failed", reason=str(error)), None
    if not branches:
        return Outcome(tenant.name, "no tables"), None
    text = tenant.database_uri.get_secret_value()
    target = target_of(tenant.name, text, branches, data_dir)
    try:
        rows = look(parse_database_url(text))
    except Exception as error:  # noqa: BLE001 - whatever a driver raises
        reason = f"its database cannot be asked: {one_line(error)}."
        return Outcome(tenant.name, "unreachable", reason=reason), target
    found = compare(branches, rows)
    reason = ahead(found) if found.state == "ahead" else ""
    return Outcome(tenant.name, found.state, found.current, found.heads, reason), target


def upgrade(
    tenants: Sequence[Tenant],
    data_dir: Path,
    limits: Limits | None = None,
    tell: Tell | None = None,
) -> Report:
    """Bring the databases of these tenants to the heads of their code.

    What an earlier run to the same heads has left is done under its number. Tenants at head cost
    one query each.

    Args:
        tenants: whose databases.
        data_dir: where the journal and the default databases are.
        limits: how much at once.
        tell: is called on this thread with each outcome.

    Raises:
        TenantryError: the journal cannot be used.
    """
    tell = tell or (lambda _: None)
    found = survey(tenants, data_dir)
    for outcome, _ in found:
        if outcome.state != "behind":
            tell(outcome)
    behind = {one.tenant: target for one, target in found if target and one.state == "behind"}
    if not behind and not journal_file(data_dir).exists():
        return Report(None, tuple(outcome for outcome, _ in found))
    with Journal(data_dir) as journal:
        journal.note_at_head(one.tenant for one, _ in found if one.state == "at head")
        run = _open_run(journal, behind) if behind else None
        done: dict[str, Outcome] = {}
        if run is not None:
            for outcome in _upgrade_each(journal, run, behind.values(), limits or Limits()):
                done[outcome.tenant] = outcome
                tell(outcome)
    return Report(run, tuple(done.get(one.tenant, one) for one, _ in found))


def _open_run(journal: Journal, behind: dict[str, Target]) -> int:
    branches = [branch for target in behind.values() for branch in target.branches]
    heads = {branch.endpoint: branch.heads for branch in branches}
    wanted = {name: _heads(target) for name, target in behind.items()}
    return journal.open_run(heads, wanted)


def _heads(target: Target) -> frozenset[str]:
    return frozenset[str]().union(*(branch.heads for branch in target.branches))


def _upgrade_each(
    journal: Journal, run: int, targets: Iterable[Target], limits: Limits
) -> Iterator[Outcome]:
    def act(migrator: Migrator, target: Target) -> Outcome:
        name = target.tenant
        result = migrator.upgrade(target, lambda at: journal.note_running(run, name, at))
        at = result.after or frozenset()
        is_done = result.state == "done" or _heads(target) <= at
        if result.state == "was there":  # another run was quicker, or the one that was killed
            journal.note_at_head([name])
            return Outcome(name, "at head", at, at)
        if is_done:  # even if its process was lost: what counts is what the database says
            journal.note_done(run, name)
            return Outcome(name, "upgraded", result.before or frozenset(), at)
        journal.note_failed(run, name, result.reason)
        return _failed(name, result)

    return _in_parallel(targets, act, limits)


def downgrade(
    tenants: Sequence[Tenant],
    data_dir: Path,
    run: int | None = None,
    limits: Limits | None = None,
    tell: Tell | None = None,
) -> Report:
    """Bring the databases of these tenants back to what they were at before a run.

    Only those that the run changed, and only what it applied to each.

    Args:
        tenants: whose databases.
        data_dir: where the journal and the default databases are.
        run: its number; the last one of which something can be taken back when None.
        limits: how much at once.
        tell: is called on this thread with each outcome.

    Raises:
        TenantryError: there is no such run, or the journal cannot be used.
    """
    tell = tell or (lambda _: None)
    if not journal_file(data_dir).exists():
        raise TenantryError(f"no run to take back: there is no journal in {data_dir}.")
    with Journal(data_dir) as journal:
        known = journal.runs()
        if run is not None and run not in known:
            there = ", ".join(map(str, known)) or "none"
            raise TenantryError(f"no run {run} to take back; runs: {there}.")
        run = run or journal.last_applied()
        if run is None:
            return Report(None, ())
        applied = {step.tenant: step for step in journal.steps(run) if _is_applied(step)}
        found = [_target_back(one, data_dir.absolute()) for one in tenants if one.name in applied]
        outcomes = [one for one in found if isinstance(one, Outcome)]
        targets = [one for one in found if isinstance(one, Target)]
        for outcome in outcomes:
            tell(outcome)
        for outcome in _take_back_each(journal, applied, targets, limits or Limits()):
            outcomes.append(outcome)
            tell(outcome)
    return Report(run, tuple(sorted(outcomes, key=lambda one: one.tenant)))


def _is_applied(step: Step) -> bool:
    """Whether a run changed a database, or was killed before it could say that it had."""
    return step.before is not None and step.state in ("done", "running", "pending")


def _take_back_each(
    journal: Journal, applied: dict[str, Step], targets: Iterable[Target], limits: Limits
) -> Iterator[Outcome]:
    def act(migrator: Migrator, target: Target) -> Outcome:
        step = applied[target.tenant]
        goal = step.before or frozenset()
        result = migrator.take_back(target, step.after, goal, lambda _: None)
        if result.state == "failed" and result.after != goal:
            journal.note_not_taken_back(step.run, target.tenant, result.reason)
            return _failed(target.tenant, result)
        journal.note_taken_back(step.run, target.tenant)
        return Outcome(target.tenant, "taken back", step.after, goal)

    return _in_parallel(targets, act, limits)


def _target_back(tenant: Tenant, data_dir: Path) -> Target | Outcome:
    try:
        branches = read_branches(tenant.blueprints)
    except EndpointError as error:
        return Outcome(tenant.name, "failed", reason=str(error))
    if not branches:
        text = "none of its endpoints has tables any more; enable the one that had, and try again."
        return Outcome(tenant.name, "failed", reason=text)
    return target_of(tenant.name, tenant.database_uri.get_secret_value(), branches, data_dir)


def _failed(tenant: str, result: Result) -> Outcome:
    before = result.before or frozenset()
    after = before if result.after is None else result.after
    return Outcome(tenant, "failed", before, after, result.reason)


def _in_parallel(
    targets: Iterable[Target], act: Callable[[Migrator, Target], Outcome], limits: Limits
) -> Iterator[Outcome]:
    """Yield what `act` makes of each target, as they end; each thread has a process of its own."""
    idle: SimpleQueue[Migrator] = SimpleQueue()

    def act_with_one(target: Target) -> Outcome:
        migrator = idle.get()
        try:
            return act(migrator, target)
        finally:
            idle.put(migrator)

    with ExitStack() as migrators:
        for _ in range(limits.jobs):
            one = Migrator(limits.timeout_s, limits.lock_wait_s)
            idle.put(migrators.enter_context(one))
        with ThreadPoolExecutor(limits.jobs, thread_name_prefix="tenantry-migrate") as pool:
            work = [pool.submit(act_with_one, target) for target in targets]
            try:
                yield from _as_they_end(pool, work)
            except BaseException:  # Ctrl-C: what runs is ended, and taken back by its engine
                migrators.close()
                raise


def _as_they_end(pool: ThreadPoolExecutor, work: list["Future[_Item]"]) -> Iterator[_Item]:
    try:
        for one in as_completed(work):
            yield one.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
