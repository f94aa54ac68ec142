"""200 tenants with a PostgreSQL database each, in one process with 20 connections for all.

    python tests/bench/budget.py [--tenants 200] [--seconds 4] [--rounds 5] [LOAD…]

Two gunicorns, one worker of 8 threads each, over the same databases: ours, and one whose tenants
have a pool each that grows as it likes. They take turns, and each turn is compared with its
neighbour, so that noise of the machine meets both alike. The loads, from eight clients at once:

- visits: 10 requests to a tenant, then to the next, in turn to all, in an order of the client's
  own. So do people use applications: a page and what it asks for, a form, the next page; ten is a
  short visit. That all tenants are visited equally often is worse for us than what is usual;
- popular: visits too, each to any tenant, the n-th most popular 1/n as often as the first, as
  traffic of many sites is (Zipf; Breslau et al. 1999): the first 20 of 200 get 61 % of it;
- hot: single requests to 20 tenants at random, after all have had traffic. It has no order that a
  turn would begin anew, so its turns are ten times as many and as short: they compare better.

Two more loads are held to their connections and to no failed request, and not to a throughput;
nobody ever sends a second request, so they say what a connection costs (5 ms of the database
server's processor, 2 of ours, where a whole request costs 2):

- single: each request to any tenant by popularity. 55 % of them need a new connection. An order of
  closing that knew the future would still open one for 32 % (Belady 1966);
- worst: every request to another tenant, each in turn.

During each, the server's own count of connections is read all the time. Beside requests per second
it prints what a request costs: processor time of the worker and of the database server. On a
machine with nothing else to do both say the same; on a busy one only the second means something.
"""

import argparse
import contextlib
import itertools
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import rows
from loads import Bounds, Connection, Server, children, serving

CLIENTS = 8
LIMIT = 20

VISIT = 10
"""Requests that a client sends to one tenant before it goes on to the next."""

PARTS = {"hot": 10}
"""Into how many parts the turns of a load are cut."""

BOUNDS = {"visits": 0.6, "popular": 0.6, "hot": 0.95, "single": None, "worst": None}
"""How much of the unbounded throughput each load must have at least; None: it is only printed."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("loads", nargs="*", metavar="LOAD", help=f"{', '.join(BOUNDS)}; or all")
    asked = parser.parse_args()
    names = [f"tenant{number:03}" for number in range(asked.tenants)]
    bounds = Bounds()
    with rows.running(max_connections="400") as server, contextlib.ExitStack() as servers:
        rows.make_template(server)
        with server.connect() as connection:
            for name in names:
                rows.make_database(connection, name)
        ours = servers.enter_context(site(server, names, rows.BLUEPRINT))
        free = servers.enter_context(site(server, names, rows.UNBOUNDED))
        for load in BOUNDS:
            if not asked.loads or load in asked.loads:
                compare(load, names, (ours, free), server, bounds, asked)
    bounds.end()


def compare(  # noqa: PLR0917
    load: str, names: list[str], sides: tuple[Server, Server], server: rows.Postgres,
    bounds: Bounds, asked: argparse.Namespace,
) -> None:  # fmt: skip
    """Run a load against both sides in turns; print throughputs, costs and their ratios."""
    per_second: tuple[list[float], list[float]] = ([], [])
    cost_ms: tuple[list[float], list[float]] = ([], [])
    most = [0, 0]
    failures = 0
    parts = PARTS.get(load, 1)
    seconds = asked.seconds / parts
    for turn, side in itertools.product(range(-parts, asked.rounds * parts), (0, 1)):
        before_s = cpu_s(sides[side], server)
        with watching(server, side) as seen:
            done, failed = drive(sides[side].port, load, names, seconds, turn)
        failures += failed
        most[side] = max(most[side], *seen)
        if turn >= 0:  # the first turns wake the tenants
            per_second[side].append(done / seconds)
            cost_ms[side].append(1000 * (cpu_s(sides[side], server) - before_s) / done)
    rate = statistics.median(one / other for one, other in zip(*per_second, strict=True))
    cost = statistics.median(other / one for one, other in zip(*cost_ms, strict=True))
    rates, costs = ([statistics.median(one) for one in each] for each in (per_second, cost_ms))
    print(f"{load}: {rates[0]:.0f}/s with {most[0]} connections; unbounded {rates[1]:.0f}/s with "
          f"{most[1]}; ours is {rate:.2f} of it")  # fmt: skip
    print(f"{load}: {costs[0]:.2f} ms of processor time, unbounded {costs[1]:.2f} ms; "
          f"by that ours is {cost:.2f} of it")  # fmt: skip
    bounds.check(f"{load}: most connections", most[0], LIMIT)
    bounds.check(f"{load}: failed requests", failures, 0)
    if (bound := BOUNDS[load]) is not None:
        bounds.check(f"{load}: unbounded ÷ ours", 1 / rate, 1 / bound)


def cpu_s(side: Server, server: rows.Postgres) -> float:
    """Return the processor seconds that a side's worker and the database server have had."""
    ticks = 0
    for pid in [*side.workers(), server.pid, *children(server.pid)]:
        with contextlib.suppress(OSError):  # it has ended: its parent has its times
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(one) for one in stat[11:15])  # its own, and its ended children's
    return ticks / os.sysconf("SC_CLK_TCK")


def drive(port: int, load: str, names: list[str], seconds: float, turn: int = 0) -> tuple[int, int]:
    """Ask for `seconds` with every client; return how many answers were good and how many not."""
    good, bad = [0] * CLIENTS, [0] * CLIENTS
    end = time.perf_counter() + seconds

    def ask(number: int) -> None:
        asked = tenants_of(load, names, number + (CLIENTS * turn if load in PARTS else 0))
        with contextlib.closing(Connection(port)) as connection:
            while time.perf_counter() < end:
                status, body = connection.get(f"/{next(asked)}/")
                if (status, body) == (200, b"good"):
                    good[number] += 1
                else:
                    bad[number] += 1
                    print(status, body[:200])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(good), sum(bad)


def tenants_of(load: str, names: list[str], seed: int) -> Iterator[str]:
    """Yield whom a client asks, one request after the other."""
    chance = random.Random(seed)
    if load == "hot":
        return iter(lambda: chance.choice(names[:LIMIT]), None)
    if load in {"visits", "worst"}:
        visited = itertools.cycle(chance.sample(names, len(names)))
    else:
        weights = [1 / rank for rank in range(1, len(names) + 1)]
        visited = iter(lambda: chance.choices(names, weights)[0], None)
    times = VISIT if load in {"visits", "popular"} else 1
    return (name for name in visited for _ in range(times))


@contextlib.contextmanager
def watching(server: rows.Postgres, side: int) -> Iterator[list[int]]:
    """Count the clients of a side, by its tenants' application name, until the end of the block."""
    seen = [0]
    is_over = threading.Event()
    sign = "LIKE" if side == 0 else "NOT LIKE"
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' "
        f"AND datname LIKE 'tenant%' AND application_name {sign} 'tenantry %'"
    )

    def watch() -> None:
        with server.connect() as connection:
            while not is_over.wait(0.03):
                row = connection.execute(query).fetchone()
                seen.append(int(str(row[0])) if row else 0)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


@contextlib.contextmanager
def site(server: rows.Postgres, names: list[str], blueprint: str) -> Iterator[Server]:
    """Serve all tenants by one process."""
    with tempfile.TemporaryDirectory() as folder:
        tenants = rows.make_site(Path(folder), blueprint)
        for name in names:
            (tenants / f"{name}.py").write_text(rows.tenant_text(name, server.url(name)))
        with serving(Path(folder), 1, TENANTRY_DB_CONNECTIONS=str(LIMIT)) as running:
            for name in names:
                running.wait_for(f"/{name}/", 200)
            yield running


if __name__ == "__main__":
    main()
