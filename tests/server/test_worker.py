"""The worker against slow, hostile and unlucky clients: a real gunicorn, one worker, four threads.

The app is a short WSGI function, so the results hold for whatever is served. Steps that depend on
a clock are driven one by one, on a worker that is not started.
"""

import contextlib
import errno
import json
import logging
import os
import re
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import pytest
from gunicorn.config import Config
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, TConn

from servers import CONFIG_FILE, DEADLINE_S, Server, program, running
from tenantry.http.problem import ProblemResponse
from tenantry.middleware.fair_share import FairShare
from tenantry.server import patient_worker
from tenantry.server.admission import Admission
from tenantry.server.patient_worker import Connection
from tenantry.server.wait_queue import WAIT_S, WaitQueue
from tenantry.server.worker import TenantWorker

APP = """
import builtins
import os

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/raise/"):
        raise getattr(builtins, path.removeprefix("/raise/"))(3)
    if path.startswith("/stream/"):
        return stream(start_response, getattr(builtins, path.removeprefix("/stream/")))
    bodies = {"/pid": str(os.getpid()).encode(), "/echo": environ["wsgi.input"].read}
    body = bodies.get(path, path.encode())
    body = body() if callable(body) else body
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

def stream(start_response, error):
    start_response("200 OK", [("Content-Length", "100")])
    yield b"the beginning"
    raise error(3)
"""
COMMAND = [
    *("gunicorn", "-c", CONFIG_FILE, "--bind", "{bind}", "--workers", "1", "--threads", "4"),
    *("--worker-connections", "1000", "app:application"),
]
GET = b"GET /quiet HTTP/1.1\r\nHost: a\r\n"
HEAD = GET + b"\r\n"
TOO_MANY = (
    ProblemResponse(HTTPStatus.TOO_MANY_REQUESTS, "Too many.", retry_after_s=7),
    [("RateLimit-Limit", "1")],
)


@pytest.fixture(name="server", scope="module")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a server with one worker of four threads."""
    folder = tmp_path_factory.mktemp("worker")
    (folder / "app.py").write_text(APP)
    with running(COMMAND, folder) as server:
        yield server


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
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_slow_clients_do_not_delay_a_quiet_client(server: Server, attack: Attack) -> None:
    """A quiet client is served, and the worker survives, whatever many clients leave open."""
    pid = _pid(server)

    with connected(server, attack.count, attack.data):
        answers = _quiet_requests(server)

    assert (answers, _pid(server)) == (ALL_20, pid)


def test_clients_that_send_byte_by_byte_do_not_delay_a_quiet_client(server: Server) -> None:
    """64 clients send one byte of their headers before every request of the quiet client."""
    answers = []

    with connected(server, 64, GET + b"X: ") as slow_clients:
        for _ in range(20):
            for client in slow_clients:
                client.sendall(b"a")
            answers.append(server.get("/quiet")[1])

    assert answers == ALL_20


def test_clients_that_do_not_read_do_not_delay_a_quiet_client(server: Server) -> None:
    """Refusals that clients never read delay no other client."""
    with connected(server, 40, b"nonsense\r\n\r\n" * 1000):
        answers = _quiet_requests(server)

    assert answers == ALL_20


# -- requests in pieces ----------------------------------------------------------------------------


def _receive(client: socket.socket, end: bytes) -> bytes:
    """Return what comes up to `end`, or to the end of the connection."""
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


# -- faults and shutdown ---------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
@pytest.mark.parametrize("when", ["raise", "stream"])
def test_no_exception_of_the_app_stops_the_worker(server: Server, when: str, error: str) -> None:
    """`SystemExit` and other `BaseException`s end their own request only."""
    pid = _pid(server)

    with connected(
        server, 1, b"GET /%b/%b HTTP/1.1\r\nHost: a\r\n\r\n" % (when.encode(), error.encode())
    ) as (client,):
        _receive(client, b"no such end")

    assert _pid(server) == pid


@pytest.mark.live
def test_a_worker_out_of_file_descriptors_keeps_serving(tmp_path: Path) -> None:
    """With 64 descriptors and 200 silent clients, the silent ones are closed and others served."""
    (tmp_path / "app.py").write_text(APP)
    words = [program(COMMAND[0]), *COMMAND[1:]]
    command = ["sh", "-c", 'ulimit -n 64; exec "$0" "$@"', *words]

    with running(command, tmp_path) as server:
        pid = _pid(server)
        with connected(server, 200, b""):
            during = server.get("/quiet")[1]
        afterwards = _quiet_requests(server)

        assert (during, afterwards, _pid(server)) == (b"/quiet", ALL_20, pid)
        assert "Too many open files; raise `ulimit -n`" in server.log.read_text()


@pytest.mark.live
def test_a_stop_does_not_wait_for_idle_connections(tmp_path: Path) -> None:
    """After SIGTERM the server ends, although clients keep connections open."""
    (tmp_path / "app.py").write_text(APP)

    with (
        running(COMMAND, tmp_path) as server,
        connected(server, 1, b""),
        connected(server, 1, GET),
        connected(server, 1, HEAD) as (idle,),
    ):
        _receive(idle, b"/quiet")

        server.process.send_signal(signal.SIGTERM)

        assert server.process.wait(DEADLINE_S) == 0


# -- step by step, on a worker that is not started -------------------------------------------------


class _Worker(TenantWorker):
    """A worker that puts requests into a list instead of a thread."""

    def __init__(self, cfg: Config, listener: socket.socket) -> None:
        log = logging.getLogger("gunicorn.error")
        super().__init__(1, os.getpid(), [listener], SimpleNamespace(), 30, cfg, log)
        self.handed_over: list[TConn] = []
        self.poller = selectors.DefaultSelector()

    def enqueue_req(self, conn: TConn) -> None:
        self.handed_over.append(conn)


@pytest.fixture(name="listener")
def _listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture(name="worker")
def _worker(listener: socket.socket) -> Iterator[_Worker]:
    """Return a worker that is not started, so that a test calls each step."""
    worker = _Worker(Config(), listener)
    with contextlib.ExitStack() as stack:
        stack.callback(worker.tmp.close)
        stack.callback(worker.crash_report.close)
        stack.enter_context(worker.poller)
        yield worker
        for key in list(worker.poller.get_map().values()):
            if key.fileobj is not listener:
                key.fileobj.close()  # type: ignore[union-attr]
        for conn in worker.handed_over:
            conn.close()


class _SlowApp:
    """Stand-in for gunicorn's application, which loads once the heartbeat has been sent."""

    def __init__(self) -> None:
        self.heartbeat_sent = threading.Event()

    def wsgi(self) -> bool:
        return self.heartbeat_sent.wait(DEADLINE_S)


def test_the_heartbeat_continues_while_the_host_loads(
    worker: _Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that takes longer than gunicorn's timeout does not end the worker."""
    worker.app = _SlowApp()
    monkeypatch.setattr(worker, "notify", worker.app.heartbeat_sent.set)
    monkeypatch.setattr(
        worker.crash_report, "enable", lambda: None
    )  # skip the crash report, which would affect the test process

    worker.load_wsgi()

    assert worker.wsgi is True


@pytest.fixture(name="client")
def _client(worker: _Worker, listener: socket.socket) -> Iterator[socket.socket]:
    """Return a client with a connection that the worker has accepted."""
    with socket.create_connection(listener.getsockname(), timeout=DEADLINE_S) as client:
        worker.accept(listener)
        yield client


def _pending(worker: _Worker) -> Connection:
    conn = worker.pending_conns[0]
    assert isinstance(conn, Connection)
    return conn


def _dispatch_events(worker: _Worker) -> None:
    worker.wait_for_and_dispatch_events(DEADLINE_S)


@pytest.mark.parametrize("cut", [1, len(GET) - 3, len(GET) - 1, len(HEAD) - 1])
def test_a_request_split_into_two_packets_is_handed_over_whole(
    worker: _Worker, client: socket.socket, cut: int
) -> None:
    """A request takes no thread until the headers are complete, wherever the headers are split."""
    client.sendall(HEAD[:cut])
    _dispatch_events(worker)
    before = len(worker.handed_over)
    client.sendall(HEAD[cut:])
    _dispatch_events(worker)

    (conn,) = worker.handed_over
    assert (before, next(conn.parser).path) == (0, "/quiet")


def test_incomplete_headers_get_408(worker: _Worker, client: socket.socket) -> None:
    """At the time-out, a client gets 408, and the connection lingers without a thread."""
    client.sendall(GET)
    _dispatch_events(worker)
    _pending(worker).timeout = 0.0

    worker.murder_pending()

    assert client.recv(65536).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert (len(worker.pending_conns), len(worker.lingering_conns)) == (0, 1)


def test_a_silent_connection_is_closed(worker: _Worker, client: socket.socket) -> None:
    """At the time-out, a connection without a byte is closed without a response."""
    _pending(worker).timeout = 0.0

    worker.murder_pending()

    assert (client.recv(65536), worker.nr_conns) == (b"", 0)


def test_a_lingering_connection_is_closed_at_its_timeout(
    worker: _Worker, client: socket.socket
) -> None:
    """A connection that the client keeps open after the last response is closed."""
    client.sendall(HEAD)
    _dispatch_events(worker)
    last_response: Future[bool] = Future()
    last_response.set_result(False)
    worker.finish_request(worker.handed_over.pop(), last_response)
    (conn,) = worker.lingering_conns
    conn.timeout = 0.0

    worker.murder_pending()

    assert (len(worker.lingering_conns), worker.nr_conns) == (0, 0)


def test_keeping_a_connection_does_not_wake_the_main_loop(
    worker: _Worker, client: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that has served a request returns the connection to the poller."""
    client.sendall(HEAD)
    _dispatch_events(worker)
    (conn,) = worker.handed_over
    monkeypatch.setattr(worker, "handle", lambda conn: bool(next(conn.parser)))
    worker._serve(conn)
    client.sendall(HEAD)
    _dispatch_events(worker)

    assert worker.method_queue.fileno() is None, "calling the main loop would have failed"
    assert [conn, conn] == worker.handed_over


def test_a_stopping_worker_keeps_a_connection_only_briefly(
    worker: _Worker, client: socket.socket
) -> None:
    """A connection returned after the stop is closed after `STOP_KEEPALIVE_LINGER`."""
    worker.cfg.set("keepalive", 65)
    client.sendall(HEAD)
    _dispatch_events(worker)
    (conn,) = worker.handed_over
    worker.alive = False
    worker.keep(conn)

    assert conn.timeout <= time.monotonic() + STOP_KEEPALIVE_LINGER


def test_a_full_worker_closes_silent_connections(worker: _Worker, client: socket.socket) -> None:
    """At the connection limit, a connection that was idle for `CLOSE_IDLE_AFTER_S` is closed."""
    _pending(worker).timeout -= patient_worker.CLOSE_IDLE_AFTER_S
    worker.worker_connections = 1

    worker.murder_pending()

    assert (client.recv(65536), worker.nr_conns) == (b"", 0)


@pytest.mark.parametrize("waited_s", [0.0, patient_worker.CLOSE_IDLE_AFTER_S])
def test_a_worker_below_its_limit_keeps_silent_connections(
    worker: _Worker, client: socket.socket, waited_s: float
) -> None:
    """Below the connection limit, a slow client has the full time to send headers."""
    _pending(worker).timeout -= waited_s

    worker.murder_pending()

    assert (client.fileno() >= 0, len(worker.pending_conns)) == (True, 1)


@pytest.mark.usefixtures("client")
def test_a_full_worker_keeps_new_connections(worker: _Worker) -> None:
    """At the connection limit, a client still has a second to send its headers."""
    worker.worker_connections = 1

    worker.murder_pending()

    assert len(worker.pending_conns) == 1


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_the_worker_stops_accepting_without_resources(
    worker: _Worker, listener: socket.socket, code: int
) -> None:
    """The main loop does not spin on a listener from which it cannot accept."""

    class Exhausted:
        def accept(self) -> None:
            raise OSError(code, os.strerror(code))

    worker.set_accept_enabled(True)

    worker.accept(Exhausted())  # type: ignore[arg-type]
    worker.set_accept_enabled(True)  # handle events as in the main loop's next iteration

    assert listener not in [key.fileobj for key in worker.poller.get_map().values()]


def test_a_kept_tls_connection_is_read_by_a_thread(
    worker: _Worker, listener: socket.socket
) -> None:
    """The main loop leaves encrypted bytes to gunicorn, because they are not HTTP headers."""
    with socket.create_connection(listener.getsockname(), timeout=DEADLINE_S) as client:
        conn = TConn(worker.cfg, *listener.accept(), listener.getsockname())
        worker.keepalived_conns.append(conn)
        wanted = partial(worker.on_client_socket_readable, conn)
        worker.poller.register(conn.sock, selectors.EVENT_READ, wanted)
        client.sendall(b"x")
        _dispatch_events(worker)

    assert [conn] == worker.handed_over


def test_a_tls_connection_gets_a_thread_at_once(
    worker: _Worker, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TLS handshake blocks, so gunicorn's own connection class handles it in a thread."""
    monkeypatch.setattr(Config, "is_ssl", True)

    with socket.create_connection(listener.getsockname()):
        worker.accept(listener)

    assert [type(conn) for conn in worker.handed_over] == [TConn]


BODY_5 = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
BODY_CHUNKED = (
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
)


@pytest.mark.parametrize(
    ("request_bytes", "is_read", "is_kept"),
    [
        (HEAD, False, True),
        (BODY_5, True, True),
        (BODY_CHUNKED, True, True),
        (BODY_5, False, False),
        (BODY_CHUNKED, False, False),
    ],
)
def test_a_connection_without_unread_bytes_is_kept(
    worker: _Worker,
    client: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    *,
    request_bytes: bytes,
    is_read: bool,
    is_kept: bool,
) -> None:
    """The response has announced keep-alive, so a late thread is no reason to close."""
    # set the state as if the thread ran too late
    monkeypatch.setattr(patient_worker, "DRAIN_S", -1.0)
    client.sendall(request_bytes)
    _dispatch_events(worker)
    conn = worker.handed_over[-1]
    conn.sock.setblocking(True)
    request = next(conn.parser)
    if is_read:
        request.body.read()

    assert is_kept == worker._keepalive_after(conn, keepalive=True)


# -- admission -------------------------------------------------------------------------------------

ACME = b"GET /acme/ HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(name="admission")
def _admission(worker: _Worker) -> Admission:
    """Return the admission of a host with one tenant and one thread, which is busy."""
    mounts = {"/acme": SimpleNamespace(name="acme")}
    admission = Admission(FairShare(1), mounts.get, lambda _: False)  # type: ignore[arg-type]
    worker.admission, worker.wait_queue, worker.alive = admission, WaitQueue(admission.share), True
    worker.wait_queue.arrive("globex", Connection.__new__(Connection))
    return admission


@pytest.fixture(name="refused")
def _refused(admission: Admission) -> list[str]:
    """Return a list of the tenants with requests that the admission refuses."""
    refused: list[str] = []
    admission.on_refusal = lambda tenant, *_: refused.append(tenant)
    return refused


def _expire_waiting(worker: _Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Advance the clock by `WAIT_S`, and let the worker check the queue."""
    assert worker.wait_queue is not None
    later = time.monotonic() + WAIT_S
    monkeypatch.setattr(worker.wait_queue, "_clock", lambda: later)
    _dispatch_events(worker)


def test_requests_for_no_tenant_wait_too(
    worker: _Worker, client: socket.socket, refused: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests for no tenant wait like a tenant's requests, and a refusal counts for no tenant."""
    client.sendall(HEAD)
    _dispatch_events(worker)
    before = len(worker.handed_over)
    _expire_waiting(worker, monkeypatch)

    assert client.recv(65536).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert (0, [], []) == (before, worker.handed_over, refused)


def test_livez_is_answered_while_all_threads_are_busy(
    worker: _Worker, client: socket.socket, refused: list[str]
) -> None:
    """The main loop answers with the page's own content, and the connection is kept."""
    for _ in range(2):
        client.sendall(b"GET /-/livez HTTP/1.1\r\nHost: a\r\n\r\n")
        _dispatch_events(worker)
        head, _, body = client.recv(65536).partition(b"\r\n\r\n")

        assert (b"HTTP/1.1 200 OK", {"status": "live"}) == (head[:15], json.loads(body))
        assert b"\r\nContent-Type: application/json\r\n" in head
    assert ([], []) == (worker.handed_over, refused)


@pytest.mark.usefixtures("admission")
def test_livez_gets_a_thread_while_one_is_free(worker: _Worker, client: socket.socket) -> None:
    """A free thread answers `livez`, which shows that threads serve."""
    assert worker.wait_queue is not None
    worker.wait_queue.end("globex")
    client.sendall(b"GET /-/livez HTTP/1.1\r\nHost: a\r\n\r\n")
    _dispatch_events(worker)

    assert ["/-/livez"] == [next(conn.parser).path for conn in worker.handed_over]


@pytest.mark.usefixtures("admission")
def test_a_waiting_request_takes_no_thread(worker: _Worker, client: socket.socket) -> None:
    """When another request ends, a waiting request is handed to a thread with all bytes."""
    client.sendall(ACME)
    _dispatch_events(worker)
    before = len(worker.handed_over)
    ended = Connection.__new__(Connection)
    ended.tenant = "globex"
    worker.end_turn(ended)

    (conn,) = worker.handed_over
    assert (0, "/acme/") == (before, next(conn.parser).path)


@pytest.mark.usefixtures("admission")
def test_a_pause_that_begins_in_a_thread_wakes_the_main_loop(
    worker: _Worker, client: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause that begins in a thread wakes the main loop, which would otherwise sleep too long."""
    deferred: list[object] = []
    monkeypatch.setattr(worker.method_queue, "defer", deferred.append)
    client.sendall(ACME)
    _dispatch_events(worker)
    assert worker.wait_queue is not None
    ended = Connection.__new__(Connection)
    ended.tenant = "globex"
    with monkeypatch.context() as patched:
        patched.setattr(worker.wait_queue, "end", lambda _: [])
        worker.end_turn(ended)
    before = len(deferred)
    worker.end_turn(ended)

    assert (1, 1, 1) == (before, len(deferred), len(worker.handed_over))


def test_an_expired_request_gets_503_and_keeps_its_connection(
    worker: _Worker, client: socket.socket, refused: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An expired request gets 503 without using a thread, and the connection stays open."""
    client.sendall(ACME)
    _dispatch_events(worker)
    _expire_waiting(worker, monkeypatch)
    first = client.recv(65536)
    client.sendall(ACME)
    _dispatch_events(worker)
    assert worker.wait_queue is not None

    assert first.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nRetry-After: 1\r\n" in first
    assert (["acme"], []) == (refused, worker.handed_over)
    assert worker.wait_queue.left_s() == WAIT_S  # the second request waits for a slot
    worker.handed_over += worker.wait_queue.end("globex")


def test_refusing_a_request_with_a_body_closes_the_connection(
    worker: _Worker, client: socket.socket, refused: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is closed, so that the unread body is not read as another request."""
    client.sendall(b"POST /acme/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
    _dispatch_events(worker)
    _expire_waiting(worker, monkeypatch)

    answer = client.recv(65536)
    assert b"\r\nConnection: close\r\n" in answer
    assert (["acme"], 1) == (refused, len(worker.lingering_conns))


def test_a_tenant_over_its_rate_takes_no_thread(
    worker: _Worker, client: socket.socket, admission: Admission, refused: list[str]
) -> None:
    """Requests over the rate get 429 without a thread, all on the same connection."""
    admission.refusal = {"acme": TOO_MANY}.get
    answers = []
    for _ in range(3):
        client.sendall(ACME)
        _dispatch_events(worker)
        answers.append(client.recv(65536).partition(b"\r\n")[0])

    assert [b"HTTP/1.1 429 Too Many Requests"] * 3 == answers
    assert (["acme"] * 3, []) == (refused, worker.handed_over)


def test_a_pipelined_request_after_a_refused_one_is_checked_by_itself(
    worker: _Worker, client: socket.socket, refused: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two requests in one packet, the first is refused and the second is handed over."""
    deferred: list[Callable[[], None]] = []
    monkeypatch.setattr(worker.method_queue, "defer", lambda *one: deferred.append(partial(*one)))
    client.sendall(ACME + HEAD)
    _dispatch_events(worker)
    _expire_waiting(worker, monkeypatch)
    assert worker.wait_queue is not None
    worker.wait_queue.end("globex")
    for one in deferred:
        one()

    (conn,) = worker.handed_over
    assert (["acme"], "/quiet") == (refused, next(conn.parser).path)


def test_requests_on_the_admin_listener_belong_to_no_tenant(
    worker: _Worker, client: socket.socket
) -> None:
    """A request on the admin listener is never counted or refused as a tenant's."""
    admission = Admission(FairShare(1), lambda _: pytest.fail("was called"), lambda _: True)
    worker.admission, worker.wait_queue = admission, WaitQueue(admission.share)
    client.sendall(ACME)
    _dispatch_events(worker)

    assert [None] == [conn.tenant for conn in worker.handed_over]
