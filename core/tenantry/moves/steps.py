"""Runs the steps of a move, and waits for the workers of a running host."""

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenantry.errors import TenantryError
from tenantry.observability.control_socket import ask_workers, read_all_workers
from tenantry.tenants.operator_state import MOVING_MESSAGE

QUIET_TIMEOUT_S = 60.0
"""Maximum seconds that a move waits for requests in flight, and for workers to load a change."""

POLL_S = 0.05


@dataclass(frozen=True)
class MoveStep:
    """One step of a move. Running a step twice must be safe."""

    name: str
    run: Callable[[], None]


def run_steps(steps: Sequence[MoveStep], on_progress: Callable[[str, int, int], None]) -> None:
    """Run the steps of a move, one after another.

    Raises:
        TenantryError: a step failed, for example because the disk is full.
    """
    for number, step in enumerate(steps):
        on_progress(step.name, number, len(steps))
        try:
            step.run()
        except (OSError, sqlite3.Error) as error:
            text = f"{step.name} failed: {error}; fix the cause, and run the same command again."
            raise TenantryError(text) from error


def wait_until_held(data_dir: Path, name: str) -> None:
    """Wait until every worker answers 503 for a tenant, and no request of the tenant is in flight.

    Raises:
        TenantryError: requests still run after `QUIET_TIMEOUT_S`.
    """

    def is_quiet() -> bool:
        workers, silent = read_all_workers(data_dir)
        if not workers and not silent:
            return True
        mounts = [mount for worker in workers for mount in worker.mounts if mount["name"] == name]
        loads = ask_workers(data_dir, "load").values()
        built = ask_workers(data_dir, "built").values()
        return (
            not silent
            and all(map(_is_held, mounts))
            and not any(load["in_flight"].get(name) for load in loads)
            and not any(name in answer["names"] for answer in built)
        )

    _wait(is_quiet, f"requests of tenant {name!r} still run after {QUIET_TIMEOUT_S:g} s; try again")


def wait_until_followed(
    data_dir: Path, *, gone: str = "", present: str = "", digest: str = ""
) -> None:
    """Wait until every worker has loaded a change in the tenants folder.

    Args:
        data_dir: the host's data folder.
        gone: the name of a tenant whose file was removed.
        present: the name of a tenant whose file was written.
        digest: the digest of the file of `present`; "" for any digest.

    Raises:
        TenantryError: a worker has not loaded the change after `QUIET_TIMEOUT_S`.
    """

    def has_followed() -> bool:
        workers, silent = read_all_workers(data_dir)
        for worker in workers:
            mounts = {mount["name"]: mount for mount in worker.mounts}
            is_expected = present and (not worker.only or present in worker.only)
            if gone in mounts or (is_expected and present not in mounts):
                return False
            if is_expected and digest and mounts[present]["digest"] != digest:
                return False
        return not silent

    name = present or gone
    text = f"tenant {name!r}: a worker is still behind after {QUIET_TIMEOUT_S:g} s"
    _wait(has_followed, f"{text}; run the command again to complete it")


def _is_held(mount: dict[str, Any]) -> bool:
    state = mount["operator_state"]
    return bool(mount["state"] == "disabled" or state["maintenance"] == MOVING_MESSAGE)


def _wait(is_done: Callable[[], bool], text: str) -> None:
    deadline = time.monotonic() + QUIET_TIMEOUT_S
    while not is_done():
        if time.monotonic() > deadline:
            raise TenantryError(f"{text}.")
        time.sleep(POLL_S)


def replace_file(path: Path, text: str) -> None:
    """Replace the text of a file with one rename.

    The new file has the mode of the former file, or 0644.
    """
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    unfinished = path.with_name(f".{path.name}.new")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.chmod(mode)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise TenantryError(f"cannot write {path}: {error.strerror}.") from error
