"""Deadlines: an overdue request is reported once, with the stack of the request's thread."""

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client, create_environ, run_wsgi_app

from servers import DEADLINE_S, wait_until
from tenantry.app.stack import build_stack
from tenantry.host import Host
from tenantry.middleware.deadlines import Deadlines, RunningRequests


class Clock:
    """A clock that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        """Return the time that the test has set on the clock."""
        return self.now_s


@contextmanager
def sending_request(app: Any) -> Iterator[None]:
    """Send one request on a thread of its own, which has ended at the end of the block."""
    thread = threading.Thread(target=lambda: Client(app).get("/slow?key=secret").close())
    thread.start()
    try:
        yield
    finally:
        thread.join(DEADLINE_S)


class Waiting:
    """A WSGI app that blocks each request until `go_on` is set."""

    def __init__(self) -> None:
        self.is_reached, self.go_on = threading.Event(), threading.Event()
        self.config: dict[str, object] = {}  # a Flask app, because `build_stack` takes a Flask app

    def __call__(self, _: object, start_response: Callable[..., object]) -> Iterable[bytes]:
        """Answer when `go_on` is set."""
        self.block("a local secret")
        start_response("200 OK", [])
        return [b"done"]

    def block(self, _key: str) -> None:
        """Set `is_reached`, and wait."""
        self.is_reached.set()
        self.go_on.wait(DEADLINE_S)


def test_an_overdue_request_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """The log line has tenant, method, path, age and stack, but no query and no variables."""
    clock, app = Clock(), Waiting()
    noted: list[str] = []
    requests = RunningRequests(clock=clock, note_overdue=noted.append)
    layer = Deadlines(app, requests, "acme", 5.0)

    with sending_request(layer):
        assert app.is_reached.wait(DEADLINE_S)
        for clock.now_s in (4.9, 5.1, 60.0):
            requests.check()
        app.go_on.set()

    [record] = caplog.records
    facts = vars(record)
    assert ("request.overdue", "acme", "GET", "/slow", 5.1) == tuple(
        facts[key] for key in ("message", "tenant", "method", "path", "age_s")
    )
    assert ["acme"] == noted
    assert "in block <" in facts["stack"]
    assert "test_deadlines" in facts["stack"].rpartition(" < ")[2]
    assert "secret" not in str(facts)


def test_a_request_is_stuck_from_its_deadline_to_its_end() -> None:
    """A request counts as stuck from the deadline until the request ends."""
    clock, app = Clock(), Waiting()
    requests = RunningRequests(clock=clock)
    reported = []

    with sending_request(Deadlines(app, requests, "acme", 5.0)):
        assert app.is_reached.wait(DEADLINE_S)
        for clock.now_s in (0.0, 6.0):
            requests.check()
            reported.append(dict(requests.stuck()))
        app.go_on.set()

    assert [{}, {"acme": 1}, {}] == [*reported, dict(requests.stuck())]


class Connection:
    """Stands in for the client's connection, and says how much has been sent."""

    sent_bytes = 0


def test_a_hanging_stream_holds_its_thread() -> None:
    """A stream counts as hanging when the app has sent no byte for a whole deadline."""
    clock, app, connection = Clock(), Waiting(), Connection()
    requests = RunningRequests(clock=clock)
    layer = Deadlines(_streaming(app), requests, "acme", 5.0)
    reported = []

    def send() -> None:
        environ = create_environ() | {"gunicorn.socket": connection}
        run_wsgi_app(layer, environ, buffered=True)

    thread = threading.Thread(target=send)
    thread.start()
    assert app.is_reached.wait(DEADLINE_S)
    for clock.now_s, connection.sent_bytes in ((4.0, 1), (6.0, 1), (10.0, 2), (14.9, 2), (15, 2)):
        requests.check()
        reported.append(requests.held_threads())
    app.go_on.set()
    thread.join()

    assert [0, 0, 0, 0, 1] == reported


def _streaming(app: Waiting) -> Any:
    def answer(_: object, start_response: Callable[..., object]) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"one"
        app.block("")
        yield b"two"

    return answer


def _module(name: str, code: str, **names: object) -> dict[str, Any]:
    made: dict[str, Any] = {"__name__": name, **names}
    exec(code, made)
    return made


@pytest.mark.parametrize(
    ("modules", "is_held"),
    [
        (["gunicorn.http.unreader"], False),
        (["gunicorn.http.unreader", "tenantry.server.client_socket"], False),
        (["gunicorn.http.unreader", "tenantry.server.client_socket", "ssl"], False),
        (["gunicorn.util", "socket"], False),
        (["urllib3.connection", "socket", "ssl"], True),
        (["acme"], True),
    ],
)
def test_waiting_for_the_client_is_not_hanging(modules: list[str], is_held: bool) -> None:
    """A thread that reads a body in the server's code is reported but does not count as held."""
    clock, lock, is_reached = Clock(), threading.Lock(), threading.Event()
    requests = RunningRequests(clock=clock)
    *outer, innermost = modules
    code = "def read():\n    is_reached()\n    act()\n"
    read = _module(innermost, code, act=lock.acquire, is_reached=is_reached.set)["read"]
    for name in reversed(outer):
        read = _module(name, "def read():\n    act()\n", act=read)["read"]

    def app(_: object, start_response: Callable[..., object]) -> Iterable[bytes]:
        read()
        start_response("200 OK", [])
        return []

    lock.acquire()
    with sending_request(Deadlines(app, requests, "acme", 5.0)):
        assert is_reached.wait(DEADLINE_S)
        clock.now_s = 6.0

        def is_as_expected() -> bool:
            requests.check()
            return is_held == (requests.held_threads() == 1)

        wait_until(is_as_expected)
        stuck = requests.stuck().total()
        lock.release()

    assert 1 == stuck


def test_a_request_lasts_until_its_body_is_closed() -> None:
    """A request ends when the response body is first closed, or when the app raises."""
    requests, seen = RunningRequests(), []

    def app(environ: dict[str, Any], _: object) -> Iterable[bytes]:
        seen.append(len(requests._running))
        if environ["PATH_INFO"] == "/bad":
            raise ValueError
        return [b"one"]

    layer = Deadlines(app, requests, "acme", 5.0)
    body: Any = layer({"PATH_INFO": "/good"}, lambda *_: None)  # type: ignore[arg-type,return-value]
    seen.append(len(requests._running))
    body.close()
    body.close()
    with pytest.raises(ValueError):  # noqa: PT011 - it is the app's
        layer({"PATH_INFO": "/bad"}, lambda *_: None)  # type: ignore[arg-type,return-value]

    assert [1, 1, 1, 0] == [*seen, len(requests._running)]
    assert requests.stuck().total() == 0


def test_the_host_reports_stuck_requests(
    host: Host, write_tenant: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """The watchdog logs an overdue request, and status, listing and usage show the request."""
    write_tenant("acme", DEADLINE_S=0.01)
    host.start()
    assert host.follower.is_ready.wait(DEADLINE_S)
    app = Waiting()
    tenant = host.router.mounts[0].tenant
    assert tenant is not None
    stack = build_stack(app, tenant, host.settings, host.resources)  # type: ignore[arg-type]

    with caplog.at_level(logging.WARNING), sending_request(stack.wsgi):
        wait_until(lambda: [1] == [one.stuck for one in host.status()])
        reported = [mount["stuck"] for mount in host.report.listing()["mounts"]]
        load, in_flight = host.report.in_flight(), host.resources.in_flight()
        app.go_on.set()

    assert [1] == reported
    assert ({"in_flight": {"acme": 1}, "stuck": {"acme": 1}}, {"acme": 1}) == (load, in_flight)
    assert 1 == host.usage.counts()["acme"].overdue
    assert ["request.overdue"] == [record.message for record in caplog.records]


class _ClientSocket:
    """Stand-in for the worker's client socket. The server writes to the attribute `raw`."""

    sent_bytes = 0

    def __init__(self, raw: socket.socket) -> None:
        self.raw = raw


def _send_over(layer: Deadlines, raw: socket.socket, failures: list[BaseException]) -> None:
    environ = create_environ("/slow") | {"gunicorn.socket": _ClientSocket(raw)}
    try:
        run_wsgi_app(layer, environ, buffered=True)
    except ConnectionResetError as error:
        failures.append(error)


def test_an_overdue_request_is_answered_once() -> None:
    """With `answer`, the client gets 504 at the deadline; the app's later response is discarded."""
    clock, app, failures = Clock(), Waiting(), list[BaseException]()
    requests = RunningRequests(clock=clock)
    layer = Deadlines(app, requests, "acme", 5.0, is_answering=True)
    server_end, client_end = socket.socketpair()
    with server_end, client_end:
        thread = threading.Thread(target=_send_over, args=(layer, server_end, failures))
        thread.start()
        assert app.is_reached.wait(DEADLINE_S)
        for clock.now_s in (4.9, 5.1, 9.0):
            requests.check()
        received = client_end.makefile("rb").read()
        stuck = requests.stuck().total()
        app.go_on.set()
        thread.join(DEADLINE_S)

    assert (1, 1) == (received.count(b"HTTP/1.1 504 "), received.count(b"HTTP/1.1"))
    assert (1, 0, 1) == (stuck, requests.stuck().total(), len(failures))


def test_a_started_response_gets_no_504() -> None:
    """With `answer`, a request with sent headers is only reported."""
    clock, app, failures = Clock(), Waiting(), list[BaseException]()
    requests = RunningRequests(clock=clock)
    layer = Deadlines(_streaming(app), requests, "acme", 5.0, is_answering=True)
    server_end, client_end = socket.socketpair()
    with server_end, client_end:
        thread = threading.Thread(target=_send_over, args=(layer, server_end, failures))
        thread.start()
        assert app.is_reached.wait(DEADLINE_S)
        clock.now_s = 6.0
        requests.check()
        stuck = requests.stuck().total()
        app.go_on.set()
        thread.join(DEADLINE_S)
        client_end.setblocking(False)
        with pytest.raises(BlockingIOError):
            client_end.recv(1)

    assert (1, []) == (stuck, failures)
