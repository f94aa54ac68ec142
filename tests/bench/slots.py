"""Whether slots are exact: after many requests, also failing and cut ones, none is in use.

    python tests/bench/slots.py [--requests 50000]

One gunicorn, 2 workers of 8 threads, 8 clients; of their requests 5 % fail in the app, 5 % are cut
by the client inside a streamed answer; in the middle one worker is killed.
"""

import argparse
import contextlib
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import rows
from loads import Bounds, Connection, Server, landing_text, serving, wait_until

from core.status import _ask_all  # asks each worker, as `tenantry list` does

CLIENTS = 8
ENDPOINT = """\
from flask import Blueprint, Response

some_bp = Blueprint("some", __name__)


@some_bp.route("/")
def good():
    return "good"


@some_bp.route("/fail")
def fail():
    raise SystemExit(3)


@some_bp.route("/stream")
def stream():
    return Response(b"x" * 65536 for _ in range(64))
"""


def main() -> None:
    """Send them, kill a worker meanwhile, and ask what is left in use."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=50_000)
    asked = parser.parse_args()
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as folder:
        tenants = rows.make_site(Path(folder))
        package = Path(folder, "said/some")
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "blueprint.py").write_text(ENDPOINT)
        text = landing_text("acme").replace("landing", "said.some")
        (tenants / "acme.py").write_text(text)
        with serving(Path(folder), 2) as server:
            server.wait_for("/acme/", 200)
            statuses = send(server, asked.requests)
            print(f"load average {os.getloadavg()[0]:.1f}; answers: {dict(statuses)}")
            for worker in server.workers():
                wait_until(lambda worker=worker: worker in answers(folder))
            in_use = [said["in_flight"] for said in answers(folder).values()]
            bounds.check("workers that answer", -len(in_use), -2)
            bounds.check("slots in use afterwards", sum(map(len, in_use)), 0)
    bounds.end()


def answers(folder: str) -> dict[int, dict[str, object]]:
    """Return what each worker tells; not those that have gone."""
    asked = _ask_all(Path(folder, "instance"), "list")
    return {pid: dict(said) for pid, said in asked.items() if said}


def send(server: Server, count: int) -> Counter[str]:
    """Send so many requests by several clients; kill one worker in the middle."""
    statuses: Counter[str] = Counter()
    left = iter(range(count))
    lock = threading.Lock()  # protects both
    threads = [
        threading.Thread(target=_send, args=(server.port, left, statuses, lock, seed))
        for seed in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    while sum(statuses.values()) < count / 2:
        time.sleep(0.05)
    os.kill(server.workers()[0], signal.SIGKILL)
    for thread in threads:
        thread.join()
    return statuses


def _send(port: int, left: object, statuses: Counter[str], lock: threading.Lock, seed: int) -> None:
    chance, connection = random.Random(seed), Connection(port)
    while True:
        with lock:
            if next(left, None) is None:  # type: ignore[call-overload]
                break
        kind = chance.random()
        try:
            if kind < 0.05:
                said = _cut(port)
            else:
                said = str(connection.get("/acme/fail" if kind < 0.1 else "/acme/")[0])
        except (OSError, EOFError):
            said = "lost"
        if said == "lost" or connection.is_over:
            connection.close()
            with contextlib.suppress(OSError):
                connection = Connection(port)
        with lock:
            statuses[said] += 1
    connection.close()


def _cut(port: int) -> str:
    connection = Connection(port)
    connection._socket.sendall(b"GET /acme/stream HTTP/1.1\r\nHost: a\r\n\r\n")
    connection._socket.recv(1000)
    connection.close()
    return "cut"


if __name__ == "__main__":
    main()
