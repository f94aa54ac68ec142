"""What noisy tenants do to a quiet one: its p99 and throughput beside them, against calm windows.

    python tests/bench/neighbours.py [--rounds 2] [--seconds 6] [sleep1] [sleep2] [sleep3] [hole]
        [compute] [nobody]

One gunicorn, 2 workers of 8 threads, for all. The quiet tenant has 4 clients that ask without a
pause, and each of their requests must be served; a noisy one has 32 that honour `Retry-After`: it
sleeps 5 s per request, or its database accepts connections and says nothing, or it computes 50 ms;
or the 32 ask for a path that is no tenant's. Each kind of client is a process of its own. A calm
window stands before and behind each noisy one.
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
"""From the first request of the noisy ones until we look: their first are under way by then."""

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
    """Who is noisy, and what the quiet one may lose by it."""

    paths: tuple[str, ...]
    p99_ratio: float
    throughput_ratio: float


CASES = {
    "sleep1": Case(("/n1/sleep",), 2, 0.9),
    "sleep2": Case(("/n1/sleep", "/n2/sleep"), 2, 0.9),
    "sleep3": Case(("/n1/sleep", "/n2/sleep", "/n3/sleep"), 2, 0.9),
    "hole": Case(("/hole/",), 2, 0.9),
    "compute": Case(("/n1/compute",), 5, 0.5),
    # Quick ones: they, and those who ask them, get their part of the processor.
    "nobody": Case(("/nobodys/",), 5, 0.2),
}
Answers = list[tuple[float, int]]
"""Seconds and status of each."""


def main() -> None:
    """Measure what was asked for, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES])
    asked = parser.parse_args()
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as hole:
        make_site(Path(folder), hole.getsockname()[1])
        with serving(Path(folder), 2) as server:
            for path in ("/quiet/", "/n1/", "/n2/", "/n3/"):
                server.wait_for(path, 201 if path == "/quiet/" else 404)
            ask(server.port, "/quiet/", 16, 1.0)  # it is awake in both workers then
            for name in asked.cases or CASES:
                measure(name, server, bounds, asked)
    bounds.end()


def make_site(folder: Path, hole: int) -> None:
    """Make the tenants: a quiet one, three noisy ones, one whose database is a hole."""
    tenants = rows.make_site(folder)
    package = folder / "said/noisy"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "blueprint.py").write_text(NOISY)
    (tenants / "quiet.py").write_text(landing_text("quiet"))
    for name in ("n1", "n2", "n3"):
        text = landing_text(name).replace("landing", "said.noisy")
        (tenants / f"{name}.py").write_text(text)
    url = f"postgresql+psycopg://x:x@127.0.0.1:{hole}/x"
    (tenants / "hole.py").write_text(rows.tenant_text("hole", url))


def measure(name: str, server: Server, bounds: Bounds, asked: argparse.Namespace) -> None:
    """Take windows by turns, and print both sides and their ratios."""
    case = CASES[name]
    calm: list[Answers] = [ask(server.port, "/quiet/", QUIET_CLIENTS, asked.seconds)]
    beside: list[Answers] = []
    noise: Counter[int] = Counter()
    for _ in range(asked.rounds):
        with noisy(server.port, case.paths) as heard:
            time.sleep(RAMP_S)
            beside.append(ask(server.port, "/quiet/", QUIET_CLIENTS, asked.seconds))
        noise.update(heard)
        calm.append(ask(server.port, "/quiet/", QUIET_CLIENTS, asked.seconds))
    sides = [[one for window in side for one in window] for side in (calm, beside)]
    times = [[seconds for seconds, status in side if status == 201] for side in sides]
    windows = (len(calm), len(beside))
    rates = [
        len(served) / count / asked.seconds for served, count in zip(times, windows, strict=True)
    ]
    refused = [sum(status != 201 for _, status in side) for side in sides]
    print(f"{name}, load average {os.getloadavg()[0]:.1f}; noisy ones: {dict(noise)}")
    for what, one, rate, count in zip(("calm", "beside"), times, rates, refused, strict=True):
        print(f"  {what:<7}{describe(one)}  {rate:.0f}/s, {count} not served")
    ratio = percentile(times[1], 99) / percentile(times[0], 99)
    bounds.check(f"{name}: p99 beside ÷ calm", ratio, case.p99_ratio)
    bounds.check(
        f"{name}: throughput calm ÷ beside", rates[0] / rates[1], 1 / case.throughput_ratio
    )
    bounds.check(f"{name}: requests of the quiet one not served", sum(refused), 0)


def ask(port: int, path: str, clients: int, seconds: float) -> Answers:
    """Ask for so long from a process of its own, and return the answers."""
    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_ask_all, args=(port, [path] * clients, seconds, theirs))
    process.start()
    answers: Answers = ours.recv()
    process.join()
    return answers


@contextlib.contextmanager
def noisy(port: int, paths: tuple[str, ...]) -> Iterator[Counter[int]]:
    """Keep the clients of noisy tenants asking until the end of the block; then count statuses."""
    context = get_context("fork")
    ours, theirs = context.Pipe()
    all_paths = [path for path in paths for _ in range(NOISY_CLIENTS)]
    process = context.Process(target=_ask_all, args=(port, all_paths, 0.0, theirs))
    process.start()
    statuses: Counter[int] = Counter()
    try:
        yield statuses
    finally:
        ours.send("stop")
        statuses.update(status for _, status in ours.recv())
        process.join()


def _ask_all(port: int, paths: list[str], seconds: float, pipe: object) -> None:
    """Be the process: one thread per path, for so long or (0) until a word comes."""
    is_over = threading.Event()
    answers: Answers = []
    arguments = [(port, path, is_over, answers) for path in paths]
    threads = [threading.Thread(target=_ask_one, args=one) for one in arguments]
    for thread in threads:
        thread.start()
    if seconds:
        time.sleep(seconds)
    else:
        pipe.recv()  # type: ignore[attr-defined]
    is_over.set()
    for thread in threads:
        thread.join()
    pipe.send(answers)  # type: ignore[attr-defined]


def _ask_one(port: int, path: str, is_over: threading.Event, answers: Answers) -> None:
    connection = Connection(port)
    while not is_over.is_set():
        start = time.perf_counter()
        try:
            status = connection.get(path)[0]
        except (OSError, EOFError):
            status = 0
        answers.append((time.perf_counter() - start, status))
        if not status or connection.is_over:
            connection.close()
            connection = Connection(port)
        is_over.wait(connection.retry_after_s)
    connection.close()


if __name__ == "__main__":
    main()
