"""200 tenants with a PostgreSQL database each, in one process with 20 connections for all.

    python tests/bench/budget.py [--tenants 200] [--seconds 4] [--rounds 10] [LOAD…]

Beside them, in the same worker of 8 threads, 200 tenants that have a pool each that grows as it
likes, over databases of their own: between two processes of the same code lie up to 7 %, which is
more than the data layer costs. The two sides take turns, and each turn is compared with its
neighbour, so that noise of the machine meets both alike. The loads, from eight clients at once:

- visits: 10 requests to a tenant, then to the next, in turn to all, in an order of the client's
  own. So do people use applications: a page and what it asks for, a form, the next page; ten is a
  short visit. That all tenants are visited equally often is worse for us than what is usual;
- popular: visits too, each to any tenant, the n-th most popular 1/n as often as the first, as
  traffic of many sites is (Zipf; Breslau et al. 1999): the first 20 of 200 get 61 % of it;
- hot: single requests to 20 tenants at random, after all have had traffic. It has no order that a
  turn would begin anew, so its turns are forty times as many and as short: they compare better,
  for the machine changes its pace from one second to the next.

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

import psycopg
import rows
from loads import Bounds, Connection, Server, children, serving

CLIENTS = 8
LIMIT = 20

REQUESTS_PER_VISIT = 10
"""Requests that a client sends to one tenant before it goes on to the next."""

SIDES = ("ours", "free")
"""What the names of a side's tenants, and of their databases, begin with."""

PARTS = {"hot": 40}
"""Into how many parts the turns of a load are cut."""

BOUNDS = {"visits": 0.6, "popular": 0.6, "hot": 0.95, "single": None, "worst": None}
"""How much of the unbounded throughput each load must have at least; None: it is only printed."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("loads", nargs="*", metavar="LOAD", help=f"{', '.join(BOUNDS)}; or all")
    asked = parser.parse_args()
    bounds = Bounds()
    with rows.running(max_connections="400") as server, site(server, asked.tenants) as running:
        for load in BOUNDS:
            if not asked.loads or load in asked.loads:
                with server.connect() as watcher:
                    compare(load, running, server, watcher, bounds, asked)
    bounds.end()


def names_of(side: str, count: int) -> list[str]:
    """Return the names of a side's tenants."""
    return [f"{side}{number:03}" for number in range(count)]


def compare(  # noqa: PLR0917
    load: str, running: Server, server: rows.Postgres,
    watcher: psycopg.Connection[tuple[object, ...]], bounds: Bounds, asked: argparse.Namespace,
) -> None:  # fmt: skip
    """Run a load against both sides in turns; print throughputs, costs and their ratios."""
    per_second: tuple[list[float], list[float]] = ([], [])
    used_s, answered = [0.0, 0.0], [0, 0]
    most = [0, 0]
    failures = 0
    parts = PARTS.get(load, 1)
    seconds = asked.seconds / parts
    for turn, side in itertools.product(range(-parts, asked.rounds * parts), (0, 1)):
        before_s = cpu_s(running, server)
        with watching(watcher, SIDES[side]) as seen:
            names = names_of(SIDES[side], asked.tenants)
            done, failed = drive(running.port, load, names, seconds, turn)
        failures += failed
        most[side] = max(most[side], *seen)
        if turn >= 0:  # the first turns wake the tenants
            per_second[side].append(done / seconds)
            used_s[side] += cpu_s(running, server) - before_s
            answered[side] += done
    rate = statistics.median(one / other for one, other in zip(*per_second, strict=True))
    rates = [statistics.median(one) for one in per_second]
    costs = [1000 * used / count for used, count in zip(used_s, answered, strict=True)]
    print(f"{load}: {rates[0]:.0f}/s with {most[0]} connections; unbounded {rates[1]:.0f}/s with "
          f"{most[1]}; ours is {rate:.2f} of it")  # fmt: skip
    print(f"{load}: {costs[0]:.2f} ms of processor time, unbounded {costs[1]:.2f} ms; "
          f"by that ours is {costs[1] / costs[0]:.2f} of it")  # fmt: skip
    bounds.check(f"{load}: most connections", most[0], LIMIT)
    bounds.check(f"{load}: failed requests", failures, 0)
    if (bound := BOUNDS[load]) is not None:
        bounds.check(f"{load}: unbounded ÷ ours", 1 / rate, 1 / bound)


def cpu_s(running: Server, server: rows.Postgres) -> float:
    """Return the processor seconds that the worker and the database server have had."""
    ticks = 0
    for pid in [*running.workers(), server.pid, *children(server.pid)]:
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
    times = REQUESTS_PER_VISIT if load in {"visits", "popular"} else 1
    return (name for name in visited for _ in range(times))


@contextlib.contextmanager
def watching(connection: psycopg.Connection[tuple[object, ...]], side: str) -> Iterator[list[int]]:
    """Count the clients of a side's databases until the end of the block."""
    seen = [0]
    is_over = threading.Event()
    query = (
        "SELECT count(*) FROM pg_stat_activity "
        f"WHERE backend_type = 'client backend' AND datname LIKE '{side}%'"
    )

    def watch() -> None:
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
def site(server: rows.Postgres, count: int) -> Iterator[Server]:
    """Serve the tenants of both sides by one process."""
    rows.make_template(server)
    with tempfile.TemporaryDirectory() as folder, server.connect() as connection:
        tenants = rows.make_site(Path(folder))
        rows.add_endpoint(Path(folder), "free", rows.UNBOUNDED)
        names = {side: names_of(side, count) for side in SIDES}
        for side, endpoint in zip(SIDES, ("rows", "free"), strict=True):
            for name in names[side]:
                rows.make_database(connection, name)
                text = rows.tenant_text(name, server.url(name), endpoint)
                (tenants / f"{name}.py").write_text(text)
        with serving(Path(folder), 1, TENANTRY_DB_CONNECTIONS=str(LIMIT)) as running:
            for name in itertools.chain(*names.values()):
                running.wait_for(f"/{name}/", 200)
            yield running


if __name__ == "__main__":
    main()
