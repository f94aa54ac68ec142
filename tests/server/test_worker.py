"""The worker against slow, hostile and unlucky clients: a real gunicorn, one worker, four threads.

The app is a short WSGI function, so the results hold for whatever is served. Time limits are tested
step by step in `test_protocol`.
"""

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from servers import CONFIG_FILE, DEADLINE_S, Server, program, running, wait_until
from tenantry.server.worker import TenantWorker

APP = '''
import base64
import builtins
import hashlib
import os
import threading

THREADS = threading.Semaphore(0)

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/raise/"):
        raise getattr(builtins, path.removeprefix("/raise/"))(3)
    if path.startswith("/stream/"):
        return stream(start_response, getattr(builtins, path.removeprefix("/stream/")))
    if path == "/socket":
        return web_socket(environ)
    if path == "/wait":
        THREADS.acquire(timeout=30)
    if path == "/release":
        THREADS.release(100)
    bodies = {
        "/pid": str(os.getpid()).encode(), "/echo": environ["wsgi.input"].read,
        "/large": b"x" * 1_000_000, "/address": environ["REMOTE_ADDR"].encode(),
    }
    body = bodies.get(path, path.encode())
    body = body() if callable(body) else body
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

def stream(start_response, error):
    start_response("200 OK", [("Content-Length", "100")])
    yield b"the beginning"
    raise error(3)

def web_socket(environ):
    """Echo frames of a WebSocket in capital letters, as flask-sock does under gunicorn."""
    sock = environ["gunicorn.socket"]
    key = environ["HTTP_SEC_WEBSOCKET_KEY"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    sock.sendall(
        b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
        b"Sec-WebSocket-Accept: " + accept.encode() + b"\\r\\n\\r\\n"
    )
    while True:
        head = sock.recv(6)
        size = head[1] & 127 if len(head) > 1 else 0
        if not size:
            break
        data = sock.recv(size)
        text = bytes(byte ^ head[2 + place % 4] for place, byte in enumerate(data)).upper()
        sock.sendall(bytes([0x81, len(text)]) + text)
    raise StopIteration()
'''
COMMAND = [
    *("gunicorn", "-c", CONFIG_FILE, "--bind", "{bind}", "--workers", "1", "--threads", "4"),
    *("--worker-connections", "1000", "app:application"),
]
GET = b"GET /quiet HTTP/1.1\r\nHost: a\r\n"
HEAD = GET + b"\r\n"


def _command(*options: str) -> list[str]:
    return [*COMMAND[:-1], *options, COMMAND[-1]]


@pytest.fixture(name="server", scope="module")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a server with one worker of four threads."""
    folder = tmp_path_factory.mktemp("worker")
    (folder / "app.py").write_text(APP)
    with running(COMMAND, folder) as server:
        yield server


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """Return a folder with the app, for a server of the test's own."""
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@contextlib.contextmanager
def connected(server: Server, count: int, data: bytes) -> Iterator[list[socket.socket]]:
    """Hold `count` connections that have each sent `data`."""
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", server.port)
        clients = [
            stack.enter_context(socket.create_connection(address, timeout=DEADLINE_S))
            for _ in range(count)
        ]
        for client in clients:
            client.sendall(data)
        yield clients


def _pid(server: Server) -> bytes:
    return server.get("/pid")[1]


def _quiet_requests(server: Server) -> list[bytes]:
    """Return the responses to 20 requests of a quiet client, each on a new connection."""
    return [server.get("/quiet")[1] for _ in range(20)]


ALL_20 = [b"/quiet"] * 20


# -- slow clients ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """Bytes that many slow clients send before falling silent."""

    count: int
    data: bytes


ATTACKS = {
    "incomplete headers": Attack(64, GET),
    "silent connections": Attack(200, b""),
    "kept open after close": Attack(40, GET + b"Connection: close\r\n\r\n"),
    "malformed and kept open": Attack(40, b"nonsense\r\n\r\n"),
    "too large and kept open": Attack(40, GET + b"X: " + b"a" * 100_000),
    "stalled bodies": Attack(32, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc"),
    "stalled chunks": Attack(
        32, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"
    ),
    "unread responses": Attack(32, b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n"),
    "unread pipelines": Attack(16, HEAD * 500),
    "heads that once ended a worker": Attack(
        16, b"GET /x/\r\n\r\n" + b"GET /x/ HTTP/1.1\nHost: x\n\n"
    ),
    "empty lines": Attack(16, b"\r\n" * (64 << 10)),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_slow_clients_do_not_delay_a_quiet_client(server: Server, attack: Attack) -> None:
    """A quiet client is served, and the worker survives, whatever many clients leave open."""
    pid = _pid(server)

    with connected(server, attack.count, attack.data):
        answers = _quiet_requests(server)

    assert (answers, _pid(server)) == (ALL_20, pid)


@pytest.mark.parametrize(
    "start",
    [
        GET + b"X: ",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;",
    ],
    ids=["heads", "bodies", "chunks"],
)
def test_clients_that_send_byte_by_byte_do_not_delay_a_quiet_client(
    server: Server, start: bytes
) -> None:
    """64 clients send one byte before every request of the quiet client."""
    answers = []

    with connected(server, 64, start) as slow_clients:
        for _ in range(20):
            for client in slow_clients:
                client.sendall(b"a")
            answers.append(server.get("/quiet")[1])

    assert answers == ALL_20


def test_a_slow_reader_gets_its_whole_response(server: Server) -> None:
    """A response of 1 MB to clients that read later is complete, and occupies no thread."""
    request = b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with connected(server, 8, request) as clients:
        during = _quiet_requests(server)
        sizes = [len(client.makefile("rb").read().partition(b"\r\n\r\n")[2]) for client in clients]

    assert (ALL_20, [1_000_000] * 8) == (during, sizes)


# -- requests in pieces ----------------------------------------------------------------------------


def _receive(client: socket.socket, end: bytes) -> bytes:
    """Return the received bytes up to `end`, or up to the end of the connection."""
    received = b""
    while not received.endswith(end) and (part := client.recv(65536)):
        received += part
    return received


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    """Requests in one packet get their responses in order."""
    requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(20))

    with connected(server, 1, requests) as (client,):
        received = _receive(client, b"\r\n\r\n/19")

    bodies = re.findall(rb"\r\n\r\n/(\d+)", received)
    assert bodies == [b"%d" % number for number in range(20)]


def test_a_request_may_arrive_byte_by_byte(server: Server) -> None:
    """A client that sends one byte at a time is served."""
    request = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"

    with connected(server, 1, b"") as (client,):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request:
            client.sendall(bytes([byte]))
        received = _receive(client, b"hello")

    assert (received[:15], received[-5:]) == (b"HTTP/1.1 200 OK", b"hello")


@pytest.mark.parametrize("path", ["/echo", "/ignored"])
def test_a_connection_is_reused(server: Server, path: str) -> None:
    """A kept-alive connection serves the next request, whether the app read the body or not."""
    with contextlib.closing(HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)) as client:
        client.request("POST", path, body=b"hello")
        client.getresponse().read()
        first = client.sock

        client.request("GET", "/again")
        body = client.getresponse().read()

        assert (body, client.sock is first) == (b"/again", True)


def test_a_client_may_end_its_side_after_the_request(server: Server) -> None:
    """A client that closes the sending side of a connection still gets the response."""
    with connected(server, 1, GET + b"\r\n") as (client,):
        client.shutdown(socket.SHUT_WR)
        received = _receive(client, b"/quiet")

    assert received.endswith(b"\r\n\r\n/quiet")


@pytest.mark.parametrize("value", [b"keep-alive, close", b"TE, close", b"x\r\nConnection: close"])
def test_close_counts_anywhere_in_a_list(server: Server, value: bytes) -> None:
    """The connection ends if one of the options is `close` (RFC 9110 §7.6.1)."""
    with connected(server, 1, GET + b"Connection: " + value + b"\r\n\r\n") as (client,):
        received = _receive(client, b"no such end")

    assert b"\r\nConnection: close\r\n" in received


def test_a_malformed_chunked_body_gets_one_answer(server: Server) -> None:
    """A malformed body is answered once, and then the connection ends."""
    head = b"POST /no HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

    with connected(server, 1, head + b"nonsense\r\n" + HEAD) as (client,):
        received = _receive(client, b"no such end")

    assert [b"400"] == re.findall(rb"HTTP/1.1 (\d+)", received)


# -- hijacked sockets ------------------------------------------------------------------------------

UPGRADE = (
    b"GET /socket HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def _frame(text: bytes) -> bytes:
    """Return a masked text frame of a client."""
    mask = b"\1\2\3\4"
    return (
        bytes([0x81, 0x80 | len(text)])
        + mask
        + bytes(byte ^ mask[place % 4] for place, byte in enumerate(text))
    )


def test_an_app_can_take_the_connection_over(server: Server) -> None:
    """A WebSocket through the raw socket works, and its end leaves no line in the log."""
    before = server.log.read_text()
    with connected(server, 1, UPGRADE) as (client,):
        head = _receive(client, b"\r\n\r\n")
        answers = []
        for text in (b"one", b"two"):
            client.sendall(_frame(text))
            answers.append(_receive(client, text.upper()))
        client.sendall(bytes([0x88, 0x80, 0, 0, 0, 0]))
        rest = _receive(client, b"no such end")

    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    assert ([b"\x81\x03ONE", b"\x81\x03TWO"], b"") == (answers, rest)
    assert b"/quiet" == server.get("/quiet")[1]
    assert before == server.log.read_text()


# -- faults and shutdown ---------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
@pytest.mark.parametrize("when", ["raise", "stream"])
def test_no_exception_of_the_app_stops_the_worker(server: Server, when: str, error: str) -> None:
    """`SystemExit` and other `BaseException`s end their own request only."""
    pid = _pid(server)

    with connected(
        server,
        1,
        b"GET /%b/%b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        % (when.encode(), error.encode()),
    ) as (client,):
        _receive(client, b"no such end")

    assert _pid(server) == pid


PLANTED_WORKER = """
from tenantry.server.steps.turn import Turns
from tenantry.server.worker import TenantWorker

take = Turns.take

def fail(self, exchange, on_turn):
    if exchange.environ["PATH_INFO"] == "/planted":
        raise ZeroDivisionError("planted")
    take(self, exchange, on_turn)

class PlantedWorker(TenantWorker):
    def run(self):
        Turns.take = fail
        super().run()
"""


def test_a_fault_of_the_worker_ends_one_connection(folder: Path) -> None:
    """An exception in a step of the protocol ends one connection, and is logged once."""
    (folder / "planted.py").write_text(PLANTED_WORKER)
    command = _command("--worker-class", "planted.PlantedWorker")
    with running(command, folder, PYTHONPATH=_python_path(folder)) as server:
        pid = _pid(server)
        with connected(server, 1, HEAD.replace(b"quiet", b"planted")) as (client,):
            received = client.recv(100)
        after = _quiet_requests(server), _pid(server)
        log = server.log.read_text()

    assert (b"", (ALL_20, pid)) == (received, after)
    assert (1, 1) == (
        log.count("worker.connection_failed"),
        log.count("ZeroDivisionError: planted"),
    )


def _python_path(folder: Path) -> str:
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_hooks_and_gunicorns_access_log_work(folder: Path) -> None:
    """`pre_request`, `post_request` and `accesslog` see each request with its response."""
    (folder / "conf.py").write_text(
        f"exec(compile(open({CONFIG_FILE!r}).read(), 'base', 'exec'))\n"
        "def pre_request(worker, request):\n"
        "    worker.log.warning('pre %s %s', request.method, request.path)\n"
        "def post_request(worker, request, environ, response):\n"
        "    worker.log.warning('post %s %s', environ['PATH_INFO'], response.status)\n"
    )
    command = ["gunicorn", "-c", "conf.py", *COMMAND[3:-1]]
    options = ["--access-logfile", "access", "--access-logformat", "%(r)s %(s)s %(b)s %(h)s"]
    with running([*command, *options, COMMAND[-1]], folder) as server:
        server.get("/quiet?x=1")
        wait_until(lambda: "post /quiet 200 OK" in server.log.read_text())
        log = server.log.read_text()
        lines = (folder / "access").read_text().splitlines()

    assert "GET /quiet?x=1 HTTP/1.1 200 6 127.0.0.1" == lines[-1]
    assert ("pre GET /quiet" in log, "post /quiet 200 OK" in log) == (True, True)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (["--certfile", "cert.pem", "--keyfile", "key.pem"], "TLS is set"),
        (["--worker-class", "planted.MissingWorker"], "Worker.planted"),
    ],
)
def test_gunicorns_own_worker_serves_where_this_one_cannot(
    folder: Path, option: list[str], reason: str
) -> None:
    """With TLS, or if gunicorn lacks a needed name, gunicorn's worker serves and warns once."""
    (folder / "planted.py").write_text(
        "from gunicorn.workers.base import Worker\n"
        "from tenantry.server import gunicorn_api\n"
        "from tenantry.server.worker import TenantWorker as MissingWorker\n"
        "gunicorn_api.CLASSES = {Worker: ('planted',)}\n"
    )
    is_tls = "--certfile" in option
    if is_tls:
        subprocess.run(
            [*("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
             *("-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem")],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
    path = _python_path(folder)
    is_ready = _tls_answers if is_tls else None
    with running(_command(*option), folder, is_ready=is_ready, PYTHONPATH=path) as server:
        log = server.log.read_text()

    assert 1 == log.count("threaded worker serves instead")
    assert reason in log


def _tls_answers(server: Server) -> bool:
    import ssl  # noqa: PLC0415 - only this test needs TLS

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as raw,
        context.wrap_socket(raw) as client,
    ):
        client.sendall(GET + b"Connection: close\r\n\r\n")
        return _receive(client, b"/quiet").startswith(b"HTTP/1.1 200 OK")
    return False


# -- the budget ------------------------------------------------------------------------------------


@pytest.mark.live
def test_bodies_over_the_budget_get_503_and_others_are_served(folder: Path) -> None:
    """Bodies that fill the budget wait and get 503; requests without a body are served."""
    (folder / "planted.py").write_text(
        "from tenantry.server import worker\n"
        "from tenantry.server.spool import SpoolBudget\n"
        "from tenantry.server.steps import body\n"
        "from tenantry.server.worker import TenantWorker\n"
        "class SmallWorker(TenantWorker):\n"
        "    def run(self):\n"
        "        body.ROOM_TIMEOUT_S = 1.0\n"
        "        worker.SpoolBudget = lambda _: SpoolBudget(memory_bytes=30_000, disk_bytes=0)\n"
        "        super().run()\n"
    )
    head = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n"
    command = _command("--worker-class", "planted.SmallWorker")
    with (
        running(command, folder, PYTHONPATH=_python_path(folder)) as server,
        connected(server, 1, head + b"x" * 19_999) as (first,),
    ):
        with connected(server, 1, head + b"x" * 20_000) as (second,):
            during = _quiet_requests(server)
            refused = _receive(second, b"no such end")
        first.sendall(b"x")
        received = _receive(first, b"x" * 20_000)

    assert ALL_20 == during
    assert refused.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nConnection: close\r\n" in refused
    assert received.startswith((b"HTTP/1.1 200 OK", b"HTTP/1.1 503"))


# -- the end of a worker ---------------------------------------------------------------------------


@pytest.mark.live
def test_a_worker_out_of_file_descriptors_keeps_serving(folder: Path) -> None:
    """With 64 descriptors and 200 silent clients, silent clients are closed and others served."""
    words = [program(COMMAND[0]), *COMMAND[1:]]
    command = ["sh", "-c", 'ulimit -n 64; exec "$0" "$@"', *words]

    with running(command, folder) as server:
        pid = _pid(server)
        with connected(server, 200, b""):
            during = server.get("/quiet")[1]
        afterwards = _quiet_requests(server)

        assert (during, afterwards, _pid(server)) == (b"/quiet", ALL_20, pid)
        assert "Too many open files; raise `ulimit -n`" in server.log.read_text()


@pytest.mark.live
def test_a_stop_does_not_wait_for_idle_connections(folder: Path) -> None:
    """After SIGTERM the server ends, although clients keep connections open."""
    with (
        running(COMMAND, folder) as server,
        connected(server, 1, b""),
        connected(server, 1, GET),
        connected(server, 1, HEAD) as (idle,),
    ):
        _receive(idle, b"/quiet")

        server.process.send_signal(signal.SIGTERM)

        assert server.process.wait(DEADLINE_S) == 0


def _hup(server: Server, _: set[int]) -> None:
    os.kill(server.process.pid, signal.SIGHUP)


def _term_workers(_: Server, pids: set[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGTERM)


def _nothing(*_: object) -> None:
    pass


class Clients:
    """Eight clients that keep their connections, and ask for the process ID until the end."""

    def __init__(self, server: Server) -> None:
        self.failures: list[BaseException] = []
        self.pids: list[int] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(server.port,)) for _ in range(8)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, port: int) -> None:
        client = HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
        with contextlib.closing(client):
            while not self._stop.is_set():
                try:
                    client.request("GET", "/pid")
                    self.pids.append(int(client.getresponse().read()))
                except (OSError, ValueError, HTTPException) as error:
                    self.failures.append(error)
                    client.close()


def _is_running(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.mark.live
@pytest.mark.parametrize(
    ("end", "options"),
    [(_hup, []), (_term_workers, []), (_nothing, ["--max-requests", "1000"])],
    ids=["HUP", "TERM", "max_requests"],
)
def test_a_replaced_worker_loses_no_request(
    folder: Path, end: Callable[[Server, set[int]], None], options: list[str]
) -> None:
    """While workers are replaced, each request of clients that keep connections is answered."""
    command = _command("--workers", "2", "--max-requests-jitter", "0", *options)
    with running(command, folder) as server, Clients(server) as clients:
        wait_until(lambda: len(clients.pids) > 100)
        old = set(clients.pids)
        end(server, old)
        wait_until(lambda: not any(_is_running(pid) for pid in old))
        seen = len(clients.pids)
        wait_until(lambda: len(clients.pids) > seen + 100)

    assert [] == clients.failures
    assert not old & set(clients.pids[seen + 50 :])


@pytest.mark.live
def test_a_request_in_progress_ends_before_its_worker(folder: Path) -> None:
    """SIGTERM lets a running request end, and then each response says that its connection ends."""
    with (
        running(COMMAND, folder) as server,
        connected(server, 1, HEAD.replace(b"quiet", b"wait")) as (slow,),
        connected(server, 2, HEAD) as (kept, asking),
    ):
        for client in (kept, asking):
            _receive(client, b"/quiet")
        os.kill(int(_pid(server)), signal.SIGTERM)
        last = b""
        while b"\r\nConnection: close\r\n" not in last:
            asking.sendall(HEAD)
            last = _receive(asking, b"/quiet")
        kept.sendall(HEAD.replace(b"quiet", b"release"))
        answers = _receive(kept, b"no such end"), _receive(slow, b"no such end")

    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"\r\nConnection: close\r\n" in answer


# -- the worker in the process of the test ---------------------------------------------------------


class _SlowApp:
    """Stand-in for gunicorn's application, which loads once the heartbeat has been sent."""

    def __init__(self) -> None:
        self.heartbeat_sent = threading.Event()

    def wsgi(self) -> bool:
        return self.heartbeat_sent.wait(DEADLINE_S)


def test_the_heartbeat_continues_while_the_host_loads() -> None:
    """A load that takes longer than gunicorn's timeout does not end the worker."""
    worker: Any = object.__new__(TenantWorker)
    worker.app = _SlowApp()
    worker.notify = worker.app.heartbeat_sent.set
    worker.crash_report = SimpleNamespace(enable=lambda: None)

    worker.load_wsgi()

    assert worker.wsgi is True


def test_a_worker_whose_threads_are_stuck_gives_up(caplog: pytest.LogCaptureFixture) -> None:
    """If every thread has a request that hangs, the worker logs the fact and ends."""
    worker: Any = object.__new__(TenantWorker)
    worker.cfg, worker.alive, worker._is_given_up = SimpleNamespace(threads=4), True, False
    worker._next_stuck_look, worker.notify = 0.0, lambda: None
    worker._has_told_ready = True
    held = itertools.count(3)
    worker.wsgi = SimpleNamespace(count_held_threads=lambda: next(held))
    states = []
    for _ in range(2):
        worker.on_check()
        states.append((worker.alive, worker._is_given_up))
        worker._next_stuck_look = 0.0

    assert [(True, False), (False, True)] == states
    assert ["worker.given_up"] == [record.message for record in caplog.records]
