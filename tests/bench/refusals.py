"""What a tenant over its rate costs: processor time per refusal, and its neighbour's throughput.

    python tests/bench/refusals.py [--rounds 40] [--seconds 0.8]

Cost: one worker; by turns windows of landing requests that are served, on one connection, and of
some that are refused, a flood on 32: after a refusal a connection is not looked at for a moment.
Neighbour: two workers, a quiet tenant with 4 clients that ask without a pause, beside one that gets
20 times its rate, from clients that do not heed `Retry-After`; and calm: then those clients ask as
much of another process, which answers with the same few bytes, for they share the processors with
the server and take a tenth of them by themselves (the third figure, with nothing beside it, tells).
The windows of one kind differ by half, for connections fall to the two workers as it happens: so
many short ones are taken.
"""

import argparse
import contextlib
import os
import selectors
import socket
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
FLOOD = 32
"""Connections, where a refusal's cost is measured."""


def main() -> None:
    """Measure both, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.8)
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
        with contextlib.ExitStack() as stack:
            each = [Connection(server.port) for _ in range(FLOOD)]
            for connection in each:
                stack.callback(connection.close)
            for _ in range(asked.rounds):
                for path, wanted, used in (("/quiet/", 201, each[:1]), ("/over/", 429, each)):
                    cost_s = window_cost_s(worker, used, path, wanted, asked.seconds / 2)
                    taken[wanted].append(cost_s)
    medians = {status: statistics.median(one) for status, one in taken.items()}
    print(f"load average {os.getloadavg()[0]:.1f}; "
          f"served {1e6 * medians[201]:.0f} µs, refused {1e6 * medians[429]:.0f} µs")  # fmt: skip
    bounds.check("processor time, refused ÷ served", medians[429] / medians[201], 0.15)


def window_cost_s(
    worker: int, connections: list[Connection], path: str, wanted: int, seconds: float
) -> float:
    """Ask on all connections at once, for so long; return the processor time of a request."""
    before, count = cpu_s(worker), 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for connection in connections:
            connection.ask(path)
        for connection in connections:
            status = connection.answer()[0]
            if status != wanted:
                raise SystemExit(f"{path} answered {status}")
        count += len(connections)
    return (cpu_s(worker) - before) / count


def neighbour(folder: Path, asked: argparse.Namespace, bounds: Bounds) -> None:
    """Compare the quiet tenant's throughput, calm and beside the one over its rate."""
    served: dict[str, list[int]] = {"alone": [], "calm": [], "beside": []}
    noise, not_served = Counter[int](), 0

    def window() -> int:
        """Return how many of the quiet one's requests were served."""
        nonlocal not_served
        answers = ask(server.port, "/quiet/", 4, asked.seconds)
        count = sum(status == 201 for _, status in answers)
        not_served += len(answers) - count
        return count

    with serving(folder, 2) as server, refusing_elsewhere() as elsewhere:
        server.wait_for("/quiet/", 201)
        for path in ("/quiet/", "/limited/"):
            ask(server.port, path, 16, 1.0)  # awake in both workers then
        for _ in range(asked.rounds):
            served["alone"].append(window())
            with flood(elsewhere, Counter()):
                served["calm"].append(window())
            with flood(server.port, noise):
                served["beside"].append(window())
    alone, calm, beside = (statistics.mean(one) / asked.seconds for one in served.values())
    seconds = asked.rounds * asked.seconds
    told = {status: f"{count / seconds:.0f}/s" for status, count in noise.items()}
    print(f"load average {os.getloadavg()[0]:.1f}; alone {alone:.0f}/s, calm {calm:.0f}/s, "
          f"beside {beside:.0f}/s; limited to {RATE}/s: {told}")  # fmt: skip
    bounds.check("throughput calm ÷ beside", calm / beside, 1 / 0.9)
    print(f"  throughput alone ÷ beside: {alone / beside:.3f}")
    bounds.check("requests of the quiet one not served", not_served, 0)


@contextlib.contextmanager
def refusing_elsewhere() -> Iterator[int]:
    """Run a process that refuses whatever comes, until the end of the block; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = get_context("fork").Process(target=_refuse_all, args=(listener,), daemon=True)
        process.start()
        try:
            yield listener.getsockname()[1]
        finally:
            process.terminate()
            process.join()


def _refuse_all(listener: socket.socket) -> None:
    head = "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 200\r\n\r\n"
    answer = head.encode() + b" " * 200
    with selectors.DefaultSelector() as poller:
        poller.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in poller.select():
                client: socket.socket = key.fileobj  # type: ignore[assignment]
                if client is listener:
                    poller.register(client.accept()[0], selectors.EVENT_READ)
                elif client.recv(65536):
                    client.sendall(answer)
                else:
                    poller.unregister(client)
                    client.close()


@contextlib.contextmanager
def flood(port: int, noise: Counter[int]) -> Iterator[None]:
    """Send 20 times the limited tenant's rate until the end of the block; count statuses."""
    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_flood, args=(port, theirs))
    process.start()
    ours.recv()  # all its connections have been answered
    try:
        yield
    finally:
        ours.send("stop")
        noise.update(ours.recv())
        process.join()


def _flood(port: int, pipe: object) -> None:
    is_over, is_under_way = threading.Event(), threading.Barrier(CLIENTS + 1)
    statuses: list[int] = []

    def send() -> None:
        connection = Connection(port)
        connection.get("/limited/")
        is_under_way.wait()
        due, pause_s = time.perf_counter(), CLIENTS / (RATE * TIMES)
        while not is_over.is_set():
            statuses.append(connection.get("/limited/")[0])
            due = max(due + pause_s, time.perf_counter() - pause_s)
            time.sleep(max(due - time.perf_counter(), 0.0))
        connection.close()

    threads = [threading.Thread(target=send) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    is_under_way.wait()
    pipe.send("ready")  # type: ignore[attr-defined]
    pipe.recv()  # type: ignore[attr-defined]
    is_over.set()
    for thread in threads:
        thread.join()
    pipe.send(dict(Counter(statuses)))  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
