"""Throughput of 200 tenants with a PostgreSQL database each, on 20 connections for all.

    python tests/bench/budget.py [--tenants 200] [--seconds 4] [--rounds 10] [LOAD…]

The tenants are compared with 200 tenants in the same worker of 8 threads, each with a database and
an unbounded connection pool of its own. One process serves the two sides, because two processes of
the same code differ by up to 7 %, which is more than the data layer costs. The two sides take
turns, and each turn is compared with the adjacent turn, so that noise of the machine affects both
sides alike. Eight clients send each load:

- visits: 10 requests to one tenant, then to the next tenant, in an order of the client's own. The
  load `visits` imitates people: a page with assets, a form, the next page. A visit of ten requests
  is short, and equally many visits to each tenant are worse for the budget than usual traffic;
- popular: visits, but the n-th most popular tenant gets 1/n as many visits as the first, like the
  traffic of many sites (Zipf; Breslau et al. 1999). The first 20 of 200 tenants get 61 % of visits;
- hot: single requests to 20 tenants at random, after all tenants have had traffic. The load `hot`
  has no order that a turn would restart, so each turn is split into forty parts. Short turns
  compare better, because the speed of the machine changes from one second to the next.

Bounds: at least the part of the unbounded throughput in `BOUNDS`, at most 20 connections, as the
database server counts them all the time, and no failed request. Two more loads have no bound on
throughput. In the following loads, no client sends a second request to a tenant, so the loads show
the cost of a new connection (5 ms of the database server's processor time and 2 ms of the worker's;
a whole request costs 2 ms):

- single: each request goes to any tenant by popularity. 55 % of the requests need a new
  connection. An eviction order that knew the future would open a connection for 32 % (Belady 1966);
- worst: each request goes to another tenant, in turn.

The benchmark also prints the processor time per request of the worker and the database server. On
an idle machine, the processor time agrees with the requests per second; on a busy machine, only the
processor time is meaningful.
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
"""Requests that a client sends to one tenant before it sends some to the next."""

SIDES = ("ours", "free")
"""Prefixes of the names of each side's tenants and databases."""

PARTS = {"hot": 40}
"""Number of parts into which the turns of a load are split."""

BOUNDS = {"visits": 0.6, "popular": 0.6, "hot": 0.95, "single": None, "worst": None}
"""Minimum part of the unbounded throughput per load.

A bound of None means that the throughput is only printed.
"""


def main() -> None:
    """Measure and print."""
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
    """Return the names of a side's tenants."""
    return [f"{side}{number:03}" for number in range(count)]


def compare(  # noqa: PLR0917
    load: str, running: Server, server: rows.Postgres,
    watcher: psycopg.Connection[tuple[object, ...]], bounds: Bounds, arguments: argparse.Namespace,
) -> None:  # fmt: skip
    """Run a load in turn against the two sides; print throughputs, costs and the ratios."""
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
        if turn >= 0:  # the first turns build the tenants
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
        # the database process has ended, and the parent has the processor times
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            # user and system time of the process and of ended child processes
            ticks += sum(int(one) for one in stat[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def drive(port: int, load: str, names: list[str], seconds: float, turn: int = 0) -> tuple[int, int]:
    """Send requests with every client for `seconds`; count good and bad responses."""
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
    """Yield the tenant of each request of a client."""
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
    """Record the number of clients of a side's databases until the end of the block."""
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
    """Serve the tenants of the two compared sides from one process."""
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
