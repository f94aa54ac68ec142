"""`tenantry restart`: replaces the workers of the running host with workers that run new code."""

from collections.abc import Sequence

import click

from tenantry.app.trial_build import find_build_problems
from tenantry.cli.output import count, examples
from tenantry.errors import TenantryError
from tenantry.observability.control_socket import WorkerStatus
from tenantry.server.rolling_restart import check_new_code, replace_workers, running_workers
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.catalogue import scan_tenants

SERVING_STATES = frozenset({"serving", "idle", "stale"})
"""States of the tenants that a restart must not lose."""


@click.command("restart", epilog=examples("tenantry restart"))
@click.option(
    "--force", "is_forced", is_flag=True, help="Restart even if tenants that serve now would fail."
)
def command(is_forced: bool) -> None:
    """Replace all workers with new ones.

    Starts workers with new code, then stops the old ones; no request fails or waits. First
    imports the new code, reads all tenant files and builds each endpoint. Refuses to restart if
    a tenant that serves now would fail. Each worker gets 60 s to start and 60 s to end. For
    gunicorn only.
    """
    click.echo(f"{count(restart(read_settings(), is_forced=is_forced), 'worker')} replaced.")


def restart(settings: HostSettings, *, is_forced: bool = False) -> int:
    """Replace every worker, and return how many there were.

    Args:
        settings: The host's settings.
        is_forced: Restart even if tenants that serve now would fail.

    Raises:
        TenantryError: New workers could not serve what the old ones serve, and nothing was
            restarted; or a worker did not start or end in time.
    """
    workers = running_workers(settings.data_dir)
    check_new_code()
    lost = _find_lost_tenants(settings, workers)
    if lost and not is_forced:
        remedy = "nothing was restarted; fix or disable these tenants, or use --force."
        raise TenantryError("\n".join([*lost, remedy]))
    replace_workers(settings.data_dir, workers)
    return len(workers)


def _find_lost_tenants(settings: HostSettings, workers: Sequence[WorkerStatus]) -> list[str]:
    """Return a line for each tenant that serves now and would fail in a new worker.

    A stale tenant is one of them, because a new worker does not know its last good version.
    """
    catalogue = scan_tenants(settings)
    found = [
        (rejected.name, problem) for rejected in catalogue.rejected for problem in rejected.problems
    ]
    built = find_build_problems(catalogue.tenants, settings.data_dir, only_endpoints=True)
    found += [(tenant.name, problem) for tenant, problem in built]
    serving = {
        mount["name"]
        for worker in workers
        for mount in worker.mounts
        if mount["state"] in SERVING_STATES
    }
    return [f"{name} would fail: {problem}" for name, problem in found if name in serving]
