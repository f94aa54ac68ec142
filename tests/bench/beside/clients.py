"""The clients: wrk for throughput, and clients of our own that see each wait and each failure."""

import contextlib
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from loads import Connection, percentile

PROBES = 4
"""Number of our own clients in addition to wrk's. The waits of our clients give the p99."""

RAMP_S = 0.3
"""Seconds between wrk's first requests and the first request of a probe."""

PAUSE_S = 0.01
"""Seconds between two requests of a visitor, so that visitors do not use all processor time."""

_REQUESTS = re.compile(r"(\d+) requests in")
_RATE = re.compile(r"Requests/sec: +([\d.]+)")
_BAD = re.compile(r"Non-2xx or 3xx responses: (\d+)")


@dataclass(frozen=True)
class Load:
    """What wrk reports."""

    requests: int
    per_s: float


def wrk(port: int, path: str, clients: int, seconds: int, *, is_keeping: bool = True) -> Load:
    """Send requests with wrk's clients, each without a pause."""
    with _wrk(port, path, clients, seconds, is_keeping=is_keeping) as process:
        text, _ = process.communicate()
    requests, rate, bad = _REQUESTS.search(text), _RATE.search(text), _BAD.search(text)
    if requests is None or rate is None or bad is not None or requests[1] == "0":
        raise SystemExit(f"wrk failed:\n{text}")
    return Load(int(requests[1]), float(rate[1]))


@contextlib.contextmanager
def _wrk(
    port: int, path: str, clients: int, seconds: int, *, is_keeping: bool = True
) -> Iterator[subprocess.Popen[str]]:
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s"]
    command += [] if is_keeping else ["-H", "Connection: close"]
    command.append(f"http://127.0.0.1:{port}{path}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process


def p99_s(port: int, path: str, clients: int, seconds: int) -> float:
    """Return the p99 of the waits of `PROBES` clients among `clients` clients.

    A client that gets no response until the other clients stop has waited for the whole window. wrk
    alone does not count a client without a response.
    """
    waits: list[float] = []
    with _wrk(port, path, clients - PROBES, seconds) as process:
        time.sleep(RAMP_S)
        end = time.perf_counter() + seconds - RAMP_S
        probes = [
            threading.Thread(target=_probe, args=(port, path, end, waits), daemon=True)
            for _ in range(PROBES)
        ]
        for probe in probes:
            probe.start()
        for probe in probes:
            probe.join()
        process.communicate()
    return percentile(waits, 99)


def _probe(port: int, path: str, end: float, waits: list[float]) -> None:
    visitor = Visitor(port, path)
    while time.perf_counter() < end:
        visitor.visit()
    visitor.close()
    waits += visitor.waits


@dataclass
class Visitor:
    """A keep-alive client that repeats a failed request until the response is 201."""

    port: int
    path: str
    waits: list[float] = field(default_factory=list)
    """Seconds from each request to its 201, including failed attempts."""
    failures: list[str] = field(default_factory=list)
    """Each attempt without a 201, and each kept connection that ended before the response."""
    stop: threading.Event = field(default_factory=threading.Event)
    """When set, ends the attempts of a request that does not succeed."""
    _connection: Connection | None = None

    def visit(self) -> None:
        """Send one request until it succeeds or until the visitor is stopped."""
        began = time.perf_counter()
        while not self._attempt():
            if self.stop.wait(PAUSE_S):
                break
        self.waits.append(time.perf_counter() - began)

    def _attempt(self) -> bool:
        try:
            if self._connection is None:
                self._connection = Connection(self.port)
            connection = self._connection
            status, _ = connection.get(self.path)
        except (OSError, EOFError) as error:
            self.failures.append(f"{type(error).__name__} {error}")
            self.close()
            return False
        if connection.is_closing:
            self.close()
        if status != 201:
            self.failures.append(str(status))
        return status == 201

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def under_load(
    port: int, paths: Sequence[str], event: Callable[[], None], seconds: float
) -> tuple[int, float]:
    """Return visitors' failed requests and longest wait, from an event until `seconds` later.

    Each path has four visitors.
    """
    stop = threading.Event()
    visitors = [Visitor(port, path, stop=stop) for path in paths for _ in range(4)]
    threads = [
        threading.Thread(target=_visit_until_stopped, args=(one,), daemon=True) for one in visitors
    ]
    for thread in threads:
        thread.start()
    time.sleep(RAMP_S)
    event()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    failed = sum(len(one.failures) for one in visitors)
    return failed, max(wait for one in visitors for wait in one.waits)


def _visit_until_stopped(visitor: Visitor) -> None:
    visitor.visit()
    while not visitor.stop.wait(PAUSE_S):
        visitor.visit()
    visitor.close()


def visit_each(port: int, paths: Sequence[str], times: int) -> None:
    """Send each path some requests, each on a new connection, so that every worker gets some."""
    for _ in range(times):
        for path in paths:
            visitor = Visitor(port, path)
            visitor.visit()
            visitor.close()
