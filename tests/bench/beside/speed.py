"""Processor time, throughput and p99 of every side, with all sides running at the same time."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import clients
from loads import Connection, wait_until
from service import Service
from sides import BASE, Side
from table import Row, Table

FEW_CLIENTS, MANY_CLIENTS = 16, 64
WORKERS = 2
WARM_UP = 100
"""Requests before the first window, each on a new connection, so that every worker gets some."""

COST = Row("processor time per request, 16 keep-alive clients", "µs", BASE.name)
RATE = Row("throughput, 16 keep-alive clients", "/s", BASE.name, is_more_better=True)
RATE_NEW = Row("throughput, 16 clients, new connections", "/s", BASE.name, is_more_better=True)
P99_FEW = Row("p99, 16 keep-alive clients", "ms", BASE.name)
P99_MANY = Row("p99, 64 keep-alive clients", "ms", BASE.name)
FAILED = Row("failed requests during a reload", "", "", is_ratio=False)
LONGEST = Row("longest wait during a reload", "ms", "", is_ratio=False)


def measure(
    table: Table,
    sides: Sequence[Side],
    folder: Path,
    *,
    sweeps: int,
    seconds: int,
    reload_s: float,
) -> None:
    """Start all sides with one tenant, measure the sides in turn, and reload those with one app."""
    with contextlib.ExitStack() as stack:
        services = {
            side: stack.enter_context(serving(side, folder / f"side{number}", 1, WORKERS))
            for number, side in enumerate(sides)
        }
        for side, service in services.items():
            wait_for(service, side.path("t0"))
            clients.visit_each(service.port, [side.path("t0")], WARM_UP)
        for _ in range(sweeps):
            _sweep(table, services, seconds)
        for side, service in services.items():
            if side.add is None and reload_s:
                measure_reload(table, side, service, reload_s)
        for service in services.values():
            service.terminate()


@contextlib.contextmanager
def serving(side: Side, folder: Path, tenants: int, workers: int) -> Iterator[Service]:
    """Start a side, and stop the side at the end of the block."""
    service = Service(folder, tenants, workers)
    try:
        side.start(service)
        yield service
    finally:
        service.stop()


def wait_for(service: Service, path: str, deadline_s: float = 300.0) -> None:
    """Send requests until the response is 201."""
    try:
        wait_until(lambda: _status(service, path) == 201, deadline_s)
    except SystemExit as error:
        logs = "\n".join(one.read_text()[-1000:] for one in (service.folder / "log").iterdir())
        raise SystemExit(f"{path}: {error}\n{logs}") from None


def _status(service: Service, path: str) -> int:
    service.check_is_running()
    with (
        contextlib.suppress(OSError, EOFError),
        contextlib.closing(Connection(service.port)) as connection,
    ):
        return connection.get(path)[0]
    return 0


def _sweep(table: Table, services: dict[Side, Service], seconds: int) -> None:
    """Measure every side once. The windows of one kind follow each other."""
    for side, service in services.items():
        before_s = service.cpu_s()
        load = clients.wrk(service.port, side.path("t0"), FEW_CLIENTS, seconds)
        table.add(COST, side.name, 1e6 * (service.cpu_s() - before_s) / load.requests)
        table.add(RATE, side.name, load.per_s)
    for side, service in services.items():
        load = clients.wrk(service.port, side.path("t0"), FEW_CLIENTS, seconds, is_keeping=False)
        table.add(RATE_NEW, side.name, load.per_s)
    for row, count in ((P99_FEW, FEW_CLIENTS), (P99_MANY, MANY_CLIENTS)):
        for side, service in services.items():
            p99_s = clients.p99_s(service.port, side.path("t0"), count, seconds)
            table.add(row, side.name, 1e3 * p99_s)


def measure_reload(table: Table, side: Side, service: Service, seconds: float) -> None:
    """Change the file of the tenant t0, and count what clients of t0 and of t1 see."""
    names = service.names[:2]

    def change() -> None:
        service.write_tenant("t0", version=1)
        side.reload(service)

    paths = [side.path(name) for name in names]
    failed, longest_s = clients.under_load(service.port, paths, change, seconds)
    table.add(FAILED, side.name, failed, side.reload_needs)
    table.add(LONGEST, side.name, 1e3 * longest_s, side.reload_needs)
