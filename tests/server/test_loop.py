"""The loop: one leader polls, and another thread becomes the leader when a request takes long."""

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from servers import DEADLINE_S, wait_until
from stepped_server import SteppedServer, is_closed, leading, stepping
from tenantry.observability.scoreboard import Scoreboard
from tenantry.server import loop as module
from tenantry.server.acceptor import SLACK
from tenantry.server.loop import Loop

GET = b"GET /quick HTTP/1.1\r\nHost: a\r\n\r\n"
SLOW = GET.replace(b"quick", b"slow")


class App:
    """An app whose path `/slow` waits for `go_on`.

    The app notes the threads of its requests.
    """

    def __init__(self) -> None:
        self.go_on, self.is_slow = threading.Event(), threading.Event()
        self.threads: list[threading.Thread] = []

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        """Answer with an empty body."""
        self.threads.append(threading.current_thread())
        if environ["PATH_INFO"] == "/slow":
            self.is_slow.set()
            self.go_on.wait(DEADLINE_S)
        start_response("200 OK", [("Content-Length", "0")])
        return []


@contextlib.contextmanager
def looping(app: Any, **settings: Any) -> Iterator[tuple[Loop, Callable[..., socket.socket]]]:
    """Run a server with its own threads; return its loop, and a function that connects."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(stepping(app, **settings))
        stack.enter_context(leading(server))

        def connect(data: bytes = b"") -> socket.socket:
            client = stack.enter_context(
                socket.create_connection(server.address, timeout=DEADLINE_S)
            )
            client.sendall(data)
            return client

        yield server.loop, connect


def _answered(client: socket.socket) -> bytes:
    return client.recv(65536)[:15]


OK = b"HTTP/1.1 200 OK"


# -- leader and followers --------------------------------------------------------------------------


def test_quick_requests_run_on_the_leaders_thread() -> None:
    """Requests in sequence are read and run by one thread."""
    app = App()
    with looping(app) as (_, connect):
        client = connect()
        for _ in range(20):
            client.sendall(GET)
            assert OK == _answered(client)

    assert 20 == len(app.threads)
    assert len(set(app.threads)) <= 3  # a loaded machine can make a short request look long


def test_a_long_request_does_not_keep_others_waiting() -> None:
    """While the leader runs a long request, another thread serves the other connections."""
    app = App()
    with looping(app) as (_, connect):
        slow = connect(SLOW)
        assert app.is_slow.wait(DEADLINE_S)
        quick = [_answered(connect(GET)) for _ in range(5)]
        app.go_on.set()

        assert ([OK] * 5, OK) == (quick, _answered(slow))
        slow.sendall(GET)
        assert OK == _answered(slow)


def test_a_response_is_sent_while_its_request_runs() -> None:
    """Bytes that a slow client does not accept are sent before the app yields the next bytes."""
    go_on = threading.Event()

    def streaming(_: object, start_response: Callable[..., object]) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", str((8 << 20) + 1))])
        yield b"x" * (8 << 20)
        go_on.wait(DEADLINE_S)
        yield b"y"

    with looping(streaming) as (_, connect):
        client = connect(GET)
        received = 0
        while received <= 8 << 20:  # the bytes are the head, and all of the first chunk
            received += len(client.recv(1 << 20))
        go_on.set()

        assert b"y" == client.recv(1)


def test_several_leaders_in_a_row_may_be_stuck() -> None:
    """While threads are free, another thread becomes the leader for each long request."""
    app = App()
    with looping(app) as (loop, connect):
        slow = [connect(SLOW) for _ in range(4)]
        wait_until(lambda: 4 == len(app.threads))
        assert 4 == len(set(app.threads))
        app.go_on.set()

        assert [OK] * 4 == [_answered(client) for client in slow]
        assert OK == _answered(connect(GET))
        assert loop.connections


def test_a_parked_watcher_wakes_up_for_a_request() -> None:
    """After a quiet time, the watcher sleeps; a long request wakes it up."""
    app = App()
    with looping(app) as (loop, connect):
        wait_until(lambda: not loop._is_watched)
        slow = connect(SLOW)
        assert app.is_slow.wait(DEADLINE_S)
        assert OK == _answered(connect(GET))
        app.go_on.set()

        assert OK == _answered(slow)


def test_requests_of_many_clients_are_all_answered() -> None:
    """Sixteen clients on eight threads get one correct answer for each request."""

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        body = environ["PATH_INFO"].encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    wrong: list[bytes] = []

    def request(client: socket.socket, name: int) -> None:
        for number in range(50):
            path = b"/%d/%d" % (name, number)
            client.sendall(GET.replace(b"/quick", path))
            received = client.recv(65536)
            if not received.endswith(b"\r\n\r\n" + path):
                wrong.append(received)

    with looping(app) as (_, connect):
        threads = [threading.Thread(target=request, args=(connect(), name)) for name in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert [] == wrong


# -- step by step ----------------------------------------------------------------------------------


@pytest.fixture(name="server")
def _server() -> Iterator[SteppedServer]:
    with stepping(App()) as server:
        yield server


def test_a_deposed_leader_leaves_its_events_to_its_successor(server: SteppedServer) -> None:
    """A leader that is deposed during a request returns at once, and the connection continues."""
    loop = server.loop

    def deposed(function: Callable[[Any], object], item: Any) -> bool:
        loop._inline_since = 1.0
        function(item)
        loop._inline_since, loop._leader = 0.0, -1
        return False

    client, other = server.connect(), server.connect()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "run_inline", deposed)
        client.sendall(GET)
        other.sendall(GET)
        is_leader = loop._poll_once(threading.get_ident())
        calls = len(loop._calls)
    loop._leader = threading.get_ident()

    assert (False, 1) == (is_leader, calls)
    assert [200, 200] == [server.response(one).status for one in (client, other)]
    assert 200 == server.exchange(client, GET).status


def test_the_watcher_deposes_a_leader_once(server: SteppedServer) -> None:
    """The watcher deposes a leader only for the request that the watcher has seen."""
    loop = server.loop
    appointed: list[bool] = []
    loop._pool.do = lambda _, is_first: appointed.append(is_first)  # type: ignore[method-assign,assignment,misc]
    loop._inline_since = 2.0

    loop._depose(1.0)
    leaders = [loop._leader]
    loop._depose(2.0)

    assert ([threading.get_ident()], 0, [True]) == (leaders, loop._leader, appointed)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_the_loop_stops_accepting_without_resources(
    server: SteppedServer, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The leader does not spin on a listener from which it cannot accept, and tries again later."""
    loop, acceptor = server.loop, server.loop._acceptor
    [(fd, (listener, facts))] = acceptor._listeners.items()

    class Exhausted:
        def accept(self) -> None:
            raise OSError(code, os.strerror(code))

    acceptor._listeners[fd] = Exhausted(), facts  # type: ignore[assignment]
    loop._accept(fd)
    acceptor._listeners[fd] = listener, facts
    states = [acceptor.is_accepting]
    server.step()
    states.append(acceptor.is_accepting)
    acceptor._lacks_until = acceptor.resumes_at = time.monotonic()  # as if the pause were over
    server.step()
    states.append(acceptor.is_accepting)

    assert [False, False, True] == states
    assert "ulimit -n" in str(vars(caplog.records[0])["reason"])


def test_a_worker_with_more_connections_leaves_the_next_one_to_others() -> None:
    """A worker later accepts a connection that no other worker has accepted."""
    scoreboard = Scoreboard()
    row, other = scoreboard.claim_row(), scoreboard.claim_row()
    assert row is not None
    assert other is not None
    with stepping(App(), row=row) as server:
        acceptor = server.loop._acceptor
        for _ in range(SLACK + 1):
            server.connect()
        with socket.create_connection(server.address, timeout=DEADLINE_S):
            server.step_until(lambda: not acceptor.is_accepting)
            left = len(server.connections)
            acceptor.resumes_at = time.monotonic()  # as if `LEAVE_S` were over
            server.step_until(lambda: len(server.connections) > left)

    assert SLACK + 1 == left


def test_a_connection_that_only_drains_does_not_count() -> None:
    """After its last response, a connection does not keep the worker from accepting others."""
    scoreboard = Scoreboard()
    row = scoreboard.claim_row()
    with stepping(App(), row=row) as server:
        server.connect()
        before = scoreboard.fewest_connections()
        server.connect(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        server.step_until(lambda: scoreboard.fewest_connections() == before)

        assert (1, 2) == (before, len(server.connections))


def test_a_worker_with_few_connections_accepts_at_once() -> None:
    """A worker that has no more connections than another worker leaves no connection to it."""
    scoreboard = Scoreboard()
    row, other = scoreboard.claim_row(), scoreboard.claim_row()
    assert row is not None
    assert other is not None
    other.show_connections(9)
    with stepping(App(), row=row) as server:
        for _ in range(2 * SLACK):
            server.connect()

        assert server.loop._acceptor.is_accepting


def test_a_listener_without_clients_is_harmless(server: SteppedServer) -> None:
    """It is not an error if another worker has accepted a client, or the client has left."""
    [fd] = server.loop._acceptor._listeners

    server.loop._accept(fd)

    assert [] == server.connections


def test_a_call_to_a_closed_connection_is_dropped(server: SteppedServer) -> None:
    """A call that waits for a connection is dropped when the connection is closed."""
    called: list[object] = []
    server.connect()
    [connection] = server.connections
    server.loop.call(called.append, connection)
    server.loop.forget(connection)
    server.step()

    assert [] == called


def test_a_closed_connection_leaves_the_poller(server: SteppedServer) -> None:
    """The poller drops a closed connection, even if another process holds a copy of the socket."""
    client = server.connect()
    [connection] = server.connections
    copy = os.dup(connection.fd)
    try:
        server.loop.forget(connection)
        client.sendall(GET)
        wait_until(lambda: _has_data(copy))

        assert [] == server.loop._epoll.poll(0)
    finally:
        os.close(copy)


def _has_data(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def test_closing_a_connection_twice_closes_no_other(server: SteppedServer) -> None:
    """The descriptor of a closed connection may belong to the next connection."""
    first = server.connect()
    [closed] = server.connections
    server.loop.forget(closed)
    assert is_closed(server, first)
    second = server.connect()
    closed.fd = server.connections[0].fd
    server.loop.forget(closed)

    assert 1 == len(server.connections)
    assert 200 == server.exchange(second, GET).status


def test_a_fault_of_the_loop_itself_is_logged(
    server: SteppedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception outside of any connection is logged, and the leader continues."""
    outcomes: list[Any] = [ZeroDivisionError("planted"), False]
    monkeypatch.setattr(module, "FAULT_PAUSE_S", 0.0)

    def poll(_: int) -> bool:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return bool(outcome)

    monkeypatch.setattr(server.loop, "_poll_once", poll)
    server.loop._lead()

    assert ["worker.loop_failed"] == [record.message for record in caplog.records]


def test_a_check_that_is_asked_for_during_a_check_follows(
    server: SteppedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check_soon` from another thread is not lost while the leader checks."""
    checks: list[float] = []

    def check(now: float) -> float:
        checks.append(now)
        if len(checks) == 1:
            server.loop.check_soon()
        return now + 1000

    monkeypatch.setattr(server.protocol, "on_check", check)
    server.loop.check_at = 0.0
    for _ in range(2):
        server.loop._poll_once(threading.get_ident())

    assert 2 == len(checks)


def test_a_call_from_another_thread_ends_the_wait(server: SteppedServer) -> None:
    """A call from another thread ends the leader's wait for an event."""
    called: list[object] = []
    server.connect()
    [connection] = server.connections
    server.loop.check_at = time.monotonic() + 1000
    timer = threading.Timer(0.01, server.loop.call, (called.append, connection))
    timer.start()
    while not called:
        server.loop._poll_once(threading.get_ident())
    timer.join()

    assert [connection] == called


def test_a_stopped_loop_accepts_no_more(server: SteppedServer) -> None:
    """After `stop_accepting`, new clients are left to other workers."""
    server.loop.stop_accepting()
    with socket.create_connection(server.address):
        for _ in range(3):
            server.step()

        assert ([], {}) == (server.connections, server.loop._acceptor._listeners)
