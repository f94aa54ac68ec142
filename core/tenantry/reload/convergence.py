"""Waits until every worker has evaluated the tenants folder, for `tenantry list --wait`.

`wait_for_workers` asks each worker, on its control socket, for the digest and the operator state of
every tenant.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tenantry.errors import TenantryError
from tenantry.observability.control_socket import (
    WorkerStatus,
    read_all_workers,
    starting_workers,
)
from tenantry.settings import HostSettings
from tenantry.tenants.catalogue import tenant_files
from tenantry.tenants.file import read_content
from tenantry.tenants.operator_state import read_operator_state

WAIT_TIMEOUT_S = 60.0
"""Maximum seconds that `wait_for_workers` waits. A single change takes effect within 2 s."""

POLL_S = 0.1


def wait_for_workers(settings: HostSettings) -> dict[str, str]:
    """Wait until every worker has evaluated each tenant file and applied each operator state.

    Returns:
        The reason for each tenant whose newest file is not served, by tenant name.

    Raises:
        TenantryError: no host is running, a worker does not finish in time, or the folder or an
            operator state cannot be read.
    """
    deadline = time.monotonic() + WAIT_TIMEOUT_S
    while True:
        workers, silent = read_all_workers(settings.data_dir)
        if not workers and not silent:
            raise TenantryError(
                f"no host is running with data folder {settings.data_dir}; "
                "start one with: tenantry serve."
            )
        wanted = _wanted_versions(settings)
        has_converged = all(_follows(worker, wanted) for worker in workers)
        if has_converged and not silent and not starting_workers(workers):
            return _unserved(workers)
        if time.monotonic() >= deadline:
            cause = f"worker {silent[0]} does not answer" if silent else "a worker is still behind"
            raise TenantryError(
                f"the workers do not serve the newest tenant files after {WAIT_TIMEOUT_S:g} s: "
                f"{cause}; see: tenantry list, and the host's log."
            )
        time.sleep(POLL_S)


def _wanted_versions(settings: HostSettings) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the digest and the operator state of each tenant, as read from the files."""
    return {
        path.stem: (
            read_content(path).digest,
            asdict(read_operator_state(settings.data_dir, path.stem)),
        )
        for path in tenant_files(settings.tenants_dir)
    }


def _follows(worker: WorkerStatus, wanted: Mapping[str, tuple[str, dict[str, Any]]]) -> bool:
    current = {mount["name"]: (mount["digest"], mount["operator_state"]) for mount in worker.mounts}
    own = {name: wanted[name] for name in worker.only or wanted if name in wanted}
    return worker.is_ready and current == own


def _unserved(workers: Sequence[WorkerStatus]) -> dict[str, str]:
    return {
        mount["name"]: mount["reason"] or mount["state"]
        for worker in workers
        for mount in worker.mounts
        if mount["reason"] or mount["state"] in {"failed", "stale"}
    }
