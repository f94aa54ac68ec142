"""`tenantry list`: lists the tenants of the running host, or of the tenants folder."""

import sys
from collections.abc import Sequence
from typing import Any

import click

from tenantry.cli import PROBLEM_FOUND
from tenantry.cli.leftovers import print_leftovers
from tenantry.cli.output import examples, json_option, print_json, print_table
from tenantry.migrations.status import pending_in_apps
from tenantry.moves import unfinished_moves
from tenantry.observability.control_socket import WorkerStatus, read_workers
from tenantry.reload.convergence import wait_for_workers
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.address import Address
from tenantry.tenants.catalogue import Catalogue, scan_tenants
from tenantry.tenants.model import Tenant
from tenantry.tenants.operator_state import effective_operator_state

COLUMNS = ("name", "address", "state", "endpoints", "reason")

FIELDS = ("name", "prefix", "hosts", "state", "endpoints", "reason")
"""The fields of each tenant with `--json`, besides `workers`."""

WORKER_FIELDS = ("state", "since", "digest", "reason", "database")
"""Fields of a worker's report about a tenant.

With `--json`, the command prints these fields for each worker.
"""

WORST_FIRST = ("failed", "stale", "maintenance", "disabled", "idle", "serving")
"""Tenant states, from worst to best. If workers differ, `tenantry list` shows the worst state.

A tenant is `idle` in each worker that has not received a request yet. Therefore, a combination of
`idle` and `serving` is shown as `serving`.
"""


NOT_RUNNING = "not running"
"""The state that the table shows instead of `idle` if no host is running."""


@click.command("list", epilog=examples("tenantry list", "tenantry list --wait --json"))
@click.option(
    "--wait", "is_waiting", is_flag=True,
    help="Wait, up to 60 s, until every worker has evaluated the tenants folder. "
    "The exit code is 1 if the newest file of a tenant is not served.",
)  # fmt: skip
@json_option
def command(is_waiting: bool, is_json: bool) -> None:
    """Show every tenant and its state.

    For each tenant, show the name, the address, the state and the endpoints, and the reason if
    the tenant is not served. Pending migrations in MIGRATIONS are also shown as a reason, but the
    tenant is served. If a host with the same data folder is running, its workers report the
    tenants. Otherwise, the command reads the tenants folder, and shows "not running" for each
    tenant that a host would serve.
    """
    settings = read_settings()
    unserved = wait_for_workers(settings) if is_waiting else {}
    workers = read_workers(settings.data_dir)
    rows = serving_rows(workers) if workers else folder_rows(settings, scan_tenants(settings))
    moves = unfinished_moves(settings.data_dir)
    for row in rows:
        if row["name"] in moves and not row["reason"]:
            row["reason"] = moves[row["name"]].explanation
    _add_notes(settings, rows)
    if is_json:
        print_json(rows)
    else:
        is_running = bool(workers)
        print_table(COLUMNS, [_cells(row, is_running=is_running) for row in rows])
    print_leftovers(settings)
    for name, reason in sorted(unserved.items()):
        click.echo(f"tenantry: {name}: {reason}", err=True)
    sys.exit(PROBLEM_FOUND if unserved else 0)


def serving_rows(workers: Sequence[WorkerStatus]) -> list[dict[str, Any]]:
    """Combine the reports of all workers into one row for each tenant, sorted by name."""
    rows: dict[str, dict[str, Any]] = {}
    for worker in workers:
        for mount in worker.mounts:
            row = rows.setdefault(
                mount["name"],
                {key: mount.get(key, ()) for key in FIELDS}
                | {"has_app_migrations": mount.get("has_app_migrations", False), "workers": []},
            )
            report = {key: mount[key] for key in WORKER_FIELDS} | {"stuck": mount.get("stuck", 0)}
            row["workers"].append({"pid": worker.pid} | report)
    for row in rows.values():
        states = {report["state"] for report in row["workers"]}
        row["reason"] = next(filter(None, (report["reason"] for report in row["workers"])), "")
        row["state"] = (
            "serving" if states == {"serving", "idle"} else min(states, key=WORST_FIRST.index)
        )
    return [rows[name] for name in sorted(rows)]


def folder_rows(settings: HostSettings, catalogue: Catalogue) -> list[dict[str, Any]]:
    """Return a row for each tenant in the tenants folder, sorted by name.

    Each row contains the state that the tenant would have in a newly started host.
    """
    rows = [_tenant_row(settings, tenant) for tenant in catalogue.tenants]
    rows += [
        _address_fields(tenant.name, tenant.address)
        | {"state": "disabled", "endpoints": list(tenant.endpoints), "reason": ""}
        for tenant in catalogue.disabled
    ]
    rows += [
        _address_fields(tenant.name, tenant.address)
        | {"state": "failed", "endpoints": [], "reason": tenant.reason}
        for tenant in catalogue.rejected
    ]
    return sorted(rows, key=lambda row: str(row["name"]))


def _add_notes(settings: HostSettings, rows: Sequence[dict[str, Any]]) -> None:
    """Add a note about pending migrations in `MIGRATIONS` to each row.

    Serving processes never read these migrations, so the command itself reads the databases.
    """
    names = tuple(row["name"] for row in rows if row.pop("has_app_migrations", False))
    notes: dict[str, str] = {}
    if names:
        tenants = scan_tenants(settings.model_copy(update={"only": names})).tenants
        notes = pending_in_apps(tenants, settings.data_dir)
    for row in rows:
        row["note"] = notes.get(row["name"], "")


def describe_state(row: dict[str, Any], *, is_running: bool = True) -> str:
    """Describe the state of a tenant, of its database, and of its stuck requests.

    If workers differ, the text lists the state in each worker, such as `stale (101 stale, 102
    serving), database down, 2 stuck`. Without a running host, a tenant that a host would serve is
    `not running`.
    """
    if not is_running and row["state"] == "idle":
        return NOT_RUNNING
    reports = row.get("workers", [])
    databases = sorted(
        {report["database"].partition(":")[0] for report in reports if report["database"]}
    )
    stuck = sum(report["stuck"] for report in reports)
    notes = "".join(f", database {text}" for text in databases)
    notes += f", {stuck} stuck" if stuck else ""
    if len({report["state"] for report in reports}) <= 1:
        return f"{row['state']}{notes}"
    each = ", ".join(f"{report['pid']} {report['state']}" for report in reports)
    return f"{row['state']} ({each}){notes}"


def _cells(row: dict[str, Any], *, is_running: bool) -> list[str]:
    state = describe_state(row, is_running=is_running)
    reason = row["reason"] or _database_reason(row) or row["note"]
    address = f"{next(iter(row['hosts']), '')}{row['prefix']}"
    return [row["name"], address, state, ", ".join(row["endpoints"]), reason]


def _database_reason(row: dict[str, Any]) -> str:
    """Return the first reported problem of a tenant's database, or ""."""
    reports = (report["database"] for report in row.get("workers", []))
    return next((f"database {text}" for text in reports if text), "")


def _tenant_row(settings: HostSettings, tenant: Tenant) -> dict[str, Any]:
    operator_state, problem = effective_operator_state(settings.data_dir, tenant.name)
    state = "failed" if operator_state.parked else "idle"
    if tenant.maintenance or operator_state.effective_maintenance:
        state = "maintenance"
    return _address_fields(tenant.name, tenant.address) | {
        "state": "disabled" if operator_state.is_disabled else state,
        "endpoints": list(tenant.blueprints),
        "reason": problem or operator_state.parked,
        "has_app_migrations": tenant.migrations is not None,
    }


def _address_fields(name: str, address: Address | None) -> dict[str, Any]:
    """Return the first fields of a row."""
    if address is None:
        return {"name": name, "prefix": "", "hosts": []}
    return {"name": name, "prefix": address.prefix, "hosts": list(address.hosts)}
