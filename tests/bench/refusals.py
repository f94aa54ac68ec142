"""Measures what it costs to refuse requests of a tenant that exceeds its rate limit.

    python tests/bench/refusals.py [--rounds 40] [--seconds 0.8]

The first part measures the cost of a refusal with one worker. Windows of served landing requests on
one connection alternate with windows of refused requests on 32 connections. The refused requests
need many connections, because the server pauses each connection briefly after a refusal. A refusal
may take at most 15 % of the processor time of a served request.

The second part measures the throughput of a quiet tenant with two workers. The quiet tenant has 4
clients that send requests without a pause. At the same time, a limited tenant gets 20 times its
rate limit from clients that ignore `Retry-After`. The clients of the limited tenant alone take a
tenth of the processor time. Therefore, in calm windows, the clients of the limited tenant send the
same load to another process, which returns the same few bytes. The quiet tenant must keep at least
90 % of its calm throughput.

The benchmark also prints the quiet tenant's throughput without other clients. Windows of the same
kind can differ by half, depending on how connections are spread over the workers, so the benchmark
uses many short windows.
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
from neighbours import request_from_process

RATE = 10
"""Rate limit of the limited tenant, in requests per second."""
TIMES = 20
CLIENTS = 16
FLOOD = 32
"""Number of connections for measuring the cost of a refusal."""


def main() -> None:
    """Measure and print the cost of a refusal and the effect on the quiet tenant."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.8)
    arguments = parser.parse_args()
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as folder:
        tenants = Path(folder, "tenants")
        tenants.mkdir()
        (tenants / "quiet.py").write_text(landing_text("quiet"))
        for name, rate in (("limited", f"{RATE}/second"), ("over", "1/day")):
            (tenants / f"{name}.py").write_text(landing_text(name) + f"RATE_LIMIT = {rate!r}\n")
        cost(Path(folder), arguments, bounds)
        neighbour(Path(folder), arguments, bounds)
    bounds.end()


def cost(folder: Path, arguments: argparse.Namespace, bounds: Bounds) -> None:
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
            for _ in range(arguments.rounds):
                for path, expected, used in (("/quiet/", 201, each[:1]), ("/over/", 429, each)):
                    cost_s = window_cost_s(worker, used, path, expected, arguments.seconds / 2)
                    taken[expected].append(cost_s)
    medians = {status: statistics.median(one) for status, one in taken.items()}
    print(f"load average {os.getloadavg()[0]:.1f}; "
          f"served {1e6 * medians[201]:.0f} µs, refused {1e6 * medians[429]:.0f} µs")  # fmt: skip
    bounds.check("processor time, refused ÷ served", medians[429] / medians[201], 0.15)


def window_cost_s(
    worker: int, connections: list[Connection], path: str, expected: int, seconds: float
) -> float:
    """Send requests on all connections for some seconds.

    Return the processor time of each request.
    """
    before, count = cpu_s(worker), 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for connection in connections:
            connection.send(path)
        for connection in connections:
            status = connection.receive()[0]
            if status != expected:
                raise SystemExit(f"{path} answered {status}")
        count += len(connections)
    return (cpu_s(worker) - before) / count


def neighbour(folder: Path, arguments: argparse.Namespace, bounds: Bounds) -> None:
    """Compare the quiet tenant's throughput with and without load on the limited tenant."""
    served: dict[str, list[int]] = {"alone": [], "calm": [], "beside": []}
    noise, not_served = Counter[int](), 0

    def window() -> int:
        """Return how many requests of the quiet tenant were served."""
        nonlocal not_served
        answers = request_from_process(server.port, "/quiet/", 4, arguments.seconds)
        count = sum(status == 201 for _, status in answers)
        not_served += len(answers) - count
        return count

    with serving(folder, 2) as server, refusing_elsewhere() as elsewhere:
        server.wait_for("/quiet/", 201)
        for path in ("/quiet/", "/limited/"):
            # Send enough requests that each of the two workers builds the tenant.
            request_from_process(server.port, path, 16, 1.0)
        for _ in range(arguments.rounds):
            served["alone"].append(window())
            with flood(elsewhere, Counter()):
                served["calm"].append(window())
            with flood(server.port, noise):
                served["beside"].append(window())
    alone, calm, beside = (statistics.mean(one) / arguments.seconds for one in served.values())
    seconds = arguments.rounds * arguments.seconds
    rates = {status: f"{count / seconds:.0f}/s" for status, count in noise.items()}
    print(f"load average {os.getloadavg()[0]:.1f}; alone {alone:.0f}/s, calm {calm:.0f}/s, "
          f"beside {beside:.0f}/s; limited to {RATE}/s: {rates}")  # fmt: skip
    bounds.check("throughput calm ÷ beside", calm / beside, 1 / 0.9)
    print(f"  throughput alone ÷ beside: {alone / beside:.3f}")
    bounds.check("requests of the quiet tenant not served", not_served, 0)


@contextlib.contextmanager
def refusing_elsewhere() -> Iterator[int]:
    """Run a process that refuses every request until the end of the block. Yield the port."""
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
    """Send requests at 20 times the tenant's rate until the block ends. Count the status codes."""
    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_flood, args=(port, theirs))
    process.start()
    ours.recv()  # Wait until each connection of the client has had a response.
    try:
        yield
    finally:
        ours.send("stop")
        noise.update(ours.recv())
        process.join()


def _flood(port: int, pipe: object) -> None:
    stop, all_connected = threading.Event(), threading.Barrier(CLIENTS + 1)
    statuses: list[int] = []

    def send() -> None:
        connection = Connection(port)
        connection.get("/limited/")
        all_connected.wait()
        due, pause_s = time.perf_counter(), CLIENTS / (RATE * TIMES)
        while not stop.is_set():
            statuses.append(connection.get("/limited/")[0])
            due = max(due + pause_s, time.perf_counter() - pause_s)
            time.sleep(max(due - time.perf_counter(), 0.0))
        connection.close()

    threads = [threading.Thread(target=send) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    all_connected.wait()
    pipe.send("ready")  # type: ignore[attr-defined]
    pipe.recv()  # type: ignore[attr-defined]
    stop.set()
    for thread in threads:
        thread.join()
    pipe.send(dict(Counter(statuses)))  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
