"""200 tenants with a PostgreSQL database each, in one process with 20 connections for all.

    python tests/bench/budget.py [--tenants 200] [--seconds 6]

Two gunicorns, one worker of 8 threads each, over the same databases: ours, and one whose tenants
have a pool each that grows as it likes. They take turns, so that noise of the machine meets both
alike. Three loads: visits, of 10 requests to a tenant, in turn to all; the worst there is, every
request to another tenant, so that each needs a new connection (its ratio is printed, not bound: it
is what a connection costs); 20 hot tenants. During each, the server's own count of connections is
read all the time.
"""

import argparse
import contextlib
import itertools
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import rows
from loads import Bounds, Connection, Server, serving

CLIENTS = 8
LIMIT = 20
ROUNDS = 3

VISIT = 10
"""Requests that a client sends to one tenant before it goes on to the next."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=6.0)
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
        loads: list[tuple[str, Callable[[int], Iterator[str]], float]] = [
            ("visits", lambda seed: each_in_turn(names, seed, VISIT), 0.6),
            ("every request another tenant", lambda seed: each_in_turn(names, seed, 1), 0.0),
            ("20 hot tenants", lambda seed: hot(names[:LIMIT], seed), 0.95),
        ]
        for what, load, bound in loads:
            compare(what, load, bound, (ours, free), server, bounds, asked.seconds)
    bounds.end()


def compare(  # noqa: PLR0917
    what: str, load: Callable[[int], Iterator[str]], bound: float, sides: tuple[Server, Server],
    server: rows.Postgres, bounds: Bounds, seconds: float,
) -> None:  # fmt: skip
    """Run a load against both sides in turns; print throughputs and their ratio."""
    per_second: tuple[list[float], list[float]] = ([], [])
    most = [0, 0]
    failures = 0
    for turn, side in itertools.product(range(-1, ROUNDS), (0, 1)):
        with watching(server, side) as seen:
            done, failed = drive(sides[side].port, load, seconds)
        failures += failed
        most[side] = max(most[side], *seen)
        if turn >= 0:  # the first turn wakes the tenants
            per_second[side].append(done / seconds)
    medians = [statistics.median(one) for one in per_second]
    print(f"{what}: {medians[0]:.0f}/s with {most[0]} connections; unbounded {medians[1]:.0f}/s "
          f"with {most[1]}; ours is {medians[0] / medians[1]:.2f} of it")  # fmt: skip
    bounds.check(f"{what}: most connections", most[0], LIMIT)
    bounds.check(f"{what}: failed requests", failures, 0)
    if bound:
        bounds.check(f"{what}: unbounded ÷ ours", medians[1] / medians[0], 1 / bound)


def drive(port: int, load: Callable[[int], Iterator[str]], seconds: float) -> tuple[int, int]:
    """Ask for `seconds` with every client; return how many answers were good and how many not."""
    good, bad = [0] * CLIENTS, [0] * CLIENTS
    end = time.perf_counter() + seconds

    def ask(number: int) -> None:
        names = load(number)
        with contextlib.closing(Connection(port)) as connection:
            while time.perf_counter() < end:
                status, body = connection.get(f"/{next(names)}/")
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


def each_in_turn(names: list[str], seed: int, times: int) -> Iterator[str]:
    """Yield all names again and again, in an order of the client's own, each some times."""
    order = random.Random(seed).sample(names, len(names))
    return itertools.cycle([name for name in order for _ in range(times)])


def hot(names: list[str], seed: int) -> Iterator[str]:
    """Yield names at random."""
    chance = random.Random(seed)
    while True:
        yield chance.choice(names)


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
            while not is_over.wait(0.01):
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
