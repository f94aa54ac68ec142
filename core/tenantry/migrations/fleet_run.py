"""Migrations over a fleet of tenants: up to the code, and back.

Looks in threads (`survey`), changes in processes of their own (`migrator`), which look again. One
tenant's fault, whatever it is, is that tenant's outcome; the journal says what is left.
"""

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from tenantry.database.url import database_identity
from tenantry.errors import EndpointError, TenantryError
from tenantry.migrations.children import Nursery
from tenantry.migrations.journal import Journal, JournalError, Step, journal_file
from tenantry.migrations.revisions import read_branches
from tenantry.migrations.runner import (
    LOCK_WAIT_S,
    TIMEOUT_S,
    MigrationRunner,
    Result,
    Target,
    target_of,
)
from tenantry.migrations.status import Outcome, Tell, as_they_end, heads_of, look_or_presume
from tenantry.tenants.model import Tenant

JOBS = 4
"""Databases that are migrated at once: a migration mostly waits for its server. Seen with 80
PostgreSQL databases, server and all on 2 busy processors, in ms for each, two turns: 305 and 279
with 1, 162 and 237 with 2, 73 and 175 with 4, 144 and 154 with 8."""


@dataclass(frozen=True)
class FleetReport:
    """What a run did. `run` is its number in the journal; None if there was nothing to do."""

    run: int | None
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class FleetLimits:
    """How much at once, and for how long."""

    jobs: int = JOBS
    timeout_s: float = TIMEOUT_S
    """For the migrations of one database."""
    lock_wait_s: float = LOCK_WAIT_S
    """For another run that migrates the same database."""


def upgrade(
    tenants: Sequence[Tenant],
    data_dir: Path,
    limits: FleetLimits | None = None,
    tell: Tell | None = None,
) -> FleetReport:
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
    with Nursery() as nursery:
        found = look_or_presume(tenants, data_dir, nursery)
        for outcome, _ in found:
            if outcome.state != "behind":
                tell(outcome)
        behind = {one.tenant: target for one, target in found if target and one.state == "behind"}
        if not behind and not journal_file(data_dir).exists():
            return FleetReport(None, tuple(outcome for outcome, _ in found))
        with Journal(data_dir) as journal:
            databases = {one.tenant: _database(target, data_dir) for one, target in found if target}
            journal.note_at_head(
                {one.tenant: databases[one.tenant] for one, _ in found if one.state == "at head"}
            )
            run = _open_run(journal, behind, databases) if behind else None
            done: dict[str, Outcome] = {}
            if run is not None:
                work = _Work(limits or FleetLimits(), nursery, data_dir)
                for outcome in _upgrade_each(journal, run, behind.values(), work):
                    done[outcome.tenant] = outcome
                    tell(outcome)
    return FleetReport(run, tuple(done.get(one.tenant, one) for one, _ in found))


def _database(target: Target, data_dir: Path) -> str:
    """Return which database a target's is, as the journal has it; no password is in it.

    A file in the data folder is the same when that folder is moved, journal and all.
    """
    kind, *where = database_identity(target.url) or ("memory",)
    folder = os.path.realpath(data_dir)
    if kind == "sqlite" and where[0].startswith(f"{folder}/"):
        where = [os.path.relpath(where[0], folder)]
    return shlex.join((kind, *where))


def _open_run(journal: Journal, behind: dict[str, Target], databases: dict[str, str]) -> int:
    branches = [branch for target in behind.values() for branch in target.branches]
    heads = {branch.endpoint: branch.heads for branch in branches}
    wanted = {name: heads_of(target) for name, target in behind.items()}
    return journal.open_run(heads, wanted, databases)


def _upgrade_each(
    journal: Journal, run: int, targets: Iterable[Target], work: "_Work"
) -> Iterator[Outcome]:
    def act(migrator: MigrationRunner, target: Target) -> Outcome:
        name, heads = target.tenant, heads_of(target)
        database = _database(target, work.data_dir)

        def begins(at: frozenset[str]) -> None:
            journal.note_running(run, name, at, heads, database)

        try:
            result = migrator.upgrade(target, begins)
        except JournalError as error:  # nothing is changed of which the journal cannot tell
            return Outcome(name, "failed", reason=str(error))
        at = result.after or frozenset()
        if result.state == "was there":  # another run was quicker, or the one that was killed
            one = Outcome(name, "at head", at, at)
            return _noted(one, lambda: journal.note_at_head({name: database}))
        if result.state == "done":
            one = Outcome(name, "upgraded", result.before or frozenset(), at)
            return _noted(one, lambda: journal.note_done(run, name))
        one = _failed(name, result)
        return _noted(one, lambda: journal.note_failed(run, name, result.reason))

    return _in_parallel(targets, act, work)


def _noted(outcome: Outcome, note: Callable[[], None]) -> Outcome:
    """Write into the journal what was done; if that fails, the run goes on, and the outcome tells.

    The journal has it as running then: the next run finds out how it ended.
    """
    try:
        note()
    except JournalError as error:
        return replace(outcome, reason=f"{outcome.reason} {error}".lstrip())
    return outcome


def downgrade(
    tenants: Sequence[Tenant],
    data_dir: Path,
    run: int | None = None,
    limits: FleetLimits | None = None,
    tell: Tell | None = None,
) -> FleetReport:
    """Bring the databases of these tenants back to what they were at before a run.

    Only those that the run changed, and only what it applied to each.

    Args:
        tenants: whose databases.
        data_dir: where the journal and the default databases are.
        run: its number; the last one that applied something when None.
        limits: how much at once.
        tell: is called on this thread with each outcome.

    Raises:
        TenantryError: there is no such run, the last one is taken back already, or the journal
            cannot be used.
    """
    tell = tell or (lambda _: None)
    if not journal_file(data_dir).exists():
        raise TenantryError(f"no run to take back: there is no journal in {data_dir}.")
    with Journal(data_dir) as journal:
        run = _run_to_take_back(journal, run)
        if run is None:
            return FleetReport(None, ())
        applied = {step.tenant: step for step in journal.steps(run) if _is_applied(step)}
        begun = [one for one in tenants if one.name in applied]
        found = [_target_back(one, data_dir.absolute(), applied[one.name]) for one in begun]
        outcomes = [one for one in found if isinstance(one, Outcome)]
        targets = [one for one in found if isinstance(one, Target)]
        for outcome in outcomes:
            tell(outcome)
        with Nursery() as nursery:
            nursery.start({target.url.partition(":")[0] for target in targets})
            work = _Work(limits or FleetLimits(), nursery, data_dir)
            for outcome in _take_back_each(journal, applied, targets, work):
                outcomes.append(outcome)
                tell(outcome)
    return FleetReport(run, tuple(sorted(outcomes, key=lambda one: one.tenant)))


def _run_to_take_back(journal: Journal, asked: int | None) -> int | None:
    """Return the run that is asked for, or the last; never, unasked, the one before that.

    Raises:
        TenantryError: there is no such run, or the last one is taken back already.
    """
    known = journal.runs()
    if asked is not None and asked not in known:
        there = ", ".join(map(str, known)) or "none"
        raise TenantryError(f"no run {asked} to take back; runs: {there}.")
    last, left = journal.last_applied()
    if asked is None and last != left:
        remedy = "nothing is left of those before it" if left is None else f"name --run {left}"
        raise TenantryError(f"run {last} is taken back already; {remedy}.")
    return asked or last


def _is_applied(step: Step) -> bool:
    """Whether a run changed a database, or was killed before it could say that it had."""
    return step.before is not None and step.state in ("done", "running", "pending")


def _take_back_each(
    journal: Journal, applied: dict[str, Step], targets: Iterable[Target], work: "_Work"
) -> Iterator[Outcome]:
    def act(migrator: MigrationRunner, target: Target) -> Outcome:
        step = applied[target.tenant]
        goal = step.before or frozenset()
        result = migrator.take_back(target, step.after, goal, lambda _: None)
        if result.state in ("done", "was there"):
            one = Outcome(target.tenant, "taken back", step.after, goal)
            return _noted(one, lambda: journal.note_taken_back(step.run, target.tenant))
        one = _failed(target.tenant, result)
        note = partial(journal.note_not_taken_back, step.run, target.tenant, result.reason)
        return _noted(one, note)

    return _in_parallel(targets, act, work)


def _target_back(tenant: Tenant, data_dir: Path, step: Step) -> Target | Outcome:
    try:
        branches = read_branches(tenant.blueprints)
    except EndpointError as error:
        return Outcome(tenant.name, "failed", reason=str(error))
    if not branches:
        text = "none of its endpoints has tables any more; enable the one that had, and try again."
        return Outcome(tenant.name, "failed", reason=text)
    url = tenant.database_uri.get_secret_value()
    target = target_of(tenant.name, url, branches, data_dir)
    database = _database(target, data_dir)
    if database != (step.database or database):
        text = f"its database is {database}, and run {step.run} changed {step.database}"
        remedy = "let DATABASE_URI name that one to take it back there."
        return Outcome(tenant.name, "failed", reason=f"{text}; {remedy}")
    return target


def _failed(tenant: str, result: Result) -> Outcome:
    before = result.before or frozenset()
    after = before if result.after is None else result.after
    state = result.state if result.state in ("ahead", "unreachable") else "failed"
    return Outcome(tenant, state, before, after, result.reason)


@dataclass(frozen=True)
class _Work:
    """How much at once, and who does it."""

    limits: FleetLimits
    nursery: Nursery
    data_dir: Path


def _in_parallel(
    targets: Iterable[Target], act: Callable[[MigrationRunner, Target], Outcome], work: _Work
) -> Iterator[Outcome]:
    """Yield what `act` makes of each target, as they end; each thread has a process of its own."""
    idle: SimpleQueue[MigrationRunner] = SimpleQueue()

    def act_with_one(target: Target) -> Outcome:
        migrator = idle.get()
        try:
            return act(migrator, target)
        finally:
            idle.put(migrator)

    with ExitStack() as migrators:
        limits = work.limits
        for _ in range(limits.jobs):
            one = MigrationRunner(work.nursery, limits.timeout_s, limits.lock_wait_s)
            idle.put(migrators.enter_context(one))
        with ThreadPoolExecutor(limits.jobs, thread_name_prefix="tenantry-migrate") as pool:
            running = [pool.submit(act_with_one, target) for target in targets]
            try:
                yield from as_they_end(pool, running)
            except BaseException:  # Ctrl-C: what runs is ended, and taken back by its engine
                migrators.close()
                raise
