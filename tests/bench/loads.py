"""What the benchmarks share: tenants that say who they are, real servers, keep-alive clients."""

import contextlib
import os
import re
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

sys.path.append(str(Path(__file__).parents[1]))

from versioned_site import make_site, versioned_tenant_text

__all__ = ["make_site", "versioned_tenant_text"]

CONFIG_FILE = Path(__file__).parents[2] / "config/gunicorn.conf.py"

# `timeout` ends a benchmark so: its servers end with it.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"retry-after: *(\d+)", re.IGNORECASE)


# -- tenants and servers --------------------------------------------------------------------------


def landing_text(name: str) -> str:
    """Return the file of a tenant with the tutorial's landing page."""
    return f"SECRET_KEY = {name + '-' * 32!r}\nBLUEPRINTS = ['landing']\n"


@dataclass
class Server:
    """A gunicorn on the loopback, since `started_at`; stopped by whoever started it."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    started_at: float

    def workers(self) -> list[int]:
        """Return the pids of its workers, which are the master's children."""
        return children(self.process.pid)

    def status(self, path: str) -> int:
        """Return the status of one GET on a connection of its own; 0 when there is none."""
        with contextlib.suppress(OSError), contextlib.closing(Connection(self.port)) as connection:
            return connection.get(path)[0]
        return 0

    def wait_for(
        self, path: str, status: int, deadline_s: float = 60.0, every_s: float = 0.01
    ) -> None:
        """Ask until `path` answers with `status`."""
        try:
            wait_until(lambda: self.status(path) == status, deadline_s, every_s)
        except SystemExit as error:
            log = self.log.read_text()[-3000:]
            raise SystemExit(f"{path} did not answer {status}: {error}\n{log}") from None


def children(pid: int) -> list[int]:
    """Return the children of a process; none of one that has ended."""
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@contextlib.contextmanager
def serving(folder: Path, workers: int = 2, *options: str, **environ: str) -> Iterator[Server]:
    """Serve `folder` by gunicorn until the end of the block; it may not answer yet."""
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


def wait_until(is_so: Callable[[], bool], deadline_s: float = 60.0, every_s: float = 0.01) -> None:
    """Return as soon as it is so; end the benchmark when it is not in time."""
    deadline = time.perf_counter() + deadline_s
    while not is_so():
        if time.perf_counter() > deadline:
            raise SystemExit(f"waited {deadline_s:g} s in vain")
        time.sleep(every_s)


# -- clients --------------------------------------------------------------------------------------


class Connection:
    """One HTTP/1.1 connection, kept alive; cheap, so that the client costs less than the server."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.has_answered = False
        """Whether anything has come on it: else a broken connection is a failed request."""
        self.is_over = False
        """Whether the server has said that it closes it."""
        self.retry_after_s = 0
        """When the last answer asked to come again; 0: at once."""

    def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body of one GET.

        Raises:
            OSError: the connection ended first; `EOFError`, inside an answer.
        """
        self.ask(path)
        return self.answer()

    def ask(self, path: str) -> None:
        """Send one GET."""
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    def answer(self) -> tuple[int, bytes]:
        """Return status and body of what was asked; raises as `get` does."""
        data = b""
        while b"\r\n\r\n" not in data:
            data = self._more(data)
        head, _, body = data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        size = int(length[1]) if length else 0
        while len(body) < size:
            body = self._more(body, is_answering=True)
        self.has_answered = True
        self.is_over = b"connection: close" in head.lower()
        retry_after = _RETRY_AFTER.search(head)
        self.retry_after_s = int(retry_after[1]) if retry_after else 0
        return int(head[9:12]), body

    def _more(self, data: bytes, *, is_answering: bool = False) -> bytes:
        part = self._socket.recv(65536)
        if part:
            return data + part
        raise EOFError("cut") if data or is_answering else ConnectionResetError("closed")

    def close(self) -> None:
        """Close it."""
        self._socket.close()


@dataclass
class Answer:
    """One answer of a tenant's own endpoint."""

    at: float
    """When it was complete."""
    seconds: float
    said: tuple[str, ...]


@dataclass
class Client:
    """A keep-alive client of one tenant; asks again and again until told to stop.

    A connection that the server closed while it was idle is opened anew and the request sent
    again, as every HTTP client does; its seconds go on. That is counted as `reconnects`.
    """

    port: int
    tenant: str
    pause_s: float
    worker: int = 0
    """The pid of the worker that its first connection should reach; 0: any."""
    expected_status: int = 200
    is_keeping: bool = True
    """Whether its next request goes on the same connection."""
    answers: list[Answer] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)
    reconnects: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stopping = threading.Event()
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        """Connect to the wanted worker and begin."""
        wait_until(self._has_reached_worker)
        self._thread.start()

    def _has_reached_worker(self) -> bool:
        self._drop()
        self._connection = Connection(self.port)
        told = self._connection.get(f"/{self.tenant}/")[1].split()
        return self.worker in (0, int(told[-1]))

    def stop(self) -> None:
        """End after the request that is under way."""
        self._stopping.set()
        self._thread.join()
        if self._connection is not None:
            self._connection.close()

    def seconds(self, windows: Sequence[tuple[float, float]]) -> list[float]:
        """Return the seconds of each answer that began inside one of the windows."""
        return [
            one.seconds
            for one in self.answers
            if any(start <= one.at - one.seconds < end for start, end in windows)
        ]

    def _run(self) -> None:
        while not self._stopping.wait(self.pause_s):
            start = time.perf_counter()
            try:
                status, body = self._ask()
            except (OSError, EOFError) as error:
                self.failures.append((time.perf_counter(), f"{type(error).__name__} {error}"))
                self._drop()
                continue
            now = time.perf_counter()
            said = tuple(body.decode().split())
            if status != self.expected_status:
                self.failures.append((now, f"{status} {body[:200]!r}"))
            elif status == 200 and (said[0] != self.tenant or said[1] != said[2]):
                self.failures.append((now, f"mixed {said}"))
            else:
                self.answers.append(Answer(now, now - start, said))

    def _ask(self) -> tuple[int, bytes]:
        while True:
            if self._connection is None:
                self._connection = Connection(self.port)
            connection = self._connection
            try:
                answer = connection.get(f"/{self.tenant}/")
            except OSError as error:
                if not connection.has_answered:
                    raise
                self.reconnects.append((time.perf_counter(), f"dropped: {error}"))
                self._drop()
                continue
            if connection.is_over or not self.is_keeping:
                self._drop()
            return answer

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


@contextlib.contextmanager
def load(clients: Sequence[Client]) -> Iterator[None]:
    """Keep the clients asking until the end of the block."""
    for client in clients:
        client.start()
    try:
        yield
    finally:
        for client in clients:
            client.stop()


# -- figures --------------------------------------------------------------------------------------


def percentile(times: Sequence[float], percent: int) -> float:
    """Return a percentile of at least two times."""
    return statistics.quantiles(times, n=100)[percent - 1]


def describe(times: Sequence[float]) -> str:
    """Return count, p50, p99 and maximum in milliseconds."""
    figures = (statistics.median(times), percentile(times, 99), max(times))
    text = "p50 {:.1f} ms  p99 {:.1f} ms  max {:.1f} ms".format(*(1000 * x for x in figures))
    return f"{len(times):>6} answers  {text}"


@dataclass(frozen=True)
class Usage:
    """What a process holds."""

    rss_kib: int
    threads: int
    fds: int
    cpu_s: float

    def __str__(self) -> str:
        return f"{self.rss_kib / 1024:.1f} MiB, {self.threads} threads, {self.fds} fds"


def usage(pid: int) -> Usage:
    """Return what a process of this user holds now."""
    status = Path(f"/proc/{pid}/status").read_text()
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    rss, threads = (
        int(re.search(rf"^{key}:\s+(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]
        for key in ("VmRSS", "Threads")
    )
    fds = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Usage(rss, threads, fds, (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"))


class Bounds:
    """The bounds of a benchmark: prints each figure beside its own, and remembers misses."""

    def __init__(self) -> None:
        self._missed: list[str] = []

    def check(self, what: str, figure: float, bound: float, unit: str = "") -> None:
        """Print a figure that may be at most `bound`."""
        is_held = figure <= bound
        if not is_held:
            self._missed.append(what)
        verdict = "held" if is_held else "MISSED"
        print(f"{verdict:<7}{what}: {figure:.4g}{unit} (bound {bound:g}{unit})", flush=True)

    def end(self) -> None:
        """Exit 1 if a bound was missed."""
        if self._missed:
            raise SystemExit(f"missed: {'; '.join(self._missed)}")
