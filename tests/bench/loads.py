"""Helps benchmarks start real servers, create tenants and send keep-alive requests."""

import contextlib
import os
import re
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parents[1]))

from versioned_site import make_site, versioned_tenant_text

__all__ = ["make_site", "versioned_tenant_text"]

CONFIG_FILE = Path(__file__).parents[2] / "config/gunicorn.conf.py"

# The command `timeout` sends SIGTERM. Exit normally, so that the benchmark stops its servers.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"retry-after: *(\d+)", re.IGNORECASE)


# -- tenants and servers --------------------------------------------------------------------------


def landing_text(name: str) -> str:
    """Return a tenant file that enables the landing page."""
    return f"SECRET_KEY = {name + '-' * 32!r}\nBLUEPRINTS = ['landing']\n"


@dataclass
class Server:
    """A gunicorn server on the loopback interface. The caller stops the server."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    started_at: float

    def workers(self) -> list[int]:
        """Return the process IDs of gunicorn's workers, which are the master's child processes."""
        return children(self.process.pid)

    def status(self, path: str) -> int:
        """Send one GET on a new connection, and return the status, or 0 without a response."""
        with contextlib.suppress(OSError), contextlib.closing(Connection(self.port)) as connection:
            return connection.get(path)[0]
        return 0

    def wait_for(
        self, path: str, status: int, deadline_s: float = 60.0, every_s: float = 0.01
    ) -> None:
        """Send requests until `path` answers with `status`."""
        try:
            wait_until(lambda: self.status(path) == status, deadline_s, every_s)
        except SystemExit as error:
            log = self.log.read_text()[-3000:]
            raise SystemExit(f"{path} did not answer {status}: {error}\n{log}") from None


def children(pid: int) -> list[int]:
    """Return the child processes of a process, or an empty list if the process has ended."""
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@contextlib.contextmanager
def serving(folder: Path, workers: int = 2, *options: str, **environ: str) -> Iterator[Server]:
    """Serve `folder` with gunicorn until the end of the block.

    The server may not accept requests yet when the block begins.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / f"gunicorn-{port}.log"
    command = [
        *(str(Path(sys.executable).with_name("gunicorn")), "-c", str(CONFIG_FILE)),
        *("--bind", f"127.0.0.1:{port}", "--workers", str(workers), "--threads", "8"),
        *("--log-level", "warning", *options),
    ]
    inherited = {key: value for key, value in os.environ.items() if key[:9] != "TENANTRY_"}
    with log.open("wb") as file:
        started_at = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=inherited | {"TENANTRY_ADMIN_BIND": "off"} | environ,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Server(process, port, log, started_at)
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def wait_until(
    condition: Callable[[], bool], deadline_s: float = 60.0, every_s: float = 0.01
) -> None:
    """Wait until the condition is true, or end the benchmark when the deadline has passed."""
    deadline = time.perf_counter() + deadline_s
    while not condition():
        if time.perf_counter() > deadline:
            raise SystemExit(f"timed out after {deadline_s:g} s")
        time.sleep(every_s)


# -- clients --------------------------------------------------------------------------------------


class Connection:
    """A keep-alive HTTP/1.1 connection that takes less processor time than the server."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.has_answered = False
        """Whether a response has arrived on the connection.

        If a connection breaks before the first response, the request has failed.
        """
        self.is_closing = False
        """Whether the server has announced that it will close the connection."""
        self.retry_after_s = 0
        """The value of `Retry-After` in the last response, or 0."""

    def get(self, path: str) -> tuple[int, bytes]:
        """Return the status and body of one GET.

        Raises:
            OSError: The connection ended before the response.
            EOFError: The connection ended within the response.
        """
        self.send(path)
        return self.receive()

    def send(self, path: str) -> None:
        """Send one GET request."""
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    def receive(self) -> tuple[int, bytes]:
        """Return the status and body of the next response. Raises the same errors as `get`."""
        data = b""
        while b"\r\n\r\n" not in data:
            data = self._more(data)
        head, _, body = data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        size = int(length[1]) if length else 0
        while len(body) < size:
            body = self._more(body, is_answering=True)
        self.has_answered = True
        self.is_closing = b"connection: close" in head.lower()
        retry_after = _RETRY_AFTER.search(head)
        self.retry_after_s = int(retry_after[1]) if retry_after else 0
        return int(head[9:12]), body

    def _more(self, data: bytes, *, is_answering: bool = False) -> bytes:
        part = self._socket.recv(65536)
        if part:
            return data + part
        raise EOFError("cut") if data or is_answering else ConnectionResetError("closed")

    def is_closed(self) -> bool:
        """Return whether the server has already closed the connection."""
        if not select.select([self._socket], [], [], 0)[0]:
            return False
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


@dataclass
class Answer:
    """One response from a tenant's own endpoint."""

    at: float
    """Time at which the response was complete."""
    seconds: float
    words: tuple[str, ...]


class Failure(NamedTuple):
    """A request that failed, or that was repeated on a new connection."""

    began_at: float
    at: float
    text: str
    worker: int
    """Process ID of the worker that answered before on the connection, or 0 for a new
    connection."""


@dataclass
class Client:
    """A keep-alive client that sends requests to one tenant until it is stopped.

    As HTTP clients do, the client does not send a request on a connection that the server has
    closed. If the server closes the connection just as a request arrives, the client reconnects and
    repeats the request. The measured time includes both attempts, and `reconnects` lists the
    repeated requests.
    """

    port: int
    tenant: str
    pause_s: float
    worker: int = 0
    """Process ID of the worker that the client's first connection must reach, or 0 for any
    worker."""
    expected_status: int = 200
    is_keeping: bool = True
    """Whether the client reuses the connection."""
    answers: list[Answer] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    reconnects: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stopping = threading.Event()
        self._connection: Connection | None = None
        self._answered_by = 0
        """Process ID of the worker that answered on the connection, or 0."""
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        """Connect to the chosen worker, and start to send requests."""
        wait_until(self._has_reached_worker)
        self._thread.start()

    def _has_reached_worker(self) -> bool:
        self._drop()
        self._connection = Connection(self.port)
        words = self._connection.get(f"/{self.tenant}/")[1].split()
        return self.worker in (0, int(words[-1]))

    def stop(self) -> None:
        """Stop the client after its current request."""
        self._stopping.set()
        self._thread.join()
        if self._connection is not None:
            self._connection.close()

    def seconds(self, windows: Sequence[tuple[float, float]]) -> list[float]:
        """Return the duration of each request that began in one of the windows."""
        return [
            one.seconds
            for one in self.answers
            if any(start <= one.at - one.seconds < end for start, end in windows)
        ]

    def _run(self) -> None:
        while not self._stopping.wait(self.pause_s):
            start = time.perf_counter()
            try:
                status, body = self._request()
            except (OSError, EOFError) as error:
                self.failures.append(self._failure(start, f"{type(error).__name__} {error}"))
                self._drop()
                continue
            now = time.perf_counter()
            words = tuple(body.decode().split())
            if status != self.expected_status:
                self.failures.append(self._failure(start, f"{status} {body[:200]!r}"))
            elif status == 200 and (words[0] != self.tenant or words[1] != words[2]):
                self.failures.append(self._failure(start, f"mixed {words}"))
            else:
                self.answers.append(Answer(now, now - start, words))
                if status == 200 and self._connection is not None:
                    self._answered_by = int(words[-1])

    def _failure(self, began_at: float, text: str) -> Failure:
        return Failure(began_at, time.perf_counter(), text, self._answered_by)

    def _request(self) -> tuple[int, bytes]:
        while True:
            if self._connection is not None and self._connection.is_closed():
                self._drop()
            if self._connection is None:
                self._connection = Connection(self.port)
            began_at = time.perf_counter()
            connection = self._connection
            try:
                answer = connection.get(f"/{self.tenant}/")
            except OSError as error:
                if not connection.has_answered:
                    raise
                self.reconnects.append(self._failure(began_at, f"dropped: {error}"))
                self._drop()
                continue
            if connection.is_closing or not self.is_keeping:
                self._drop()
            return answer

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection, self._answered_by = None, 0


@contextlib.contextmanager
def load(clients: Sequence[Client]) -> Iterator[None]:
    """Let the clients send requests until the end of the block."""
    for client in clients:
        client.start()
    try:
        yield
    finally:
        for client in clients:
            client.stop()


# -- figures --------------------------------------------------------------------------------------


def percentile(times: Sequence[float], percent: int) -> float:
    """Return a percentile of at least two values."""
    return statistics.quantiles(times, n=100)[percent - 1]


def describe(times: Sequence[float]) -> str:
    """Return the count, p50, p99 and maximum in milliseconds, as text."""
    figures = (statistics.median(times), percentile(times, 99), max(times))
    text = "p50 {:.1f} ms  p99 {:.1f} ms  max {:.1f} ms".format(*(1000 * x for x in figures))
    return f"{len(times):>6} responses  {text}"


@dataclass(frozen=True)
class Usage:
    """The memory, threads and file descriptors of a process."""

    rss_kib: int
    threads: int
    fds: int
    cpu_s: float

    def __str__(self) -> str:
        return f"{self.rss_kib / 1024:.1f} MiB, {self.threads} threads, {self.fds} fds"


def usage(pid: int) -> Usage:
    """Return the memory, threads and file descriptors that a process uses now."""
    status = Path(f"/proc/{pid}/status").read_text()
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    rss, threads = (
        int(re.search(rf"^{key}:\s+(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]
        for key in ("VmRSS", "Threads")
    )
    fds = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Usage(rss, threads, fds, (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"))


class Bounds:
    """The bounds of a benchmark.

    A `Bounds` object prints each figure beside its bound, and remembers which figures missed it.
    """

    def __init__(self) -> None:
        self._missed: list[str] = []

    def check(self, what: str, figure: float, bound: float, unit: str = "") -> None:
        """Print a figure beside its bound, the highest allowed value."""
        is_met = figure <= bound
        if not is_met:
            self._missed.append(what)
        verdict = "met" if is_met else "MISSED"
        print(f"{verdict:<7}{what}: {figure:.4g}{unit} (bound {bound:g}{unit})", flush=True)

    def end(self) -> None:
        """Exit with 1 if any figure missed its bound."""
        if self._missed:
            raise SystemExit(f"missed: {'; '.join(self._missed)}")
