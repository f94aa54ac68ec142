"""`tenantry restart`: replaces the workers of the running host, so that new code runs."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import click

from tenantry.app.trial_build import try_builds
from tenantry.cli.output import count, examples
from tenantry.errors import TenantryError
from tenantry.migrations.trial import find_migration_problems, find_untried
from tenantry.observability.control_socket import WorkerStatus
from tenantry.private_code.generations import new_generation, remove_if_unused
from tenantry.server.rolling_restart import check_new_code, replace_workers, running_workers
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.catalogue import Catalogue, scan_tenants
from tenantry.tenants.last_good import LastGood

SERVING_STATES = frozenset({"serving", "idle", "stale"})
"""The states in which a tenant serves requests."""


@click.command("restart", epilog=examples("tenantry restart"))
@click.option(
    "--force", "is_forced", is_flag=True, help="Restart even if serving tenants would fail."
)
def command(is_forced: bool) -> None:
    """Replace all workers with new workers.

    Start workers with new code, and then stop the old workers. No request fails or waits. Before
    the restart, the command imports the new code, reads all tenant files and builds each endpoint.
    If a serving tenant would fail, nothing is restarted. Each worker has 60 s to start and 60 s to
    stop. The command requires gunicorn.
    """
    click.echo(f"{count(restart(read_settings(), is_forced=is_forced), 'worker')} replaced.")


def restart(settings: HostSettings, *, is_forced: bool = False) -> int:
    """Replace every worker of the running host, and return the number of replaced workers.

    Args:
        settings: The host's settings.
        is_forced: Whether to restart even if serving tenants would fail.

    Raises:
        TenantryError: A serving tenant would fail in the new workers, or a worker did not start or
            stop in time. If a serving tenant would fail, no worker is restarted.
    """
    workers = running_workers(settings.data_dir)
    check_new_code()
    hosts = sorted({worker.code for worker in workers if worker.code})
    with ExitStack() as stack:
        # The validation of the tenant files copies the code that they name.
        new = [stack.enter_context(_new_generation(settings, host)) for host in hosts]
        catalogue = scan_tenants(settings)
        for tenant, note in find_untried(catalogue.tenants, settings.data_dir):
            click.echo(f"note: {tenant.name}: {note}", err=True)
        lost = _find_lost_tenants(settings, workers, catalogue)
        if lost and not is_forced:
            remedy = "nothing was restarted; fix or disable these tenants, or use --force."
            raise TenantryError("\n".join([*lost, remedy]))
    try:
        replace_workers(settings.data_dir, workers)
    except BaseException:
        for generation in new:
            remove_if_unused(generation)
        raise
    return len(workers)


def _new_generation(settings: HostSettings, host: str) -> AbstractContextManager[Path]:
    return new_generation(settings.data_dir, host, settings.folders_without_code)


def _find_lost_tenants(
    settings: HostSettings, workers: Sequence[WorkerStatus], catalogue: Catalogue
) -> list[str]:
    """Return a line for each serving tenant that would fail in a new worker.

    A stale tenant would not fail, because a new worker serves the tenant's last good version.
    """
    last_good = LastGood(settings.data_dir, settings.tenants_dir)
    last_good.open()
    found = [
        (rejected.name, problem)
        for rejected in catalogue.rejected
        if last_good.content(rejected.name) is None
        for problem in rejected.problems
    ]
    built = try_builds(catalogue.tenants, settings.data_dir, only_parts=True).problems
    found += [(tenant.name, problem) for tenant, problem in built]
    migrated = find_migration_problems(catalogue.tenants, settings.data_dir)
    found += [(tenant.name, problem) for tenant, problem in migrated]
    serving = {
        mount["name"]
        for worker in workers
        for mount in worker.mounts
        if mount["state"] in SERVING_STATES
    }
    return [f"{name} would fail: {problem}" for name, problem in found if name in serving]
