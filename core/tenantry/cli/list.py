"""`tenantry list`: every tenant, as the running host serves it, or as the folder says."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from tenantry.cli import PROBLEM_FOUND
from tenantry.cli.output import as_json, print_json, print_table
from tenantry.errors import TenantryError
from tenantry.observability.control_socket import (
    WorkerStatus,
    read_all_workers,
    read_workers,
    starting_workers,
)
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.catalogue import Catalogue
from tenantry.tenants.file import read_content
from tenantry.tenants.lookup import effective_operator_state, scan, tenant_files
from tenantry.tenants.model import Tenant
from tenantry.tenants.operator_state import read_operator_state

COLUMNS = ("name", "prefix", "state", "endpoints", "reason")

TOLD = ("state", "since", "digest", "reason", "database")
"""What each worker tells of a tenant for itself."""

WORST_FIRST = ("failed", "stale", "maintenance", "disabled", "idle", "serving")
"""Where workers differ, the state that an operator should know of; idle before serving, because
a worker is idle until its own first request."""

WAIT_S = 30.0
"""How long `--wait` waits: fifteen times what a change may take."""

POLL_S = 0.1


@click.command("list")
@click.option(
    "--wait",
    "is_waiting",
    is_flag=True,
    help="Return when all workers serve what the folder holds; 1 if they cannot.",
)
@as_json
def command(is_waiting: bool, is_json: bool) -> None:
    """Show every tenant: name, prefix, state, endpoints.

    Of a running host it shows what each worker serves; without one, what the folder says.
    """
    settings = read_settings()
    unserved = wait_for_workers(settings) if is_waiting else {}
    workers = read_workers(settings.data_dir)
    rows = serving_rows(workers) if workers else folder_rows(settings, scan(settings))
    if is_json:
        print_json(rows)
    else:
        cells = [
            [r["name"], r["prefix"], _states(r), ", ".join(r["endpoints"]), r["reason"]]
            for r in rows
        ]
        print_table(COLUMNS, cells)
    for name, reason in sorted(unserved.items()):
        click.echo(f"tenantry: {name}: {reason}", err=True)
    sys.exit(PROBLEM_FOUND if unserved else 0)


def serving_rows(workers: Sequence[WorkerStatus]) -> list[dict[str, Any]]:
    """Return a row per tenant, in the order of names, with what each worker says of it."""
    rows: dict[str, dict[str, Any]] = {}
    for worker in workers:
        for mount in worker.mounts:
            row = rows.setdefault(
                mount["name"],
                {key: mount[key] for key in COLUMNS} | {"workers": []},
            )
            told = {key: mount[key] for key in TOLD} | {"stuck": mount.get("stuck", 0)}
            row["workers"].append({"pid": worker.pid} | told)
    for row in rows.values():
        states = {told["state"] for told in row["workers"]}
        row["reason"] = next((told["reason"] for told in row["workers"] if told["reason"]), "")
        row["state"] = (
            "serving" if states == {"serving", "idle"} else min(states, key=WORST_FIRST.index)
        )
    return [rows[name] for name in sorted(rows)]


def folder_rows(settings: HostSettings, catalogue: Catalogue) -> list[dict[str, Any]]:
    """Return a row per tenant, in the order of names, as a host that starts now would have it."""
    rows = [_row(settings, tenant) for tenant in catalogue.tenants]
    rows += [
        {"name": one.name, "prefix": one.prefix or "", "state": "disabled",
         "endpoints": list(one.endpoints), "reason": ""}
        for one in catalogue.disabled
    ]  # fmt: skip
    rows += [
        {"name": one.name, "prefix": one.prefix or "", "state": "failed", "endpoints": [],
         "reason": one.reason}
        for one in catalogue.rejected
    ]  # fmt: skip
    return sorted(rows, key=lambda row: str(row["name"]))


def wait_for_workers(settings: HostSettings) -> dict[str, str]:
    """Wait until every worker has judged what the folder holds, and follows every operator state.

    Returns who is not served as its file says, and why: empty when all are.

    Raises:
        TenantryError: no host is running, it does not come to an end in time, or the folder or
            an operator state cannot be read.
    """
    deadline = time.monotonic() + WAIT_S
    while True:
        workers, silent = read_all_workers(settings.data_dir)
        if not workers and not silent:
            raise TenantryError(f"no host is running over {settings.data_dir}; start one: serve.")
        wanted = _wanted(settings)
        are_known = all(_has_followed(worker, wanted) for worker in workers)
        if are_known and not silent and not starting_workers(workers):
            return _unserved(workers)
        if time.monotonic() >= deadline:
            who = f"worker {silent[0]} does not answer" if silent else "the workers differ from it"
            raise TenantryError(
                f"the folder is not served after {WAIT_S:g} s: {who}; see: tenantry list."
            )
        time.sleep(POLL_S)


def _wanted(settings: HostSettings) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the content's digest and the operator state of each tenant."""
    return {
        path.stem: (
            read_content(path).digest,
            asdict(read_operator_state(settings.data_dir, path.stem)),
        )
        for path in tenant_files(settings.tenants_dir)
    }


def _has_followed(worker: WorkerStatus, wanted: Mapping[str, tuple[str, dict[str, Any]]]) -> bool:
    told = {mount["name"]: (mount["digest"], mount["operator_state"]) for mount in worker.mounts}
    own = {name: wanted[name] for name in worker.only or wanted if name in wanted}
    return worker.is_ready and told == own


def _unserved(workers: Sequence[WorkerStatus]) -> dict[str, str]:
    return {
        mount["name"]: mount["reason"] or mount["state"]
        for worker in workers
        for mount in worker.mounts
        if mount["reason"] or mount["state"] in {"failed", "stale"}
    }


def _states(row: dict[str, Any]) -> str:
    """Return the state, and where workers differ each one's: `stale (101 stale, 102 serving)`."""
    told = row.get("workers", [])
    found = sorted({one["database"].partition(":")[0] for one in told if one["database"]})
    stuck = sum(one["stuck"] for one in told)
    notes = "".join(f", database {note}" for note in found) + (f", {stuck} stuck" if stuck else "")
    if len({one["state"] for one in told}) < 2:  # noqa: PLR2004 - they agree
        return f"{row['state']}{notes}"
    each = ", ".join(f"{one['pid']} {one['state']}" for one in told)
    return f"{row['state']} ({each}){notes}"


def _row(settings: HostSettings, tenant: Tenant) -> dict[str, Any]:
    operator_state, problem = effective_operator_state(settings, tenant.name)
    state = "failed" if operator_state.parked else "idle"
    if tenant.maintenance or operator_state.maintenance:
        state = "maintenance"
    return {
        "name": tenant.name,
        "prefix": tenant.url_prefix,
        "state": "disabled" if operator_state.is_disabled else state,
        "endpoints": list(tenant.blueprints),
        "reason": problem or operator_state.parked,
    }
