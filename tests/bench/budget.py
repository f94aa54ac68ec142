"""Measures the throughput of 200 tenants with PostgreSQL that share 20 connections.

    python tests/bench/budget.py [--tenants 200] [--seconds 4] [--rounds 10] [LOAD…]

The benchmark compares two sides. On one side, 200 tenants with a database each share the connection
budget. On the other side, 200 tenants each have an unbounded connection pool. One worker with 8
threads serves both sides, because two processes that run the same code differ by up to 7 %, which
is more than the data layer costs. The sides run alternately in short windows, and the benchmark
compares adjacent windows, so that other load on the machine affects both sides equally. Eight
clients send each load:

- `visits`: A client sends 10 requests to one tenant, and then visits the next tenant. Each client
  visits the tenants in an order of its own. A visit imitates a person who opens a page with assets
  and submits a form. Short visits, spread evenly over all tenants, are harder for the budget than
  usual traffic.
- `popular`: Clients visit tenants as in `visits`, but the n-th most popular tenant gets 1/n as many
  visits as the first, which is typical of websites (Zipf; Breslau et al. 1999). The first 20 of 200
  tenants get 61 % of the visits.
- `hot`: Once all tenants have had traffic, clients send single requests to 20 random tenants. The
  order of these requests does not matter, so each window is split into forty short parts. Short
  windows are easier to compare, because the speed of the machine changes from one second to the
  next.

For these loads, the throughput must reach the share in `BOUNDS` of the unbounded throughput, no
request may fail, and the database server may never count more than 20 connections.

Two more loads show the cost of a new connection, and have no bound on throughput. A new connection
costs 5 ms of processor time in the database server and 2 ms in the worker. A whole request costs 2
ms. In these loads, no client sends two requests in a row to the same tenant:

- `single`: Each request goes to a random tenant, weighted by popularity. Of the requests, 55 % need
  a new connection. An ideal eviction order, which knows all future requests, would need a new
  connection for 32 % of the requests (Belady 1966).
- `worst`: Requests go to all tenants in turn.

The benchmark also prints the processor time per request in the worker and in the database server.
On a busy machine, compare these figures instead of the requests per second.
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
"""Number of requests that a client sends to one tenant before it visits the next."""

SIDES = ("ours", "free")
"""Name prefixes of the tenants and databases on each side."""

PARTS = {"hot": 40}
"""Number of parts into which each window of a load is split."""

BOUNDS = {"visits": 0.6, "popular": 0.6, "hot": 0.95, "single": None, "worst": None}
"""Share of the unbounded throughput that each load must reach.

If the bound is None, the throughput is printed without a bound.
"""


def main() -> None:
    """Compare the throughput of both sides for each load, and print the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("loads", nargs="*", metavar="LOAD", help=f"{', '.join(BOUNDS)}; or all")
    arguments = parser.parse_args()
    bounds = Bounds()
    with rows.running(max_connections="400") as server, site(server, arguments.tenants) as running:
        for load in BOUNDS:
            if not arguments.loads or load in arguments.loads:
                with server.connect() as watcher:
                    compare(load, running, server, watcher, bounds, arguments)
    bounds.end()


def names_of(side: str, count: int) -> list[str]:
    """Return the names of one side's tenants."""
    return [f"{side}{number:03}" for number in range(count)]


def compare(  # noqa: PLR0917
    load: str, running: Server, server: rows.Postgres,
    watcher: psycopg.Connection[tuple[object, ...]], bounds: Bounds, arguments: argparse.Namespace,
) -> None:  # fmt: skip
    """Run one load on both sides alternately. Print throughput, cost and the ratios."""
    per_second: tuple[list[float], list[float]] = ([], [])
    used_s, answered = [0.0, 0.0], [0, 0]
    most = [0, 0]
    failures = 0
    parts = PARTS.get(load, 1)
    seconds = arguments.seconds / parts
    for turn, side in itertools.product(range(-parts, arguments.rounds * parts), (0, 1)):
        before_s = cpu_s(running, server)
        with watching(watcher, SIDES[side]) as seen:
            names = names_of(SIDES[side], arguments.tenants)
            done, failed = drive(running.port, load, names, seconds, turn)
        failures += failed
        most[side] = max(most[side], *seen)
        # The first windows are not measured, because these windows build the tenants.
        if turn >= 0:
            per_second[side].append(done / seconds)
            used_s[side] += cpu_s(running, server) - before_s
            answered[side] += done
    rate = statistics.median(one / other for one, other in zip(*per_second, strict=True))
    rates = [statistics.median(one) for one in per_second]
    costs = [1000 * used / count for used, count in zip(used_s, answered, strict=True)]
    print(f"{load}: {rates[0]:.0f}/s with {most[0]} connections; unbounded {rates[1]:.0f}/s with "
          f"{most[1]}; ours is {rate:.2f} of it")  # fmt: skip
    print(f"{load}: {costs[0]:.2f} ms of processor time per request, unbounded {costs[1]:.2f} ms; "
          f"by that ours is {costs[1] / costs[0]:.2f} of it")  # fmt: skip
    bounds.check(f"{load}: most connections", most[0], LIMIT)
    bounds.check(f"{load}: failed requests", failures, 0)
    if (bound := BOUNDS[load]) is not None:
        bounds.check(f"{load}: unbounded ÷ ours", 1 / rate, 1 / bound)


def cpu_s(running: Server, server: rows.Postgres) -> float:
    """Return the processor seconds that the worker and the database server have used."""
    ticks = 0
    for pid in [*running.workers(), server.pid, *children(server.pid)]:
        # The database process has ended, so the parent's figures include its processor time.
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            # the sum of user and system time, for the process and its ended children
            ticks += sum(int(one) for one in stat[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def drive(port: int, load: str, names: list[str], seconds: float, turn: int = 0) -> tuple[int, int]:
    """Let all clients send requests for `seconds`. Count good and bad responses."""
    good, bad = [0] * CLIENTS, [0] * CLIENTS
    end = time.perf_counter() + seconds

    def request(number: int) -> None:
        names_in_order = tenants_of(load, names, number + (CLIENTS * turn if load in PARTS else 0))
        with contextlib.closing(Connection(port)) as connection:
            while time.perf_counter() < end:
                status, body = connection.get(f"/{next(names_in_order)}/")
                if (status, body) == (200, b"good"):
                    good[number] += 1
                else:
                    bad[number] += 1
                    print(status, body[:200])

    threads = [threading.Thread(target=request, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(good), sum(bad)


def tenants_of(load: str, names: list[str], seed: int) -> Iterator[str]:
    """Yield the tenants that a client requests, in order."""
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
    """Record how many connections one side's databases have, until the end of the block."""
    seen = [0]
    stop = threading.Event()
    query = (
        "SELECT count(*) FROM pg_stat_activity "
        f"WHERE backend_type = 'client backend' AND datname LIKE '{side}%'"
    )

    def watch() -> None:
        while not stop.wait(0.03):
            row = connection.execute(query).fetchone()
            seen.append(int(str(row[0])) if row else 0)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def site(server: rows.Postgres, count: int) -> Iterator[Server]:
    """Serve the tenants of both sides from one process."""
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
