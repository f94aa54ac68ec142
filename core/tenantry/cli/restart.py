"""`tenantry restart`: new workers with new code, first up, then the old ones down."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import click

from tenantry.app.trial_build import find_faults
from tenantry.errors import TenantryError
from tenantry.observability.control_socket import (
    WorkerStatus,
    ask_workers,
    child_processes,
    read_workers,
    starting_workers,
)
from tenantry.python_process import python_command
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.lookup import scan

STEP_S = 60.0
"""How long one worker may take to come up, or to finish its requests and go."""

POLL_S = 0.05

NICENESS = 10
"""Of the trial of the new code: the requests that are served meanwhile come first."""


SERVES = frozenset({"serving", "idle", "stale"})
"""States of tenants that a restart must not take away."""


@click.command("restart")
@click.option(
    "--force", "is_forced", is_flag=True, help="Restart although some tenants will fail then."
)
def command(is_forced: bool) -> None:
    """Replace every worker of the running host by one with new code; no request fails."""
    click.echo(f"{restart(read_settings(), is_forced=is_forced)} workers replaced.")


def restart(settings: HostSettings, *, is_forced: bool = False) -> int:
    """Replace every worker; return how many there were.

    Args:
        settings: the host's.
        is_forced: do it although some tenants that serve now would fail.

    Raises:
        TenantryError: new workers could not serve what the old ones do, and nothing was restarted;
            or a worker did not come up or go in time.
    """
    data_dir = settings.data_dir
    found = read_workers(data_dir)
    if not found:
        raise TenantryError(f"no host is running over {data_dir}; start one: serve.")
    if any(one.server != "gunicorn" for one in found):
        raise TenantryError("restart is for gunicorn with our worker; restart the service instead.")
    old = _all_workers(data_dir)
    _try_new_code()
    lost = _lost_tenants(settings, old)
    if lost and not is_forced:
        end = "nothing was restarted; mend them, or disable them, or restart with --force."
        raise TenantryError("\n".join([*lost, end]))
    for master in sorted({worker.master for worker in old}):
        _replace_workers(data_dir, master, [one.pid for one in old if one.master == master])
    return len(old)


def _all_workers(data_dir: Path) -> list[WorkerStatus]:
    """Return every worker, when those that are just being started tell too."""
    _wait_for(
        "a worker that is being started", lambda: not starting_workers(read_workers(data_dir))
    )
    return read_workers(data_dir)


def _try_new_code() -> None:
    """Import the host as a new worker does: gunicorn ends, with all its workers, if one cannot."""
    trial = subprocess.Popen(  # noqa: S603 - our own command
        python_command("import tenantry.host, tenantry.server.worker"),
        stderr=subprocess.PIPE,
        text=True,
    )
    os.setpriority(os.PRIO_PROCESS, trial.pid, NICENESS)
    said = trial.communicate()[1].strip()
    if trial.returncode:
        reason = said.splitlines()[-1] if said else f"it ended with {trial.returncode}"
        raise TenantryError(f"the new code cannot be imported: {reason}; nothing was restarted.")


def _lost_tenants(settings: HostSettings, workers: Sequence[WorkerStatus]) -> list[str]:
    """Return who serves now and would fail, having read and tried all as a new worker does.

    A new worker knows no last good version: a tenant that is stale would be gone with the old ones.
    """
    catalogue = scan(settings)
    found = [(one.name, problem) for one in catalogue.rejected for problem in one.problems]
    faults = find_faults(catalogue.tenants, settings.data_dir, only_endpoints=True)
    found += [(tenant.name, problem) for tenant, problem in faults]
    serving = {mount["name"] for one in workers for mount in one.mounts if mount["state"] in SERVES}
    return [f"{name} would fail: {problem}" for name, problem in found if name in serving]


def _replace_workers(data_dir: Path, master: int, old: list[int]) -> None:
    """One worker more for each old one, then one less: gunicorn ends the oldest first.

    HUP ends the old ones before the new ones have booted: requests wait that long. A new worker
    tells when it is about to accept connections, and has awake by then what the others have.
    """
    extra = 0
    try:
        for count in range(1, len(old) + 1):
            _send(master, signal.SIGTTIN)
            extra += 1
            _wait_for("a new worker", partial(_has_new, data_dir, master, old, count))
        for count in range(len(old) - 1, -1, -1):
            _send(master, signal.SIGTTOU)
            extra -= 1
            _wait_for("an old worker to go", partial(_has_left, old, count))
    except BaseException:
        _take_back(master, extra)
        raise


def _take_back(master: int, extra: int) -> None:
    """Have the master end as many workers as were added: it ends the oldest first.

    One after the other: of two equal signals that wait for a process, it sees one.
    """
    for _ in range(extra):
        with suppress(TenantryError):
            workers = child_processes(master)
            _send(master, signal.SIGTTOU)
            _wait_for("a worker to go", partial(_has_left, workers, len(workers) - 1))


def _send(master: int, number: signal.Signals) -> None:
    try:
        os.kill(master, number)
    except (ProcessLookupError, PermissionError) as error:
        raise TenantryError(f"cannot signal the master {master}: {error.strerror}.") from error


def _wait_for(what: str, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + STEP_S
    while not is_so():
        if time.monotonic() > deadline:
            raise TenantryError(f"waited {STEP_S:g} s for {what}, in vain; see the host's log.")
        time.sleep(POLL_S)


def _has_new(data_dir: Path, master: int, old: list[int], count: int) -> bool:
    ready = [
        pid
        for pid, said in ask_workers(data_dir, "ready").items()
        if said["master"] == master and said["is_ready"] and pid not in old
    ]
    return len(ready) >= count


def _has_left(old: list[int], count: int) -> bool:
    return len([pid for pid in old if Path(f"/proc/{pid}").exists()]) <= count
