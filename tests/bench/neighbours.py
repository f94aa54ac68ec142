"""Compares a quiet tenant's p99 and throughput with and without noisy tenants.

    python tests/bench/neighbours.py [--rounds 2] [--seconds 6] [CASE…]

One gunicorn serves all tenants with 2 workers of 8 threads. The quiet tenant has 4 clients that
send requests without a pause. Each noisy tenant has 32 clients that honor `Retry-After`. The cases
are:

- `sleep1`, `sleep2`, `sleep3`: In each request, one to three noisy tenants sleep for 5 s.
- `silent`: The noisy tenant's database accepts connections but never replies.
- `compute`: The noisy tenant computes for 50 ms.
- `no_tenant`: The 32 clients request a path that belongs to no tenant.

Clients of the quiet tenant and of noisy tenants run in separate processes. The benchmark measures
calm windows before and after each noisy window. The ratios must be within the bounds in `CASES`,
and no request of the quiet tenant may fail.
"""

import argparse
import contextlib
import os
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import rows
from loads import Bounds, Connection, Server, describe, landing_text, percentile, serving

QUIET_CLIENTS = 4
NOISY_CLIENTS = 32
RAMP_S = 2.0
"""Seconds between the first noisy request and the measurement."""

NOISY = """\
import time
from flask import Blueprint

noisy_bp = Blueprint("noisy", __name__)


@noisy_bp.route("/sleep")
def sleep():
    time.sleep(5)
    return "slept"


@noisy_bp.route("/compute")
def compute():
    end = time.thread_time() + 0.05
    while time.thread_time() < end:
        sum(range(1000))
    return "computed"
"""


@dataclass(frozen=True)
class Case:
    """The paths of the noisy tenants, and the bounds for the quiet tenant."""

    paths: tuple[str, ...]
    p99_ratio: float
    throughput_ratio: float
    clients: int = NOISY_CLIENTS
    """Number of clients of each path."""


CASES = {
    "sleep1": Case(("/n1/sleep",), 2, 0.9),
    "sleep2": Case(("/n1/sleep", "/n2/sleep"), 2, 0.9),
    "sleep3": Case(("/n1/sleep", "/n2/sleep", "/n3/sleep"), 2, 0.9),
    "silent": Case(("/silent/",), 2, 0.9),
    "compute": Case(("/n1/compute",), 5, 0.5),
    # Clients of `no_tenant` send many short requests, which take much processor time, so the bounds
    # are wider.
    "no_tenant": Case(("/nothing/",), 5, 0.2),
}
Answers = list[tuple[float, int]]
"""Seconds and status of each response."""


def main() -> None:
    """Measure the chosen cases and print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES])
    arguments = parser.parse_args()
    bounds = Bounds()
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as silent_socket,
    ):
        make_site(Path(folder), silent_socket.getsockname()[1])
        with serving(Path(folder), 2) as server:
            for path in ("/quiet/", "/n1/", "/n2/", "/n3/"):
                server.wait_for(path, 201 if path == "/quiet/" else 404)
            # Each of the two workers must have built the quiet tenant before the measurement.
            request_from_process(server.port, "/quiet/", 16, 1.0)
            for name in arguments.cases or CASES:
                measure(name, CASES[name], server, bounds, arguments)
    bounds.end()


def make_site(folder: Path, silent_port: int) -> None:
    """Create one quiet tenant, three noisy tenants, and a tenant with a silent database."""
    tenants = rows.make_site(folder)
    add_tenants(folder, ("n1", "n2", "n3"))
    url = f"postgresql+psycopg://x:x@127.0.0.1:{silent_port}/x"
    (tenants / "silent.py").write_text(rows.tenant_text("silent", url))


def add_tenants(folder: Path, noisy_names: tuple[str, ...]) -> None:
    """Create the quiet tenant, and the noisy tenants with their endpoint."""
    rows.add_endpoint(folder, "noisy", NOISY)
    tenants = folder / "tenants"
    (tenants / "quiet.py").write_text(landing_text("quiet"))
    for name in noisy_names:
        text = landing_text(name).replace("landing", "demo.noisy")
        (tenants / f"{name}.py").write_text(text)


def measure(
    name: str, case: Case, server: Server, bounds: Bounds, arguments: argparse.Namespace
) -> None:
    """Alternate calm and noisy windows. Print the figures and ratios."""
    calm: list[Answers] = [
        request_from_process(server.port, "/quiet/", QUIET_CLIENTS, arguments.seconds)
    ]
    beside: list[Answers] = []
    noise: Counter[int] = Counter()
    for _ in range(arguments.rounds):
        with noisy(server.port, case.paths, case.clients) as statuses:
            time.sleep(RAMP_S)
            beside.append(
                request_from_process(server.port, "/quiet/", QUIET_CLIENTS, arguments.seconds)
            )
        noise.update(statuses)
        calm.append(request_from_process(server.port, "/quiet/", QUIET_CLIENTS, arguments.seconds))
    sides = [[one for window in side for one in window] for side in (calm, beside)]
    times = [[seconds for seconds, status in side if status == 201] for side in sides]
    windows = (len(calm), len(beside))
    rates = [
        len(served) / count / arguments.seconds
        for served, count in zip(times, windows, strict=True)
    ]
    refused = [sum(status != 201 for _, status in side) for side in sides]
    print(f"{name}, load average {os.getloadavg()[0]:.1f}; noisy tenants: {dict(noise)}")
    for what, one, rate, count in zip(("calm", "beside"), times, rates, refused, strict=True):
        print(f"  {what:<7}{describe(one)}  {rate:.0f}/s, {count} not served")
    ratio = percentile(times[1], 99) / percentile(times[0], 99)
    bounds.check(f"{name}: p99 beside ÷ calm", ratio, case.p99_ratio)
    bounds.check(
        f"{name}: throughput calm ÷ beside", rates[0] / rates[1], 1 / case.throughput_ratio
    )
    bounds.check(f"{name}: requests of the quiet tenant not served", sum(refused), 0)


def request_from_process(port: int, path: str, clients: int, seconds: float) -> Answers:
    """Send requests from a separate process for some seconds, and return the responses."""
    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_request_all, args=(port, [path] * clients, seconds, theirs))
    process.start()
    answers: Answers = ours.recv()
    process.join()
    return answers


@contextlib.contextmanager
def noisy(port: int, paths: tuple[str, ...], clients: int) -> Iterator[Counter[int]]:
    """Send requests to noisy tenants until the end of the block, and then count statuses."""
    context = get_context("fork")
    ours, theirs = context.Pipe()
    all_paths = [path for path in paths for _ in range(clients)]
    process = context.Process(target=_request_all, args=(port, all_paths, 0.0, theirs))
    process.start()
    statuses: Counter[int] = Counter()
    try:
        yield statuses
    finally:
        ours.send("stop")
        statuses.update(status for _, status in ours.recv())
        process.join()


def _request_all(port: int, paths: list[str], seconds: float, pipe: object) -> None:
    """Run one thread per path for `seconds`.

    If `seconds` is 0, run until the pipe has a message.
    """
    stop = threading.Event()
    answers: Answers = []
    arguments = [(port, path, stop, answers) for path in paths]
    threads = [threading.Thread(target=_request_one, args=one) for one in arguments]
    for thread in threads:
        thread.start()
    if seconds:
        time.sleep(seconds)
    else:
        pipe.recv()  # type: ignore[attr-defined]
    stop.set()
    for thread in threads:
        thread.join()
    pipe.send(answers)  # type: ignore[attr-defined]


def _request_one(port: int, path: str, stop: threading.Event, answers: Answers) -> None:
    connection = Connection(port)
    while not stop.is_set():
        start = time.perf_counter()
        try:
            status = connection.get(path)[0]
        except (OSError, EOFError):
            status = 0
        answers.append((time.perf_counter() - start, status))
        if not status or connection.is_closing:
            connection.close()
            connection = Connection(port)
        stop.wait(connection.retry_after_s)
    connection.close()


if __name__ == "__main__":
    main()
