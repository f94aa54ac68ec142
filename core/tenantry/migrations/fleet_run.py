"""Upgrades and downgrades the databases of many tenants in one run, called a fleet run.

Each database is migrated in a child process. If a migration fails, the fleet run continues with the
next database. The journal records which databases have not been migrated yet.
"""

import os
import shlex
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from queue import LifoQueue

from tenantry.database.url import database_identity
from tenantry.errors import EndpointError, TenantryError
from tenantry.migrations.journal import Journal, JournalError, MigrationStep, journal_file
from tenantry.migrations.revisions import read_branches
from tenantry.migrations.runner import (
    LOCK_TIMEOUT_S,
    TIMEOUT_S,
    MigrationResult,
    MigrationRunner,
    MigrationTarget,
    migration_target,
)
from tenantry.migrations.status import (
    MigrationStatus,
    OnStatus,
    as_they_complete,
    status_before_upgrade,
)
from tenantry.tenants.model import Tenant

JOBS = 4
"""Number of databases that a fleet run migrates at the same time.

A migration mostly waits for the database server. Two measurements with 80 PostgreSQL databases gave
the following times per database: 305 and 279 ms with 1 job, 162 and 237 ms with 2 jobs, 73 and 175
ms with 4 jobs, and 144 and 154 ms with 8 jobs. The server shared 2 busy processors with the run.
"""


@dataclass(frozen=True)
class FleetReport:
    """The result of a fleet run.

    The attribute `run` is the number of the run, or None if no database changed.
    """

    run: int | None
    results: tuple[MigrationStatus, ...]


@dataclass(frozen=True)
class FleetLimits:
    """The limits of a fleet run."""

    jobs: int = JOBS
    timeout_s: float = TIMEOUT_S
    """Maximum duration in seconds of the migrations of one database."""
    lock_timeout_s: float = LOCK_TIMEOUT_S
    """Maximum seconds to wait while another process migrates the same database."""


def upgrade(
    tenants: Sequence[Tenant],
    data_dir: Path,
    limits: FleetLimits | None = None,
    on_status: OnStatus | None = None,
) -> FleetReport:
    """Upgrade databases to the heads, which are the newest revisions in the code.

    If an earlier run to the same heads is unfinished, this run continues it under the same number.
    A database that is already at its head takes one query.

    Args:
        tenants: the tenants to upgrade.
        data_dir: the folder of the journal and of the default databases.
        limits: concurrency and time limits of the run.
        on_status: called in the calling thread with each tenant's result, as soon as the result is
            known.

    Raises:
        TenantryError: the journal cannot be used.
    """
    notify = on_status or _ignore
    statuses = status_before_upgrade(tenants, data_dir)
    for status in statuses:
        if status.state != "behind":
            notify(status)
    targets = {status.tenant: status.target for status in statuses if status.target}
    behind = [status.target for status in statuses if status.target and status.state == "behind"]
    if not behind and not journal_file(data_dir).exists():
        return FleetReport(None, tuple(statuses))
    with Journal(data_dir) as journal:
        databases = {
            name: identity_in_journal(target.url, data_dir) for name, target in targets.items()
        }
        at_head = [status.tenant for status in statuses if status.state == "at head"]
        journal.record_at_head({name: databases[name] for name in at_head})
        if not behind:
            return FleetReport(None, tuple(statuses))
        run = _open_run(journal, behind, databases)
        results: dict[str, MigrationStatus] = {}

        def upgrade_one(runner: MigrationRunner, target: MigrationTarget) -> MigrationStatus:
            return _upgrade(journal, run, runner, target, databases[target.tenant])

        for result in _for_each(behind, upgrade_one, limits or FleetLimits()):
            results[result.tenant] = result
            notify(result)
    return FleetReport(run, tuple(results.get(status.tenant, status) for status in statuses))


def upgrade_for_host(target: MigrationTarget, data_dir: Path) -> MigrationStatus:
    """Upgrade one database when the host builds its app, and record the upgrade in the journal.

    Raises:
        TenantryError: the journal cannot be used.
    """
    with Journal(data_dir) as journal, MigrationRunner() as runner:
        database = identity_in_journal(target.url, data_dir)
        run = _open_run(journal, [target], {target.tenant: database}, joins_finished=True)
        return _upgrade(journal, run, runner, target, database)


def last_step(target: MigrationTarget, data_dir: Path) -> MigrationStep | None:
    """Return what the journal knows about a tenant's database, or None.

    Raises:
        TenantryError: the journal cannot be used.
    """
    if not journal_file(data_dir).exists():
        return None
    with Journal(data_dir) as journal:
        return journal.last_step(target.tenant, identity_in_journal(target.url, data_dir))


def _ignore(_: MigrationStatus) -> None:
    pass


def identity_in_journal(url: str, data_dir: Path) -> str:
    """Return the identity of a database for the journal, without the password.

    The path of a file in the data folder is relative, so the data folder can be moved.
    """
    kind, *parts = database_identity(url) or ("memory",)
    folder = os.path.realpath(data_dir)
    if kind == "sqlite" and parts[0].startswith(f"{folder}/"):
        parts = [os.path.relpath(parts[0], folder)]
    return shlex.join((kind, *parts))


def _open_run(
    journal: Journal,
    targets: Sequence[MigrationTarget],
    databases: dict[str, str],
    *,
    joins_finished: bool = False,
) -> int:
    branches = [branch for target in targets for branch in target.branches]
    return journal.open_run(
        heads={branch.endpoint: branch.heads for branch in branches},
        destinations={target.tenant: target.heads for target in targets},
        databases=databases,
        joins_finished=joins_finished,
    )


def _upgrade(
    journal: Journal, run: int, runner: MigrationRunner, target: MigrationTarget, database: str
) -> MigrationStatus:
    """Upgrade one database and record the upgrade in the journal."""
    name = target.tenant

    def record_start(before: frozenset[str]) -> None:
        journal.record_start(run, name, before, target.heads, database)

    try:
        result = runner.upgrade(target, record_start)
    except JournalError as error:  # without a journal record, no migration starts
        return MigrationStatus(name, "failed", reason=str(error))
    before, after = result.before or frozenset(), result.after or frozenset()
    if result.state == "unchanged":  # another run has upgraded it
        status = MigrationStatus(name, "at head", before, after)
        return _recorded(status, lambda: journal.record_at_head({name: database}))
    if result.state == "migrated":
        status = MigrationStatus(name, "upgraded", before, after)
        return _recorded(status, lambda: journal.record_success(run, name))
    status = _status_of_failure(name, result)
    return _recorded(status, lambda: journal.record_failure(run, name, result.reason))


def _status_of_failure(tenant: str, result: MigrationResult) -> MigrationStatus:
    before = result.before or frozenset()
    after = before if result.after is None else result.after
    state = result.state if result.state in ("ahead", "unreachable") else "failed"
    return MigrationStatus(tenant, state, before, after, result.reason)


def _recorded(status: MigrationStatus, record: Callable[[], None]) -> MigrationStatus:
    """Write a result to the journal. If the journal fails, add the error to the result.

    After an error of the journal, the step remains `running`, and the next run reads the state of
    the database.
    """
    try:
        record()
    except JournalError as error:
        return replace(status, reason=f"{status.reason} {error}".lstrip())
    return status


def downgrade(
    tenants: Sequence[Tenant],
    data_dir: Path,
    run: int | None = None,
    limits: FleetLimits | None = None,
    on_status: OnStatus | None = None,
) -> FleetReport:
    """Downgrade the databases of the given tenants to their revisions from before a run.

    Databases that the run did not change are not downgraded. A downgrade undoes only the revisions
    that the run applied.

    Args:
        tenants: the tenants to downgrade.
        data_dir: the folder of the journal and of the default databases.
        run: the number of the run. The default is the last run that changed one of the databases.
        limits: concurrency and time limits of the run.
        on_status: called in the calling thread with each tenant's result, as soon as the result is
            known.

    Raises:
        TenantryError: the run does not exist, the last run is downgraded already, or the journal
            cannot be used.
    """
    notify = on_status or _ignore
    if not journal_file(data_dir).exists():
        raise TenantryError(
            f"no run to downgrade: no migration has run with data folder {data_dir}."
        )
    with Journal(data_dir) as journal:
        run = _run_to_downgrade(journal, run, {tenant.name for tenant in tenants})
        if run is None:
            return FleetReport(None, ())
        steps = {step.tenant: step for step in journal.steps(run) if step.is_applied}
        found = [
            _downgrade_target(tenant, data_dir.absolute(), steps[tenant.name])
            for tenant in tenants
            if tenant.name in steps
        ]
        results = [each for each in found if isinstance(each, MigrationStatus)]
        for result in results:
            notify(result)

        def downgrade_one(runner: MigrationRunner, target: MigrationTarget) -> MigrationStatus:
            return _downgrade(journal, steps[target.tenant], runner, target)

        targets = [each for each in found if isinstance(each, MigrationTarget)]
        for result in _for_each(targets, downgrade_one, limits or FleetLimits()):
            results.append(result)
            notify(result)
    return FleetReport(run, tuple(sorted(results, key=lambda result: result.tenant)))


def _run_to_downgrade(
    journal: Journal, requested: int | None, tenants: Collection[str]
) -> int | None:
    """Return the requested run. Without a request, return the last run.

    Raises:
        TenantryError: the run does not exist, or the last run is downgraded already.
    """
    runs = journal.runs()
    if requested is not None and requested not in runs:
        numbers = ", ".join(map(str, runs)) or "none"
        raise TenantryError(f"no run {requested} to downgrade; runs: {numbers}.")
    last, remaining = journal.last_applied(tenants)
    if requested is None and last != remaining:
        rest = (
            ", and so are all earlier runs"
            if remaining is None
            else f"; to undo run {remaining}, use --run {remaining}"
        )
        raise TenantryError(f"run {last} is downgraded already{rest}.")
    return requested or last


def _downgrade_target(
    tenant: Tenant, data_dir: Path, step: MigrationStep
) -> MigrationTarget | MigrationStatus:
    """Return the target of a downgrade, or the status of a tenant that cannot be downgraded."""
    try:
        branches = read_branches(tenant.blueprints, tenant.app_dir, tenant.migrations)
    except EndpointError as error:
        return MigrationStatus(tenant.name, "failed", reason=str(error))
    if not branches:
        reason = "no migrations found; enable the endpoint or 'MIGRATIONS' again, and try again."
        return MigrationStatus(tenant.name, "failed", reason=reason)
    url = tenant.database_uri.get_secret_value()
    target = migration_target(tenant.name, url, branches, data_dir, tenant.database_options)
    database = identity_in_journal(target.url, data_dir)
    if database != step.database:
        reason = (
            f"its database is {database}, but run {step.run} changed {step.database}; to downgrade "
            "that one, name it in 'DATABASE_URI'."
        )
        return MigrationStatus(tenant.name, "failed", reason=reason)
    return target


def _downgrade(
    journal: Journal, step: MigrationStep, runner: MigrationRunner, target: MigrationTarget
) -> MigrationStatus:
    """Downgrade one database and record the downgrade in the journal."""
    destination = step.before or frozenset()
    result = runner.downgrade(target, step.after, destination)
    if result.state in ("migrated", "unchanged"):
        status = MigrationStatus(step.tenant, "downgraded", step.after, destination)
        return _recorded(status, lambda: journal.record_downgrade(step.run, step.tenant))
    status = _status_of_failure(step.tenant, result)
    return _recorded(
        status, lambda: journal.record_downgrade_failure(step.run, step.tenant, result.reason)
    )


def _for_each(
    targets: Sequence[MigrationTarget],
    migrate_one: Callable[[MigrationRunner, MigrationTarget], MigrationStatus],
    limits: FleetLimits,
) -> Iterator[MigrationStatus]:
    """Yield the result of `migrate_one` for each target, as the migrations complete."""
    runners = [MigrationRunner(limits.timeout_s, limits.lock_timeout_s) for _ in range(limits.jobs)]
    # The most recently used runner comes first, because its child process is already running.
    idle: LifoQueue[MigrationRunner] = LifoQueue()

    def migrate_with_idle_runner(target: MigrationTarget) -> MigrationStatus:
        runner = idle.get()
        try:
            return migrate_one(runner, target)
        finally:
            idle.put(runner)

    with ExitStack() as stack:
        for runner in runners:
            idle.put(stack.enter_context(runner))
        with ThreadPoolExecutor(limits.jobs, thread_name_prefix="tenantry-migrate") as pool:
            futures = [pool.submit(migrate_with_idle_runner, target) for target in targets]
            try:
                yield from as_they_complete(pool, futures)
            # On Ctrl-C, for example, the runners are killed, and the databases roll back their
            # migrations.
            except BaseException:
                for runner in runners:
                    runner.kill()
                raise
