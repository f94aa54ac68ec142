"""Checks that usage counters stay exact when requests fail, are cut or are killed.

    python tests/bench/counted.py [--requests 50000] [--clients 16]

One gunicorn with two workers of 8 threads serves one tenant. In 5 % of the requests, the app raises
an exception, raises `SystemExit`, or stops in the middle of a chunked stream. In another 5 %, the
client closes the connection after the first part of the response. Halfway through, the benchmark
kills one worker with `kill -9`. At the end, the benchmark compares the requests that clients sent
with the output of `tenantry usage`.

No request slot may still be in use, and the counts must be exact, except for requests that the
killed worker had in flight. A request in flight in the killed worker (at most one per thread) may
be answered but not counted, or counted but not answered.
"""

import argparse
import contextlib
import os
import random
import signal
import socket
import tempfile
import threading
from collections import Counter
from pathlib import Path

from loads import Bounds, Server, serving, wait_until

from tenantry.observability.control_socket import ask_workers
from tenantry.observability.usage_store import totals

WORKERS, THREADS = 2, 8
KINDS = ("good", "cut", "fail", "leave", "broken")
WEIGHTS = (90, 5, 2, 1, 2)

ENDPOINT = """\
from flask import Blueprint, Response

kinds_bp = Blueprint("kinds", __name__)

@kinds_bp.get("/good")
def good():
    return "good"

@kinds_bp.get("/fail")
def fail():
    raise ValueError("as it should")

@kinds_bp.get("/leave")
def leave():
    raise SystemExit(3)

@kinds_bp.get("/cut")
def cut():
    return Response(b"x" * 65536 for _ in range(200))

@kinds_bp.get("/broken")
def broken():
    def parts():
        yield b"one"
        raise ValueError("as it should")
    return Response(parts())
"""


def main() -> None:
    """Send requests, kill a worker, and compare the counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--clients", type=int, default=16)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        site = make_site(Path(folder))
        with serving(site, WORKERS, TENANTRY_LOG_LEVEL="warning") as server:
            server.wait_for("/acme/good", 200)
            answered, lost = drive(server, arguments.requests, arguments.clients)
            wait_until(lambda: counted(site)[0] >= sum(answered.values()) - THREADS)
            settle(site)
            in_use = slots_in_use(server, site)
        compare(answered, lost, counted(site), in_use, arguments.clients)


def slots_in_use(server: Server, site: Path) -> int:
    """Return the request slots in use in all workers, including the killed worker's replacement."""

    def answers() -> dict[int, dict[str, object]]:
        return ask_workers(site / "instance", "list")

    wait_until(lambda: len(server.workers()) == WORKERS and {*server.workers()} <= {*answers()})
    return sum(sum(one["in_flight"].values()) for one in answers().values())  # type: ignore[attr-defined]


def compare(
    answered: Counter[str], lost: int, counts: tuple[int, int], in_use: int, most_lost: int
) -> None:
    """Print how many requests were sent and how many were counted."""
    bounds = Bounds()
    requests, errors = counts
    sent = sum(answered.values()) + 1  # Include the request that waited for the server to start.
    failed = answered["fail"] + answered["leave"] + answered["broken"]
    print(f"  {dict(answered)}, {lost} lost with the killed worker; load {os.getloadavg()[0]:.1f}")
    print(f"  counted: {requests} requests, {errors} errors")
    bounds.check("answered but not counted", sent - requests, THREADS)
    bounds.check("counted but not answered", requests - sent, lost)
    bounds.check("errors that were not counted", failed - errors, THREADS)
    bounds.check("errors that were not answered", errors - failed, lost)
    bounds.check("requests that got no answer", lost, most_lost)
    bounds.check("slots in use afterwards", in_use, 0)
    bounds.end()


def drive(server: Server, requests: int, clients: int) -> tuple[Counter[str], int]:
    """Send all requests and kill a worker halfway. Count requests with and without a response."""
    answered: Counter[str] = Counter()
    lost = 0
    lock = threading.Lock()
    left = iter(random.Random(6).choices(KINDS, WEIGHTS, k=requests))
    killing = iter([requests // 2])

    def request() -> None:
        nonlocal lost
        while True:
            with lock:
                kind = next(left, None)
            if kind is None:
                return
            is_answered = send(server.port, kind)
            with lock:
                answered[kind] += is_answered
                lost += not is_answered
                if sum(answered.values()) == requests // 2 and next(killing, 0):
                    os.kill(server.workers()[0], signal.SIGKILL)

    threads = [threading.Thread(target=request) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answered, lost


def send(port: int, kind: str) -> bool:
    """Send one request on a new connection. Return whether the client got a response."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 60) as one:
        head = f"GET /acme/{kind} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        one.sendall(head.encode())
        data = one.recv(4096)
        if kind == "cut":
            return bool(data)
        while part := one.recv(65536):
            data += part
        return data.startswith(b"HTTP/1.1 ")
    return False


def settle(site: Path) -> None:
    """Wait until the counts no longer change, because cut requests end a moment later."""
    seen = [(-1, -1)]

    def is_settled() -> bool:
        seen.append(counted(site))
        return seen[-1] == seen[-2]

    wait_until(is_settled, every_s=1.0)


def counted(site: Path) -> tuple[int, int]:
    """Return how many requests and errors of the tenant Tenantry has counted."""
    counts = totals(site / "instance").get("acme")
    return (0, 0) if counts is None else (counts.requests, counts.errors)


def make_site(folder: Path) -> Path:
    """Create the endpoint and the tenant."""
    package = folder / "demo/kinds"
    package.mkdir(parents=True)
    for init in (folder / "demo/__init__.py", package / "__init__.py"):
        init.write_text("")
    (package / "blueprint.py").write_text(ENDPOINT)
    (folder / "tenants").mkdir()
    text = f"SECRET_KEY = {'-' * 40!r}\nBLUEPRINTS = ['demo.kinds']\n"
    (folder / "tenants/acme.py").write_text(text)
    return folder


if __name__ == "__main__":
    main()
