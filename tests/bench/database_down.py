"""Measures what it costs other tenants when one tenant's database fails.

    python tests/bench/database_down.py [--seconds 5] [--rounds 6]

One gunicorn serves all tenants with one worker of 8 threads. The tenant `down` uses its own
PostgreSQL server; the tenants `calm0` to `calm3` use another server. Each round has three runs:

- In the calm run, both database servers work.
- In the silent run, the benchmark closes the connections to the server of `down` and then lets that
  server accept connections without ever replying, like an unreachable machine.
- In the frozen run, SIGSTOP stops all processes of the server of `down`, as `docker pause` does.
  Queries in progress and new queries on idle connections hang.

The benchmark also measures how soon `down` serves again after its database is back. If the slowest
503 takes 0.1 s even in calm runs, the machine is too busy for this benchmark.
"""

import argparse
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import rows
from loads import Bounds, Server, children, describe, percentile, serving, wait_until
from visitors import Visitor

from servers import in_threads

CALM = [f"calm{number}" for number in range(4)]


def main() -> None:
    """Measure and print the effect of a database that stops."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    bounds = Bounds()
    with rows.running() as good, rows.running() as bad, tempfile.TemporaryDirectory() as folder:
        tenants = rows.make_site(Path(folder))
        for server, names in ((good, CALM), (bad, ["down"])):
            rows.make_template(server)
            with server.connect() as connection:
                for name in names:
                    rows.make_database(connection, name)
                    text = rows.tenant_text(name, server.url(name))
                    (tenants / f"{name}.py").write_text(text)
        with serving(Path(folder), 1) as host:
            for name in (*CALM, "down"):
                host.wait_for(f"/{name}/", 200)
            measure(host, bad, bounds, arguments)
    bounds.end()


def measure(
    host: Server, bad: rows.Postgres, bounds: Bounds, arguments: argparse.Namespace
) -> None:
    """Alternate calm and faulty runs. Print response times, and when `down` serves again."""
    calm: list[float] = []
    others: dict[str, list[float]] = {"silent": [], "frozen": []}
    refusals: list[float] = []
    backs: list[float] = []
    for _ in range(arguments.rounds):
        calm += run(host, arguments.seconds, contextlib.nullcontext())[0]
        for name, fault in (("silent", silent(bad)), ("frozen", frozen(bad))):
            times, down = run(host, arguments.seconds, fault)
            start = time.perf_counter()
            wait_until(lambda: host.status("/down/") == 200, 30, 0.02)
            backs.append(time.perf_counter() - start)
            others[name] += times
            if name == "silent":
                refusals += after_first_time_out(down)
    print(f"calm    {describe(calm)}")
    for name, times in others.items():
        print(f"{name}  {describe(times)}")
        ratio = percentile(times, 99) / percentile(calm, 99)
        bounds.check(f"others' p99, {name} ÷ calm", ratio, 1.25)
    print(f"503     {describe(refusals)}, after the first timeout")
    bounds.check("slowest 503 after the first timeout", max(refusals), 0.1, " s")
    bounds.check("back after", max(backs), 5, " s")


@contextlib.contextmanager
def silent(server: rows.Postgres) -> Iterator[None]:
    """Close a database server's connections, and then accept new connections without a reply."""
    with server.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'down'"
        )
    with stopped([server.pid]):
        yield


@contextlib.contextmanager
def frozen(server: rows.Postgres) -> Iterator[None]:
    """Freeze all processes of a database server."""
    # Stop the postmaster first, because it starts the other processes.
    with stopped([server.pid]), stopped(children(server.pid)):
        yield


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Stop the processes until the end of the block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def after_first_time_out(visitors: list[Visitor]) -> list[float]:
    """Return the duration of each 503 to a request that began after the first timeout of 2 s."""
    refused = [one for visitor in visitors for one in visitor.replies if one.status == 503]
    known_at = min(one.at for one in refused if one.seconds > 1)
    return [one.seconds for one in refused if one.at - one.seconds > known_at]


def run(
    host: Server, seconds: float, fault: contextlib.AbstractContextManager[None]
) -> tuple[list[float], list[Visitor]]:
    """Request all tenants during a fault. Return the calm tenants' times and `down`'s clients."""
    others = [Visitor(host.port, name) for name in CALM]
    down = [Visitor(host.port, "down") for _ in range(2)]
    with in_threads(*(visitor.visit_until for visitor in [*others, *down])), fault:
        time.sleep(seconds)
    failed = [one for visitor in others for one in visitor.replies if one.status != 200]
    if failed:
        raise SystemExit(f"others failed: {failed[:3]}")
    return [one.seconds for visitor in others for one in visitor.replies], down


if __name__ == "__main__":
    main()
