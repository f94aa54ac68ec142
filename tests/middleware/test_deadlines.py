"""Deadlines: an overdue request is reported once, with the stack of the request's thread."""

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import create_environ, run_wsgi_app

from servers import DEADLINE_S, wait_until
from tenantry.host import Host
from tenantry.http.environ import CONNECTION, REQUEST_ID, REQUEST_RECORD, TARGET, TENANT
from tenantry.middleware.accounting import Accounting
from tenantry.middleware.deadlines import Watchdog
from tenantry.middleware.fair_share import FairShare
from tenantry.middleware.in_flight import RequestLimits, RequestsInFlight
from tenantry.observability.usage_counters import UsageCounters
from tenantry.server.connection import Connection


class Deadline:
    """A host's accounting and watchdog for one tenant with a deadline of 5 s.

    Args:
        is_answering: whether an overdue request is answered with 504.
    """

    def __init__(self, *, is_answering: bool = False) -> None:
        self.noted: list[str] = []
        self.failures: list[BaseException] = []
        self.counters = UsageCounters()
        self.in_flight = RequestsInFlight(FairShare(None))
        self.watchdog = Watchdog(self.in_flight, clock_ns=self, note_overdue=self.noted.append)
        self._limits = RequestLimits(None, 5.0, is_answering)
        self._accounting = Accounting(self.in_flight, self.counters)
        self._now_s = 0.0

    def __call__(self) -> int:
        """Return the time that `check_at` sets, in nanoseconds on the watchdog's clock."""
        [record] = self.in_flight.records()
        return record.begun_ns + int(self._now_s * 1e9)

    def check_at(self, now_s: float) -> None:
        """Let the watchdog check `now_s` seconds after the start of the request."""
        self._now_s = now_s
        self.watchdog.check()

    @contextmanager
    def requesting(self, app: Any, **keys: Any) -> Iterator[None]:
        """Send one request on a thread of its own, which has ended at the end of the block."""
        routed = {TARGET: app, TENANT: "acme", REQUEST_ID: "id-1"}
        environ = create_environ("/slow?key=secret") | routed | keys
        environ[REQUEST_RECORD] = self.in_flight.enter("acme", self._limits)
        thread = threading.Thread(target=self._request, args=(environ,))
        thread.start()
        try:
            yield
        finally:
            thread.join(DEADLINE_S)

    def _request(self, environ: Any) -> None:
        try:
            run_wsgi_app(self._accounting, environ, buffered=True)
        except ConnectionResetError as error:
            self.failures.append(error)


class Waiting:
    """A WSGI app that blocks each request until `go_on` is set."""

    def __init__(self) -> None:
        self.is_reached, self.go_on = threading.Event(), threading.Event()

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
    deadline, app = Deadline(), Waiting()

    with deadline.requesting(app):
        assert app.is_reached.wait(DEADLINE_S)
        for now_s in (4.9, 5.1, 60.0):
            deadline.check_at(now_s)
        app.go_on.set()

    [record] = caplog.records
    facts = vars(record)
    assert ("request.overdue", "acme", "id-1", "GET", "/slow", 5.1, 5.0, False) == tuple(
        facts[key]
        for key in (
            *("message", "tenant", "request_id", "method", "path", "age_s", "deadline_s"),
            "answered",
        )
    )
    assert ["acme"] == deadline.noted
    assert "in block <" in facts["stack"]
    assert "test_deadlines" in facts["stack"].rpartition(" < ")[2]
    assert "secret" not in str(facts)


def test_a_request_is_stuck_from_its_deadline_to_its_end() -> None:
    """A request counts as stuck from the deadline until the request ends."""
    deadline, app = Deadline(), Waiting()
    reported = []

    with deadline.requesting(app):
        assert app.is_reached.wait(DEADLINE_S)
        for now_s in (0.0, 6.0):
            deadline.check_at(now_s)
            reported.append(dict(deadline.watchdog.stuck()))
        app.go_on.set()

    assert [{}, {"acme": 1}, {}] == [*reported, dict(deadline.watchdog.stuck())]


def test_a_request_that_waits_for_its_turn_is_not_overdue() -> None:
    """The deadline begins when a request runs, not when the request is admitted."""
    deadline = Deadline()
    limits = RequestLimits(None, 5.0, is_answering=False)
    assert deadline.in_flight.enter("acme", limits) is not None

    deadline.check_at(60.0)

    assert {} == deadline.watchdog.stuck()


class FakeConnection:
    """Stands in for the client's connection, and says how much has been sent."""

    sent_bytes = 0
    is_waiting = False
    is_hijacked = False


def test_a_hanging_stream_holds_its_thread() -> None:
    """A stream counts as hanging when the app has sent no byte for `DEADLINE_S` seconds."""
    deadline, app, connection = Deadline(), Waiting(), FakeConnection()
    reported = []

    with deadline.requesting(_streaming(app), **{CONNECTION: connection}):
        assert app.is_reached.wait(DEADLINE_S)
        for now_s, connection.sent_bytes in ((4.0, 1), (6.0, 1), (10.0, 2), (14.9, 2), (15, 2)):
            deadline.check_at(now_s)
            reported.append(deadline.watchdog.held_threads())
        app.go_on.set()

    assert [0, 0, 0, 0, 1] == reported


def _streaming(app: Waiting) -> Any:
    def answer(_: object, start_response: Callable[..., object]) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"one"
        app.block("")
        yield b"two"

    return answer


@pytest.mark.parametrize("is_waiting", [True, False])
def test_waiting_for_the_client_is_not_hanging(is_waiting: bool) -> None:
    """A thread that waits for its client is reported but does not count as held."""
    deadline, app, connection = Deadline(), Waiting(), FakeConnection()
    connection.is_waiting = is_waiting

    with deadline.requesting(app, **{CONNECTION: connection}):
        assert app.is_reached.wait(DEADLINE_S)
        deadline.check_at(6.0)
        stuck, held = deadline.watchdog.stuck().total(), deadline.watchdog.held_threads()
        app.go_on.set()

    assert (1, not is_waiting) == (stuck, held == 1)


@pytest.mark.parametrize("is_answering", [True, False])
def test_a_hijacked_connection_has_no_deadline(is_answering: bool) -> None:
    """A WebSocket stays open for hours, and gets no 504 between its frames."""
    deadline, app, connection = Deadline(is_answering=is_answering), Waiting(), FakeConnection()
    connection.is_hijacked = True

    with deadline.requesting(app, **{CONNECTION: connection}):
        assert app.is_reached.wait(DEADLINE_S)
        deadline.check_at(6.0)
        stuck = deadline.watchdog.stuck()
        app.go_on.set()

    assert {} == stuck


def test_the_host_reports_stuck_requests(
    host: Host, write_tenant: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """The watchdog logs an overdue request, and status, listing and usage show the request."""
    write_tenant("acme", DEADLINE_S=0.01)
    host.start()
    assert host.follower.is_ready.wait(DEADLINE_S)
    app, [mount] = Waiting(), host.router.mounts
    routed = {TARGET: app, TENANT: "acme", REQUEST_ID: "id-1"}
    record = host.resources.in_flight.enter("acme", mount.limits)
    assert record is not None
    environ = create_environ("/acme/") | routed | {REQUEST_RECORD: record}
    thread = threading.Thread(target=run_wsgi_app, args=(host, environ, True))

    with caplog.at_level(logging.WARNING):
        thread.start()
        wait_until(lambda: [1] == [one.stuck for one in host.status()])
        wait_until(lambda: bool(caplog.records))  # the watchdog counts, and then logs
        reported = [mount["stuck"] for mount in host.report.listing()["mounts"]]
        load, in_flight = host.report.in_flight(), host.resources.in_flight.counts()
        app.go_on.set()
        thread.join()

    assert [1] == reported
    assert ({"in_flight": {"acme": 1}, "stuck": {"acme": 1}}, {"acme": 1}) == (load, in_flight)
    assert 1 == host.usage.counts()["acme"].overdue
    assert ["request.overdue"] == [record.message for record in caplog.records]


@contextmanager
def _client(**keys: Any) -> Iterator[tuple[socket.socket, dict[str, Any]]]:
    """Return a client's end of a connection, and the environ keys of a request over it."""
    server_end, client_end = socket.socketpair()
    server_end.setblocking(False)
    client_end.settimeout(DEADLINE_S)
    connection = Connection(server_end, ("192.0.2.1", 80), None)
    with client_end:
        yield client_end, {CONNECTION: connection} | keys
        connection.close()


def test_an_overdue_request_is_answered_once() -> None:
    """With `answer`, the client gets 504 at the deadline; the app's later response is discarded."""
    deadline, app = Deadline(is_answering=True), Waiting()

    with _client() as (client, keys), deadline.requesting(app, **keys):
        assert app.is_reached.wait(DEADLINE_S)
        for now_s in (4.9, 5.1, 9.0):
            deadline.check_at(now_s)
        received = client.makefile("rb").read()
        stuck = deadline.watchdog.stuck().total()
        app.go_on.set()

    head, _, body = received.partition(b"\r\n\r\n")
    assert (1, 1) == (received.count(b"HTTP/1.1 504 "), received.count(b"HTTP/1.1"))
    assert {b"Connection: close", b"X-Request-ID: id-1"} < set(head.split(b"\r\n"))
    assert b"Content-Length: %d" % len(body) in head
    assert (1, 0, 1) == (stuck, deadline.watchdog.stuck().total(), len(deadline.failures))
    counts = deadline.counters.counts()["acme"]
    assert (1, 1, len(body)) == (counts.requests, counts.errors, counts.bytes_out)


def test_a_504_to_head_has_no_body() -> None:
    """The 504 to a HEAD request has no body."""
    deadline, app = Deadline(is_answering=True), Waiting()

    with _client(REQUEST_METHOD="HEAD") as (client, keys), deadline.requesting(app, **keys):
        assert app.is_reached.wait(DEADLINE_S)
        deadline.check_at(5.1)
        received = client.makefile("rb").read()
        app.go_on.set()

    assert (b"HTTP/1.1 504 ", b"\r\n\r\n") == (received[:13], received[-4:])


def test_a_started_response_gets_no_504() -> None:
    """With `answer`, a request with sent headers is only reported."""
    deadline, app = Deadline(is_answering=True), Waiting()

    with _client() as (client, keys):
        with deadline.requesting(_streaming(app), **keys):
            assert app.is_reached.wait(DEADLINE_S)
            deadline.check_at(6.0)
            stuck = deadline.watchdog.stuck().total()
            app.go_on.set()
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)

    assert (1, []) == (stuck, deadline.failures)


def test_a_full_connection_does_not_block_the_watchdog() -> None:
    """A client that reads nothing may miss its 504, but does not stop the watchdog."""
    deadline, app = Deadline(is_answering=True), Waiting()

    with _client() as (_, keys):
        keys[CONNECTION].sock.send(b"x" * (1 << 20))
        with deadline.requesting(app, **keys):
            assert app.is_reached.wait(DEADLINE_S)
            deadline.check_at(6.0)
            stuck = deadline.watchdog.stuck().total()
            app.go_on.set()

    assert (1, ["acme"]) == (stuck, deadline.noted)
