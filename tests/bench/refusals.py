"""What a tenant over its rate costs: processor time per refusal, and its neighbour's throughput.

    python tests/bench/refusals.py [--rounds 4] [--seconds 4]

Cost: one worker, one connection; windows of served landing requests and of refused ones by turns.
Neighbour: two workers, a quiet tenant with 4 clients that ask without a pause, calm and beside one
that gets 20 times its rate, from clients that do not heed `Retry-After`.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

from loads import Bounds, Connection, landing_text, serving
from many import cpu_s, worker_of
from neighbours import ask

RATE = 10
"""Requests per second of the limited tenant; its clients share the processors with the server."""
TIMES = 20
CLIENTS = 16


def main() -> None:
    """Measure both, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0)
    asked = parser.parse_args()
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as folder:
        tenants = Path(folder, "tenants")
        tenants.mkdir()
        (tenants / "quiet.py").write_text(landing_text("quiet"))
        for name, rate in (("limited", f"{RATE}/second"), ("over", "1/day")):
            (tenants / f"{name}.py").write_text(landing_text(name) + f"RATE_LIMIT = {rate!r}\n")
        cost(Path(folder), asked, bounds)
        neighbour(Path(folder), asked, bounds)
    bounds.end()


def cost(folder: Path, asked: argparse.Namespace, bounds: Bounds) -> None:
    """Compare the worker's processor time per served and per refused request."""
    taken: dict[int, list[float]] = {201: [], 429: []}
    with serving(folder, 1) as server:
        for path, status in (("/quiet/", 201), ("/over/", 429)):
            server.wait_for(path, status)
        worker = worker_of(server)
        with contextlib.closing(Connection(server.port)) as connection:
            for turn in range(2 * asked.rounds):
                path, wanted = (("/quiet/", 201), ("/over/", 429))[turn % 2]
                before, count = cpu_s(worker), 0
                end = time.perf_counter() + asked.seconds / 2
                while time.perf_counter() < end:
                    status = connection.get(path)[0]
                    count += 1
                    if status != wanted:
                        raise SystemExit(f"{path} answered {status}")
                taken[wanted].append((cpu_s(worker) - before) / count)
    medians = {status: statistics.median(one) for status, one in taken.items()}
    print(f"load average {os.getloadavg()[0]:.1f}; "
          f"served {1e6 * medians[201]:.0f} µs, refused {1e6 * medians[429]:.0f} µs")  # fmt: skip
    bounds.check("processor time, refused ÷ served", medians[429] / medians[201], 0.15)


def neighbour(folder: Path, asked: argparse.Namespace, bounds: Bounds) -> None:
    """Compare the quiet tenant's throughput, calm and beside the one over its rate."""
    calm, beside, noise, not_served = [], [], Counter[int](), 0

    def window() -> int:
        """Return how many of the quiet one's requests were served."""
        nonlocal not_served
        answers = ask(server.port, "/quiet/", 4, asked.seconds)
        served = sum(status == 201 for _, status in answers)
        not_served += len(answers) - served
        return served

    with serving(folder, 2) as server:
        server.wait_for("/quiet/", 201)
        for path in ("/quiet/", "/limited/"):
            ask(server.port, path, 16, 1.0)  # awake in both workers then
        for _ in range(asked.rounds):
            calm.append(window())
            with flood(server.port, noise):
                beside.append(window())
    rates = [statistics.mean(one) / asked.seconds for one in (calm, beside)]
    seconds = asked.rounds * asked.seconds
    told = {status: f"{count / seconds:.0f}/s" for status, count in noise.items()}
    print(f"load average {os.getloadavg()[0]:.1f}; calm {rates[0]:.0f}/s, "
          f"beside {rates[1]:.0f}/s; limited to {RATE}/s: {told}")  # fmt: skip
    bounds.check("throughput calm ÷ beside", rates[0] / rates[1], 1 / 0.9)
    bounds.check("requests of the quiet one not served", not_served, 0)


@contextlib.contextmanager
def flood(port: int, noise: Counter[int]) -> Iterator[None]:
    """Send 20 times the limited tenant's rate until the end of the block; count statuses."""
    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_flood, args=(port, theirs))
    process.start()
    try:
        yield
    finally:
        ours.send("stop")
        noise.update(ours.recv())
        process.join()


def _flood(port: int, pipe: object) -> None:
    is_over = threading.Event()
    statuses: list[int] = []

    def send() -> None:
        connection = Connection(port)
        due, pause_s = time.perf_counter(), CLIENTS / (RATE * TIMES)
        while not is_over.is_set():
            statuses.append(connection.get("/limited/")[0])
            due = max(due + pause_s, time.perf_counter() - pause_s)
            time.sleep(max(due - time.perf_counter(), 0.0))
        connection.close()

    threads = [threading.Thread(target=send) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    pipe.recv()  # type: ignore[attr-defined]
    is_over.set()
    for thread in threads:
        thread.join()
    pipe.send(dict(Counter(statuses)))  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
