"""Start, memory and changes of the sides that serve many tenants."""

import time
from collections.abc import Sequence
from pathlib import Path

import clients
from sides import COUNTS, FEW, MOST, SOME, TENANTRY, Side
from speed import measure_reload, serving, wait_for
from table import Row, Table, rows_of

VISITS = 2
"""Requests to each tenant before memory is measured, so that most workers have built most apps.

With 10,000 tenants, one request: Tenantry closes apps above its limit and builds them again.
"""

START = rows_of(COUNTS, "start to the last tenant's response", "s", TENANTRY.name)
UNVISITED = rows_of(COUNTS, "memory before requests", "MiB", TENANTRY.name)
MEMORY = rows_of(COUNTS, "memory after requests to every tenant", "MiB", TENANTRY.name)
NEW_TENANT = Row("new tenant file to first response, 10 tenants", "s", TENANTRY.name)


def measure(table: Table, sides: Sequence[Side], folder: Path, count: int, reload_s: float) -> None:
    """Start each side with `count` tenants, one side after the other.

    With few tenants, also add a tenant and change a tenant.
    """
    for number, side in enumerate(sides):
        if count <= side.max_tenants and side.add is not None:
            _measure_side(table, side, folder / f"side{number}", count, reload_s)


def _measure_side(table: Table, side: Side, folder: Path, count: int, reload_s: float) -> None:
    workers = 1 if side.max_tenants == SOME else 2
    began = time.perf_counter()
    with serving(side, folder, count, workers) as service:
        paths = [side.path(name) for name in service.names]
        wait_for(service, paths[-1])
        table.add(START[count], side.name, time.perf_counter() - began)
        table.add(UNVISITED[count], side.name, service.settled_pss_mib())
        clients.visit_each(service.port, paths, 1 if count == MOST else VISITS)
        table.add(MEMORY[count], side.name, service.settled_pss_mib())
        if count == FEW and side.add is not None:
            name = f"t{count}"
            began = time.perf_counter()
            service.write_tenant(name)
            side.add(service, name)
            wait_for(service, side.path(name))
            table.add(NEW_TENANT, side.name, time.perf_counter() - began, side.add_needs)
            measure_reload(table, side, service, reload_s)
