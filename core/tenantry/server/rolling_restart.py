"""Replaces the workers of running gunicorn masters one by one, without a failed request.

gunicorn's own SIGHUP ends the old workers before the new workers have started, so requests wait. A
rolling restart adds one new worker for each old worker with SIGTTIN, and then ends the old workers
with SIGTTOU, because gunicorn ends the oldest worker first.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from tenantry.errors import TenantryError
from tenantry.observability.control_socket import (
    WorkerStatus,
    ask_workers,
    child_processes,
    read_workers,
    starting_workers,
)
from tenantry.python_process import python_command

STEP_TIMEOUT_S = 60.0
"""Seconds in which one worker must start, or finish its requests and end."""

POLL_S = 0.05

TRIAL_NICENESS = 10
"""Niceness of the trial import, so that running requests get the processor first."""


def running_workers(data_dir: Path) -> list[WorkerStatus]:
    """Wait until starting workers have started, and return every worker of the running host.

    Raises:
        TenantryError: No host is running, its server is not gunicorn, or a worker does not start.
    """
    workers = read_workers(data_dir)
    if not workers:
        raise TenantryError(
            f"no host is running with data folder {data_dir}; start one with: tenantry serve."
        )
    if any(worker.server != "gunicorn" for worker in workers):
        raise TenantryError(
            "restart needs gunicorn with Tenantry's worker; restart this server as a service."
        )
    _wait_for("a worker that is starting", lambda: not starting_workers(read_workers(data_dir)))
    return read_workers(data_dir)


def check_new_code() -> None:
    """Import the host in a child process, because gunicorn ends after a failed import.

    Raises:
        TenantryError: The import fails.
    """
    trial = subprocess.Popen(  # noqa: S603 - our own command
        python_command("import tenantry.host, tenantry.server.worker"),
        stderr=subprocess.PIPE,
        text=True,
    )
    os.setpriority(os.PRIO_PROCESS, trial.pid, TRIAL_NICENESS)
    output = trial.communicate()[1].strip()
    if trial.returncode:
        reason = output.splitlines()[-1] if output else f"exit code {trial.returncode}"
        raise TenantryError(
            f"the new code cannot be imported: {reason}; nothing was restarted. Fix the code, then "
            "repeat the command."
        )


def replace_workers(data_dir: Path, workers: Sequence[WorkerStatus]) -> None:
    """Replace all of `workers`, or end the added workers after a failure.

    Raises:
        TenantryError: A worker does not start or end within `STEP_TIMEOUT_S`.
    """
    for master in sorted({worker.master for worker in workers}):
        _replace(data_dir, master, [worker.pid for worker in workers if worker.master == master])


def _replace(data_dir: Path, master: int, old: Collection[int]) -> None:
    added = 0
    try:
        for wanted in range(1, len(old) + 1):
            _send(master, signal.SIGTTIN)
            added += 1
            _wait_for("a new worker", partial(_has_new, data_dir, master, old, wanted))
        for wanted in range(len(old) - 1, -1, -1):
            _send(master, signal.SIGTTOU)
            added -= 1
            _wait_for("an old worker to end", partial(_has_at_most, old, wanted))
    except BaseException:
        _end_added_workers(master, added)
        raise


def _end_added_workers(master: int, count: int) -> None:
    """End workers one by one, because a process receives only one of two equal pending signals."""
    for _ in range(count):
        # The caller raises the first error; the remaining workers must also end.
        with suppress(TenantryError):
            workers = child_processes(master)
            _send(master, signal.SIGTTOU)
            _wait_for("a worker to end", partial(_has_at_most, workers, len(workers) - 1))


def _send(master: int, number: signal.Signals) -> None:
    try:
        os.kill(master, number)
    except (ProcessLookupError, PermissionError) as error:
        raise TenantryError(
            f"cannot signal the gunicorn master {master}: {error.strerror}; run this command as "
            "the user of the host."
        ) from error


def _wait_for(what: str, is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + STEP_TIMEOUT_S
    while not is_done():
        if time.monotonic() > deadline:
            raise TenantryError(
                f"gave up after waiting {STEP_TIMEOUT_S:g} s for {what}; see the host's log."
            )
        time.sleep(POLL_S)


def _has_new(data_dir: Path, master: int, old: Collection[int], count: int) -> bool:
    """Whether `count` new workers are about to accept connections."""
    answers = ask_workers(data_dir, "ready")
    new = [
        pid
        for pid, answer in answers.items()
        if answer["master"] == master and answer["is_ready"] and pid not in old
    ]
    return len(new) >= count


def _has_at_most(pids: Collection[int], count: int) -> bool:
    """Whether at most `count` of the processes `pids` are alive."""
    return sum(Path(f"/proc/{pid}").exists() for pid in pids) <= count
