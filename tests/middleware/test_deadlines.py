"""Deadlines: who runs too long is reported once, with the stack of its own thread."""

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
    """A clock that a test moves."""

    now_s = 0.0

    def __call__(self) -> float:
        """Return its time."""
        return self.now_s


@contextmanager
def asked(app: Any) -> Iterator[None]:
    """Send one request on a thread of its own; it has ended when the block has."""
    thread = threading.Thread(target=lambda: Client(app).get("/slow?key=secret").close())
    thread.start()
    try:
        yield
    finally:
        thread.join(DEADLINE_S)


class Waiting:
    """A WSGI app whose requests wait for `go_on`."""

    def __init__(self) -> None:
        self.has_come, self.go_on = threading.Event(), threading.Event()
        self.config: dict[str, object] = {}  # as a Flask app has one

    def __call__(self, _: object, start_response: Callable[..., object]) -> Iterable[bytes]:
        """Answer when `go_on` is set."""
        self.stand_still("a local secret")
        start_response("200 OK", [])
        return [b"done"]

    def stand_still(self, _key: str) -> None:
        """Say that it has come, and wait."""
        self.has_come.set()
        self.go_on.wait(DEADLINE_S)


def test_an_overdue_request_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """With tenant, method, path, age and where its thread stands; no query and no variables."""
    clock, app = Clock(), Waiting()
    noted: list[str] = []
    requests = RunningRequests(clock=clock, note_overdue=noted.append)
    layer = Deadlines(app, requests, "acme", 5.0)

    with asked(layer):
        assert app.has_come.wait(DEADLINE_S)
        for clock.now_s in (4.9, 5.1, 60.0):
            requests.check()
        app.go_on.set()

    [record] = caplog.records
    facts = vars(record)
    assert ("request.overdue", "acme", "GET", "/slow", 5.1) == tuple(
        facts[key] for key in ("message", "tenant", "method", "path", "age_s")
    )
    assert ["acme"] == noted
    assert "in stand_still <" in facts["stack"]
    assert "test_deadlines" in facts["stack"].rpartition(" < ")[2]
    assert "secret" not in str(facts)


def test_it_counts_as_stuck_until_it_ends() -> None:
    """Not before its deadline, and not afterwards."""
    clock, app = Clock(), Waiting()
    requests = RunningRequests(clock=clock)
    told = []

    with asked(Deadlines(app, requests, "acme", 5.0)):
        assert app.has_come.wait(DEADLINE_S)
        for clock.now_s in (0.0, 6.0):
            requests.check()
            told.append(dict(requests.stuck()))
        app.go_on.set()

    assert [{}, {"acme": 1}, {}] == [*told, dict(requests.stuck())]


class Connection:
    """Stands in for the client's: tells how much has gone out."""

    sent_bytes = 0


def test_a_stream_that_hangs_holds_its_thread() -> None:
    """Also when a part of it has gone out; not while more does, before each deadline."""
    clock, app, connection = Clock(), Waiting(), Connection()
    requests = RunningRequests(clock=clock)
    layer = Deadlines(_streaming(app), requests, "acme", 5.0)
    told = []

    def ask() -> None:
        environ = create_environ() | {"gunicorn.socket": connection}
        run_wsgi_app(layer, environ, buffered=True)

    thread = threading.Thread(target=ask)
    thread.start()
    assert app.has_come.wait(DEADLINE_S)
    for clock.now_s, connection.sent_bytes in ((4.0, 1), (6.0, 1), (10.0, 2), (14.9, 2), (15, 2)):
        requests.check()
        told.append(requests.held_threads())
    app.go_on.set()
    thread.join()

    assert [0, 0, 0, 0, 1] == told


def _streaming(app: Waiting) -> Any:
    def answer(_: object, start_response: Callable[..., object]) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"one"
        app.stand_still("")
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
def test_who_waits_for_its_client_has_not_hung(modules: list[str], is_held: bool) -> None:
    """It reads a body that does not come, in the server's code: it is reported, and no more."""
    clock, lock, has_come = Clock(), threading.Lock(), threading.Event()
    requests = RunningRequests(clock=clock)
    *outer, innermost = modules
    code = "def read():\n    has_come()\n    act()\n"
    read = _module(innermost, code, act=lock.acquire, has_come=has_come.set)["read"]
    for name in reversed(outer):
        read = _module(name, "def read():\n    act()\n", act=read)["read"]

    def app(_: object, start_response: Callable[..., object]) -> Iterable[bytes]:
        read()
        start_response("200 OK", [])
        return []

    lock.acquire()
    with asked(Deadlines(app, requests, "acme", 5.0)):
        assert has_come.wait(DEADLINE_S)
        clock.now_s = 6.0

        def is_as_expected() -> bool:
            requests.check()
            return is_held == (requests.held_threads() == 1)

        wait_until(is_as_expected)
        stuck = requests.stuck().total()
        lock.release()

    assert 1 == stuck


def test_a_request_lasts_until_its_body_is_closed() -> None:
    """A second `close` ends nothing, an app that raises ends it at once."""
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


def test_the_host_tells_who_is_stuck(
    host: Host, write_tenant: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Operators' pages, `list`, `top` and `usage` show it; the watchdog reports it unasked."""
    write_tenant("acme", DEADLINE_S=0.01)
    host.start()
    assert host.follower.is_ready.wait(DEADLINE_S)
    app = Waiting()
    tenant = host.router.mounts[0].tenant
    assert tenant is not None
    layer = build_stack(app, tenant, host.settings, host.resources)  # type: ignore[arg-type]

    with caplog.at_level(logging.WARNING), asked(layer):
        wait_until(lambda: [1] == [one.stuck for one in host.status()])
        told = [mount["stuck"] for mount in host.report.listing()["mounts"]]
        load, in_flight = host.report.in_flight(), host.resources.in_flight()
        app.go_on.set()

    assert [1] == told
    assert ({"in_flight": {"acme": 1}, "stuck": {"acme": 1}}, {"acme": 1}) == (load, in_flight)
    assert 1 == host.usage.counts()["acme"].overdue
    assert ["request.overdue"] == [record.message for record in caplog.records]


class _ClientSocket:
    """Stands in for the worker's: its `raw` is what the server writes to."""

    sent_bytes = 0

    def __init__(self, raw: socket.socket) -> None:
        self.raw = raw


def _ask_over(layer: Deadlines, raw: socket.socket, failures: list[BaseException]) -> None:
    environ = create_environ("/slow") | {"gunicorn.socket": _ClientSocket(raw)}
    try:
        run_wsgi_app(layer, environ, buffered=True)
    except ConnectionResetError as error:
        failures.append(error)


def test_an_overdue_request_is_answered_once() -> None:
    """With `answer`, the client gets 504 at the deadline, and the app's own answer goes nowhere."""
    clock, app, failures = Clock(), Waiting(), list[BaseException]()
    requests = RunningRequests(clock=clock)
    layer = Deadlines(app, requests, "acme", 5.0, is_answering=True)
    server_end, client_end = socket.socketpair()
    with server_end, client_end:
        thread = threading.Thread(target=_ask_over, args=(layer, server_end, failures))
        thread.start()
        assert app.has_come.wait(DEADLINE_S)
        for clock.now_s in (4.9, 5.1, 9.0):
            requests.check()
        received = client_end.makefile("rb").read()
        stuck = requests.stuck().total()
        app.go_on.set()
        thread.join(DEADLINE_S)

    assert (1, 1) == (received.count(b"HTTP/1.1 504 "), received.count(b"HTTP/1.1"))
    assert (1, 0, 1) == (stuck, requests.stuck().total(), len(failures))


def test_a_response_that_has_begun_is_not_answered() -> None:
    """With `answer`, a request whose head is out is only reported."""
    clock, app, failures = Clock(), Waiting(), list[BaseException]()
    requests = RunningRequests(clock=clock)
    layer = Deadlines(_streaming(app), requests, "acme", 5.0, is_answering=True)
    server_end, client_end = socket.socketpair()
    with server_end, client_end:
        thread = threading.Thread(target=_ask_over, args=(layer, server_end, failures))
        thread.start()
        assert app.has_come.wait(DEADLINE_S)
        clock.now_s = 6.0
        requests.check()
        stuck = requests.stuck().total()
        app.go_on.set()
        thread.join(DEADLINE_S)
        client_end.setblocking(False)
        with pytest.raises(BlockingIOError):
            client_end.recv(1)

    assert (1, []) == (stuck, failures)
