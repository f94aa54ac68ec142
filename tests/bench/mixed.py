"""Sends mixed requests from clients that abort at random, and then looks for leaked resources.

    python tests/bench/mixed.py [MINUTES]

One gunicorn serves five tenants with 2 workers of 8 threads. For 10 minutes, or MINUTES, 48 clients
in four processes open one connection after another. On each connection, a client sends up to six
random requests: GET, HEAD and POST with small, large and chunked bodies; pages that stream, that
sleep, or that have 1 MB; pipelined or one by one; with or without `Connection: close`; slowly or at
full speed. Three of ten connections end at a random byte of what is sent or received, with a reset,
with a close, or with a half-close.

No response may belong to another request, and no whole request may get no response. When all
clients have ended, no worker may have more file descriptors than after a warm-up, more threads than
its pool has, or a request in flight; and no worker may have ended or logged a failure.
"""

import argparse
import os
import random
import tempfile
import threading
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from loads import Bounds, Server, Usage, serving, usage
from mixed_clients import ENDPOINT, TENANTS, Report, Session
from rows import add_endpoint

from tenantry.observability.control_socket import ask_workers
from tenantry.server.worker import SPARE_THREADS

PROCESSES = 4
CLIENTS = 12
"""Number of clients in each process."""

WARM_UP_S = 5.0
SETTLE_S = 40.0
"""Seconds within which a worker must close the connections of ended clients. The time is longer
than the time that a slow client has for a request body."""

QUIET_S = 4.0
"""Seconds without a change after which a worker is at rest: twice as long as the server keeps a
connection that it has closed itself."""

POOL_THREADS = 2 * 8 + SPARE_THREADS
FAILURES = ("worker.", "Traceback", "Error handling request", "CRITICAL")
"""Parts of log lines that show a failure of the server."""


def main() -> None:
    """Run the load, and print the resources that the workers still hold."""
    parser = argparse.ArgumentParser()
    parser.add_argument("minutes", nargs="?", type=float, default=10.0)
    seconds = 60 * parser.parse_args().minutes
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_mixed_site(folder)
        with serving(folder, 2, "--graceful-timeout", "5") as server:
            for tenant in TENANTS:
                server.wait_for(f"/{tenant}/echo?nonce=a", 200)
            measure(server, folder, seconds, bounds)
    bounds.end()


def make_mixed_site(folder: Path) -> None:
    """Create the tenants and their endpoint."""
    add_endpoint(folder, "mixed", ENDPOINT)
    (folder / "tenants").mkdir()
    for name in TENANTS:
        text = f"APP_NAME = {name!r}\nSECRET_KEY = {name + '-' * 32!r}\n"
        (folder / "tenants" / f"{name}.py").write_text(text + "BLUEPRINTS = ['demo.mixed']\n")


def measure(server: Server, folder: Path, seconds: float, bounds: Bounds) -> None:
    """Compare each worker before and after the load."""
    idle = usages(server)
    run_load(server.port, min(WARM_UP_S, seconds))
    wait_for_rest(server, folder)
    before = usages(server)
    report = run_load(server.port, seconds)
    settled_s = wait_for_rest(server, folder)
    after = usages(server)
    print(f"at rest {settled_s:.0f} s after the last client")
    print(f"load average {os.getloadavg()[0]:.1f}; {dict(sorted(report.counts.items()))}")
    for text in report.mixed[:5] + report.lost[:5]:
        print(f"  {text}")
    for pid in before:
        print(f"  worker {pid}: {before[pid]}; then {after.get(pid, 'ended')}")
    bounds.check("mixed-up responses", len(report.mixed), 0)
    bounds.check("whole requests without a response", len(report.lost), 0)
    bounds.check("workers that ended", len(before.keys() - after.keys()), 0)
    bounds.check("file descriptors left", growth(before, after, "fds"), 0)
    extra = growth(idle, after, "threads") - (POOL_THREADS - 1)  # an idle worker has one thread
    bounds.check("threads beyond those of the pool", max(extra, 0), 0)
    bounds.check("requests in flight that no client has", in_flight(folder), 0)
    bounds.check(
        "workers that did not answer", 2 - len(ask_workers(folder / "instance", "load")), 0
    )
    lines = [
        line
        for line in server.log.read_text().splitlines()
        if "worker.ready" not in line and any(text in line for text in FAILURES)
    ]
    for line in lines[:3]:
        print(f"  logged: {line[:300]}")
    bounds.check("failures in the log", len(lines), 0)


def usages(server: Server) -> dict[int, Usage]:
    """Return what each worker uses now."""
    return {pid: usage(pid) for pid in server.workers()}


def growth(before: dict[int, Usage], after: dict[int, Usage], what: str) -> int:
    """Return the highest growth of a figure of a worker."""
    return max(
        (getattr(after[pid], what) - getattr(before[pid], what) for pid in before if pid in after),
        default=0,
    )


def in_flight(folder: Path) -> int:
    """Return the number of requests in flight of all workers."""
    answers = ask_workers(folder / "instance", "load")
    return sum(sum(answer["in_flight"].values()) for answer in answers.values())


def wait_for_rest(server: Server, folder: Path) -> float:
    """Wait until no request is in flight and no worker closes descriptors any more.

    The workers' loader processes, which end after 10 s, must also have ended. Return the seconds
    until all workers were at rest. After `SETTLE_S`, all resources that are still in use count as
    left behind.
    """
    began = changed_at = time.monotonic()
    seen = ""
    while (now := time.monotonic()) < began + SETTLE_S:
        if now >= changed_at + QUIET_S and not any(map(has_loader, server.workers())):
            break
        state = f"{in_flight(folder)} {[one.fds for one in usages(server).values()]}"
        if state != seen:
            seen, changed_at = state, now
        time.sleep(0.2)
    return changed_at - began


def has_loader(pid: int) -> bool:
    """Return whether a worker has child processes, which load tenant files."""
    lists = Path(f"/proc/{pid}/task").glob("[0-9]*/children")
    return any(one.read_text().strip() for one in lists)


# -- clients, in their own processes --------------------------------------------------------------


def run_load(port: int, seconds: float) -> Report:
    """Run all clients for some seconds, and return what they saw."""
    context = get_context("fork")
    pipes = []
    processes = []
    for seed in range(PROCESSES):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_run_clients, args=(port, seed, seconds, theirs)))
        pipes.append(ours)
        processes[-1].start()
    report = Report()
    for ours in pipes:
        report.add(ours.recv())
    for process in processes:
        process.join()
    return report


def _run_clients(port: int, seed: int, seconds: float, pipe: Pipe) -> None:
    until = time.monotonic() + seconds
    reports = [Report() for _ in range(CLIENTS)]

    def run(number: int) -> None:
        rng = random.Random(f"{seed}-{number}-{seconds}")
        while time.monotonic() < until:
            Session(port, rng, reports[number]).run()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = Report()
    for report in reports:
        total.add(report)
    pipe.send(total)


if __name__ == "__main__":
    main()
