"""`tenantry list`: every tenant, as the running host serves it, or as the folder says."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from config.settings import HostSettings, read_settings
from core.catalogue import Catalogue
from core.cli import PROBLEM_FOUND
from core.cli.output import as_json, print_json, print_table
from core.cli.tenants import levers_of, scan
from core.errors import TenantryError
from core.folder import list_tenant_files, read_content
from core.status import WorkerStatus, newborn_workers, read_workers
from core.tenant import Tenant

COLUMNS = ("name", "prefix", "state", "endpoints")

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
    has_converged = wait_for_workers(settings) if is_waiting else True
    workers = read_workers(settings.data_dir)
    if workers:
        rows = serving_rows(workers)
    else:
        catalogue = scan(settings)
        rows = folder_rows(settings, catalogue)
        for tenant in catalogue.tenants:
            if problem := levers_of(settings, tenant.name)[1]:
                click.echo(f"tenantry: {problem}", err=True)
    if is_json:
        print_json(rows)
    else:
        cells = [[r["name"], r["prefix"], _states(r), ", ".join(r["endpoints"])] for r in rows]
        print_table(COLUMNS, cells)
    sys.exit(0 if has_converged else PROBLEM_FOUND)


def serving_rows(workers: Sequence[WorkerStatus]) -> list[dict[str, Any]]:
    """Return a row per tenant, in the order of names, with what each worker says of it."""
    rows: dict[str, dict[str, Any]] = {}
    for worker in workers:
        for mount in worker.mounts:
            row = rows.setdefault(
                mount["name"],
                {key: mount[key] for key in COLUMNS} | {"workers": []},
            )
            told = {key: mount[key] for key in TOLD}
            row["workers"].append({"pid": worker.pid} | told)
    for row in rows.values():
        states = {told["state"] for told in row["workers"]}
        row["state"] = (
            "serving" if states == {"serving", "idle"} else min(states, key=WORST_FIRST.index)
        )
    return [rows[name] for name in sorted(rows)]


def folder_rows(settings: HostSettings, catalogue: Catalogue) -> list[dict[str, Any]]:
    """Return a row per tenant, in the order of names, as a host that starts now would have it."""
    rows = [_row(tenant, _state(settings, tenant)) for tenant in catalogue.tenants]
    rows += [
        {"name": one.name, "prefix": one.prefix or "", "state": "disabled",
         "endpoints": list(one.endpoints)}
        for one in catalogue.disabled
    ]  # fmt: skip
    rows += [
        {"name": one.name, "prefix": one.prefix or "", "state": "failed", "endpoints": []}
        for one in catalogue.rejected
    ]
    return sorted(rows, key=lambda row: str(row["name"]))


def wait_for_workers(settings: HostSettings) -> bool:
    """Wait until every worker has judged what the folder holds; whether all of it is served.

    Raises:
        TenantryError: no host is running, or it does not come to an end in time.
    """
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        workers = read_workers(settings.data_dir)
        if not workers:
            raise TenantryError(f"no host is running over {settings.data_dir}; start one: serve.")
        digests = {
            path.stem: read_content(path).digest for path in list_tenant_files(settings.tenants_dir)
        }
        are_known = all(_has_judged(worker, digests) for worker in workers)
        if are_known and not newborn_workers(workers):
            states = {mount["state"] for worker in workers for mount in worker.mounts}
            return not states & {"failed", "stale"}
        time.sleep(POLL_S)
    raise TenantryError(f"the workers have not caught up in {WAIT_S:g} s; see: tenantry list.")


def _has_judged(worker: WorkerStatus, digests: dict[str, str]) -> bool:
    told = {mount["name"]: mount["digest"] for mount in worker.mounts}
    wanted = {name: digests[name] for name in worker.only or digests if name in digests}
    return worker.is_ready and told == wanted


def _states(row: dict[str, Any]) -> str:
    """Return the state, and where workers differ each one's: `stale (101 stale, 102 serving)`."""
    told = row.get("workers", [])
    notes = sorted({one["database"].partition(":")[0] for one in told if one["database"]})
    database = "".join(f", database {note}" for note in notes)
    if len({one["state"] for one in told}) < 2:  # noqa: PLR2004 - they agree
        return f"{row['state']}{database}"
    each = ", ".join(f"{one['pid']} {one['state']}" for one in told)
    return f"{row['state']} ({each}){database}"


def _state(settings: HostSettings, tenant: Tenant) -> str:
    levers, _ = levers_of(settings, tenant.name)
    if levers.is_disabled:
        return "disabled"
    return "maintenance" if tenant.maintenance or levers.maintenance else "idle"


def _row(tenant: Tenant, state: str) -> dict[str, Any]:
    return {
        "name": tenant.name,
        "prefix": tenant.url_prefix,
        "state": state,
        "endpoints": list(tenant.blueprints),
    }
