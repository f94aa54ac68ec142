"""The cases of `restarts.py` in which workers end by themselves, or in which the server ends.

- `stop`: The benchmark stops the server with SIGTERM while clients use kept connections, some with
  requests that take a second. Each request on a kept connection must get its response.
- `recycle`: gunicorn replaces each worker after about 500 requests (`max_requests`). No request may
  fail.
- `freeze`: The benchmark stops a worker with SIGSTOP for 10 s. During this time, gunicorn kills the
  worker, because the worker's heartbeat stops. Only requests on connections that the worker had
  accepted may fail or wait.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from loads import (
    Bounds,
    Client,
    Connection,
    Failure,
    Server,
    describe,
    load,
    make_site,
    serving,
    versioned_tenant_text,
    wait_until,
)

sys.path.append(str(Path(__file__).parents[1]))

from hanging import make_hanging_site

PAUSE_S = 0.02
ROUNDS = 3
FREEZE_S = 10.0
RECYCLE_S = 30.0
LONGEST_WAIT_S = 0.5
"""Maximum seconds that a request to another worker waits while one worker is frozen."""

NAMES = ("globex", "initech")
STOPPED_PATHS = [("/acme/", 0.0), ("/acme/", 0.02), ("/acme/", 0.3), ("/globex/sleep/1.0", 0.0)]
"""Paths and pauses in seconds of the clients of a server that stops."""


# -- the server stops -----------------------------------------------------------------------------


def stop(folder: Path, bounds: Bounds, *, is_quick: bool) -> None:
    """Stop a server several times while clients use kept connections."""
    make_hanging_site(folder, acme={}, globex={})
    waits: list[float] = []
    lost: list[str] = []
    stops_s = [_stop_once(folder, waits, lost) for _ in range(1 if is_quick else ROUNDS)]
    print(f"stop, {len(stops_s)} times, took {', '.join(f'{one:.1f}' for one in stops_s)} s:")
    print(f"         {describe(waits)}")
    for text in lost[:5]:
        print(f"  lost: {text}")
    bounds.check("stop: lost requests on kept connections", len(lost), 0)


def _stop_once(folder: Path, waits: list[float], lost: list[str]) -> float:
    with serving(folder, 2) as server:
        for path in ("/acme/", "/globex/"):
            server.wait_for(path, 200)
        targets = STOPPED_PATHS * 4
        threads = [
            threading.Thread(target=_request_until_closed, args=(server.port, *one, waits, lost))
            for one in targets
        ]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        began = time.perf_counter()
        server.process.terminate()
        for thread in threads:
            thread.join()
        server.process.wait(40)
        return time.perf_counter() - began


def _request_until_closed(
    port: int, path: str, pause_s: float, waits: list[float], lost: list[str]
) -> None:
    """Send requests on one connection until the server announces or shows that it is closed."""
    with contextlib.closing(Connection(port)) as connection:
        while not connection.is_closing and not connection.is_closed():
            began = time.perf_counter()
            try:
                status = connection.get(path)[0]
            except (OSError, EOFError) as error:
                lost.append(f"{path}: {error!r}")
                return
            if status != 200:
                lost.append(f"{path}: {status}")
            waits.append(time.perf_counter() - began)
            time.sleep(pause_s)


# -- workers end by themselves --------------------------------------------------------------------


def recycle(folder: Path, bounds: Bounds, *, is_quick: bool) -> None:
    """Let workers reach `max_requests` under load."""
    options = ("--max-requests", "500", "--max-requests-jitter", "200")
    with _serving_two(folder, *options) as (server, clients):
        del server
        with load(clients):
            time.sleep(8.0 if is_quick else RECYCLE_S)
    workers = {answer.words[-1] for client in clients for answer in client.answers}
    failures = [one for client in clients for one in client.failures + client.reconnects]
    print(f"recycle, {len(workers)} workers:")
    print(f"         {describe([one.seconds for client in clients for one in client.answers])}")
    for failure in failures[:5]:
        print(f"  failed: {failure.text}")
    bounds.check("recycle: failed requests", len(failures), 0)
    bounds.check("recycle: expected workers that never answered", max(3 - len(workers), 0), 0)


def freeze(folder: Path, bounds: Bounds, *, is_quick: bool) -> None:
    """Stop one worker for some time. Look at the requests that another worker has accepted."""
    frozen: list[tuple[int, float, float]] = []
    with _serving_two(folder) as (server, clients):
        with load(clients):
            for _ in range(1 if is_quick else ROUNDS):
                time.sleep(2)
                frozen.append(_freeze_once(server))
                time.sleep(2)
        lines = [one for one in server.log.read_text().splitlines() if "tenant.struck" in one]
    other_waits, own, others = [], 0, []
    for client in clients:
        for failure in client.failures + client.reconnects:
            if _is_of_frozen(failure, frozen):
                own += 1
            else:
                others.append(failure)
        other_waits += [
            one.seconds
            for one in client.answers
            if any(at <= one.at - one.seconds < until for _, at, until in frozen)
            and not any(at <= one.at - one.seconds <= at + 1e-3 for _, at, _ in frozen)
            and not any(one.at - one.seconds <= r.at <= one.at for r in client.reconnects)
        ]
    print(f"freeze, {len(frozen)} times; failed or repeated at the frozen worker: {own}")
    print(f"  beside it {describe(other_waits)}")
    for failure in others[:5]:
        print(f"  failed at {failure.at - frozen[0][1]:.2f} s: {failure.text}")
    for line in lines[:3]:
        print(f"  logged: {line[:200]}")
    bounds.check("freeze: failed requests at other workers", len(others), 0)
    bounds.check("freeze: longest wait at other workers", max(other_waits), LONGEST_WAIT_S, " s")


def _freeze_once(server: Server) -> tuple[int, float, float]:
    """Return the worker that was stopped, and when it was stopped and continued."""
    worker = server.workers()[0]
    os.kill(worker, signal.SIGSTOP)
    wait_until(lambda: _is_stopped(worker))
    began = time.perf_counter()
    time.sleep(FREEZE_S)
    with contextlib.suppress(ProcessLookupError):  # gunicorn has killed the worker
        os.kill(worker, signal.SIGCONT)
    return worker, began, time.perf_counter()


def _is_stopped(pid: int) -> bool:
    stats = Path(f"/proc/{pid}/task").glob("*/stat")
    return all(one.read_text().rpartition(")")[2].split()[0] == "T" for one in stats)


def _is_of_frozen(failure: Failure, frozen: list[tuple[int, float, float]]) -> bool:
    """Return whether a stopped worker may have accepted the connection of a failed request."""
    return any(
        failure.worker == worker or (not failure.worker and failure.began_at < at <= failure.at)
        for worker, at, _ in frozen
    )


@contextlib.contextmanager
def _serving_two(folder: Path, *options: str) -> Iterator[tuple[Server, list[Client]]]:
    """Serve two tenants. Yield the server and its clients, which have not started."""
    tenants = make_site(folder)
    for name in NAMES:
        (tenants / f"{name}.py").write_text(versioned_tenant_text(name, 0))
    with serving(folder, 2, *options) as server:
        for name in NAMES:
            server.wait_for(f"/{name}/", 200)
        wait_until(lambda: len(server.workers()) == 2)
        clients = [
            Client(server.port, name, PAUSE_S, is_keeping=is_keeping)
            for name in NAMES
            for is_keeping in (True, True, False)
        ]
        yield server, clients


CASES: dict[str, Callable[..., None]] = {"stop": stop, "recycle": recycle, "freeze": freeze}
