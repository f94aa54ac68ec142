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
"""States of a tenant that serves requests. A restart must not end the service of the tenant."""


@click.command("restart", epilog=examples("tenantry restart"))
@click.option(
    "--force", "is_forced", is_flag=True, help="Restart even if tenants that serve now would fail."
)
def command(is_forced: bool) -> None:
    """Replace all workers with new ones.

    `tenantry restart` starts workers with new code, and then stops the old workers. No request
    fails or waits. Before the restart, `tenantry restart` imports the new code, reads all tenant
    files and builds each endpoint. `tenantry restart` does not restart the host if a serving tenant
    would fail. Each worker gets 60 s to start and 60 s to end. `tenantry restart` works only with
    gunicorn.
    """
    click.echo(f"{count(restart(read_settings(), is_forced=is_forced), 'worker')} replaced.")


def restart(settings: HostSettings, *, is_forced: bool = False) -> int:
    """Replace every worker of the running host, and return the number of replaced workers.

    Args:
        settings: The host's settings.
        is_forced: Whether to restart even if tenants that serve now would fail.

    Raises:
        TenantryError: A serving tenant would fail in new workers, so no worker was restarted; or a
            worker did not start or end in time.
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

    The result includes stale tenants, because a new worker does not know the last good version of a
    tenant file.
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
