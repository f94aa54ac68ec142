"""The steps of a request, from the bytes that a client sends, without threads or clocks."""

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any

import pytest

from servers import DEADLINE_S, wait_until
from stepped_server import SteppedServer, is_closed, stepping
from tenantry.http.environ import TENANT
from tenantry.http.problem import ProblemResponse, Refusal
from tenantry.server.admission import OpenAdmission
from tenantry.server.connection import LINGERING, PATIENCE_S
from tenantry.server.spool import SpoolBudget
from tenantry.server.steps import response
from tenantry.server.steps.body import ROOM_TIMEOUT_S
from tenantry.server.steps.head import HEAD_TIMEOUT_S
from tenantry.server.steps.limits import CLOSE_IDLE_AFTER_S
from tenantry.server.steps.response import LINGER_S, STOP_KEEPALIVE_S
from tenantry.server.steps.wait_queue import MAX_WAITING, WAIT_S

FORBIDDEN: Refusal = ProblemResponse(HTTPStatus.FORBIDDEN, "No."), [("X-Why", "key")]
GET = b"GET /acme/x HTTP/1.1\r\nHost: a\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def post(
    body: bytes = b"", *fields: bytes, path: bytes = b"/acme/x", size: int | None = None
) -> bytes:
    """Return a request with a body of which only `body` is sent."""
    length = b"Content-Length: %d" % (len(body) if size is None else size)
    head = [b"POST " + path + b" HTTP/1.1", b"Host: a", length, *fields]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


CHUNKED_HEAD = b"POST /acme/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


class SmallAdmission(OpenAdmission):
    """Admits requests by tenant: the first segment of the path.

    Args:
        threads: the number of requests that run at once.
    """

    def __init__(self, threads: int = 4) -> None:
        super().__init__(threads)
        self.by_head: dict[str, Callable[[], Refusal | None]] = {}
        self.slow: set[str] = set()
        self.noted: list[tuple[str, int]] = []
        self.max_bytes: int | None = None

    def route(self, environ: Any, _: object, /) -> str | None:
        """Return the first segment of the path."""
        super().route(environ, None)
        return str(environ["PATH_INFO"].split("/")[1])

    def is_quick(self, environ: Any) -> bool:
        """Whether `refusal` needs no thread for the tenant."""
        return environ["PATH_INFO"].split("/")[1] not in self.slow

    def refusal(self, environ: Any) -> Refusal | None:
        """Return what the test has set for the tenant."""
        return self.by_head.get(environ["PATH_INFO"].split("/")[1], lambda: None)()

    def max_body_bytes(self, _: object) -> int | None:
        """Return the maximum that the test has set."""
        return self.max_bytes

    def note_refusal(self, _: object, tenant: str | None, problem: Any, *__: object) -> None:  # type: ignore[override]
        """Note the refusal."""
        self.noted.append((tenant or "", problem.status.value))


def echo(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer with the method, the path and the body."""
    body = environ["wsgi.input"].read()
    answer = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} ".encode() + body
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]


@pytest.fixture(name="admission")
def _admission() -> SmallAdmission:
    """Return the admission of the fixture `server`: four requests run at once."""
    return SmallAdmission()


@pytest.fixture(name="server")
def _server(admission: SmallAdmission) -> Iterator[SteppedServer]:
    """Return a server that echoes each request."""
    with stepping(echo, admission) as server:
        yield server


# -- heads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 10, len(GET) - 3, len(GET) - 2, len(GET) - 1])
def test_a_request_may_arrive_in_two_pieces(server: SteppedServer, cut: int) -> None:
    """A request runs once its head is complete, wherever the head is cut."""
    client = server.connect(GET[:cut])
    server.step()

    assert b"GET /acme/x " == server.exchange(client, GET[cut:]).body


def test_pipelined_requests_are_answered_in_order(server: SteppedServer) -> None:
    """Requests in one packet, with and without bodies, get their answers in order."""
    bodies = [b"GET /acme/x ", b"POST /acme/x one", b"POST /acme/x two", b"GET /acme/x "]
    chunked = CHUNKED_HEAD + b"3\r\ntwo\r\n0\r\n\r\n"

    client = server.connect(GET + post(b"one") + chunked + b"\r\n" + GET)

    assert bodies == [server.response(client).body for _ in range(4)]


def test_a_connection_serves_one_request_after_another(server: SteppedServer) -> None:
    """A response without `close` leaves the connection open for the next request."""
    client = server.connect()
    answers = [server.exchange(client, GET) for _ in range(3)]

    assert [(200, False)] * 3 == [(answer.status, answer.closes) for answer in answers]
    assert 1 == len(server.connections)


@pytest.mark.parametrize(
    "request_bytes",
    [
        GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        GET.replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
def test_a_client_can_ask_for_the_last_response(
    server: SteppedServer, request_bytes: bytes
) -> None:
    """The last response says `close`, and the connection ends after it."""
    client = server.connect(request_bytes)

    assert server.response(client).closes
    assert is_closed(server, client)


def test_a_client_may_end_its_side_after_the_request(server: SteppedServer) -> None:
    """A client that closes the sending side still gets the response, and then the end."""
    client = server.connect(GET)
    client.shutdown(socket.SHUT_WR)

    assert b"GET /acme/x " == server.response(client).body
    assert is_closed(server, client)
    server.step_until(lambda: not server.connections)


def test_an_empty_line_before_a_request_is_skipped(server: SteppedServer) -> None:
    """A client may send one empty line before a request (RFC 9112 §2.2)."""
    client = server.connect(b"\r\n")

    assert 200 == server.exchange(client, GET).status


def test_more_than_one_empty_line_is_refused(server: SteppedServer) -> None:
    """A client that sends two empty lines instead of a request gets 400."""
    client = server.connect(b"\r\n\r\n")

    assert 400 == server.response(client).status


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /x/\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 400),
        (b"GET /%s" % (b"x" * 9000), 414),
        (GET[:-2] + b"X: %s\r\n" % (b"a" * 9000) + b"\r\n", 431),
        (post(b"", b"Expect: much"), 417),
        (
            post(b"", b"Transfer-Encoding: gzip, chunked").replace(b"Content-Length: 0\r\n", b""),
            501,
        ),
    ],
)
def test_a_malformed_head_gets_one_answer_and_the_end(
    server: SteppedServer, admission: SmallAdmission, data: bytes, status: int
) -> None:
    """A malformed request gets one response with `close`, and ends only its own connection."""
    client = server.connect(data + GET)
    answer = server.response(client)

    assert (status, True, "application/problem+json") == (
        answer.status, answer.closes, answer.fields["content-type"],
    )  # fmt: skip
    assert is_closed(server, client)
    assert [("", status)] == admission.noted
    assert 200 == server.exchange(server.connect(), GET).status


def test_a_refusal_to_head_has_no_body(server: SteppedServer) -> None:
    """A refusal of a HEAD request has a request ID and no body."""
    server.admission.by_head["acme"] = lambda: FORBIDDEN  # type: ignore[attr-defined]
    head = post(b"abc").replace(b"POST", b"HEAD")
    client = server.connect()

    answers = [server.exchange(client, head), server.exchange(client, GET)]

    assert [403, 200] == [answer.status for answer in answers]
    assert "key" == answers[0].fields["x-why"]
    assert 32 == len(answers[0].fields["x-request-id"])


def test_a_refusal_of_a_browser_is_a_page(server: SteppedServer) -> None:
    """A refusal by the server is an HTML page if the request prefers HTML."""
    server.admission.by_head["acme"] = lambda: FORBIDDEN  # type: ignore[attr-defined]
    browser = post(b"abc", b"Accept: text/html, */*;q=0.8")

    answer = server.exchange(server.connect(), browser)

    assert (403, "text/html; charset=utf-8") == (answer.status, answer.fields["content-type"])
    assert answer.fields["x-request-id"].encode() in answer.body


# -- time limits -----------------------------------------------------------------------------------


def test_an_incomplete_head_gets_408(server: SteppedServer) -> None:
    """At its time limit, a client with half a head gets 408, and the connection closes."""
    client = server.connect(GET[:20])
    server.check_in(HEAD_TIMEOUT_S - 1)
    before = len(server.connections)
    server.check_in(HEAD_TIMEOUT_S + 1)

    assert (1, 408, True) == (before, (answer := server.response(client)).status, answer.closes)


def test_drips_do_not_prolong_a_head(server: SteppedServer) -> None:
    """A client that sends its head byte by byte gets no additional time."""
    client = server.connect(GET[:1])
    [connection] = server.connections
    deadline = connection.deadline
    for number in range(1, 20):
        client.sendall(GET[number : number + 1])
        server.step_until(lambda number=number: len(connection.buffer) == number + 1)  # type: ignore[misc]

    assert deadline == connection.deadline


@pytest.mark.parametrize("before", [b"", GET])
def test_a_silent_connection_is_closed(server: SteppedServer, before: bytes) -> None:
    """At its time limit, a new or idle connection is closed without a response."""
    client = server.connect(before)
    if before:
        server.response(client)

    server.check_in(server.worker.cfg.keepalive + 1)

    assert is_closed(server, client)


def test_a_lingering_connection_is_closed(server: SteppedServer) -> None:
    """A client that keeps its side open after the last response is closed soon."""
    client = server.connect(b"nonsense\r\n\r\n")
    server.response(client)
    before = len(server.connections)

    server.check_in(LINGER_S + 0.1)

    assert (1, 0) == (before, len(server.connections))


def test_a_lingering_connection_is_drained_within_bounds(
    server: SteppedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a client sends after the last response is dropped, up to a bound."""
    monkeypatch.setattr(response, "LINGER_BYTES", 100_000)
    client = server.connect(b"nonsense\r\n\r\n")
    server.response(client)
    client.sendall(b"x" * 90_000)
    server.step_until(lambda: server.connections[0].drained_bytes == 90_000)

    client.sendall(b"x" * 20_000)

    server.step_until(lambda: not server.connections)


def test_a_slow_body_gets_408(server: SteppedServer) -> None:
    """A body must arrive at a minimum speed; each kilobyte gives its client a second."""
    client = server.connect(post(b"x" * 10_240, size=100_000))
    server.step_until(lambda: server.connections[0].moved_bytes >= 0 and bool(
        server.connections[0].exchange and server.connections[0].exchange.body
    ))  # fmt: skip
    client.sendall(b"x" * 10_240)
    server.step_until(lambda: server.connections[0].moved_bytes == 10_240)
    server.check_in(PATIENCE_S + 9)
    before = len(server.connections)
    server.check_in(PATIENCE_S + 11)

    assert (1, 408, True) == (before, (answer := server.response(client)).status, answer.closes)


def test_a_running_request_has_no_time_limit_of_the_client() -> None:
    """After a client has caught up with a response, its running request has no time limit."""
    go_on, is_read = threading.Event(), threading.Event()

    def streaming(_: object, start_response: Callable[..., object]) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", str(8 << 20))])
        yield b"x" * (4 << 20)
        is_read.set()
        go_on.wait(DEADLINE_S)
        yield b"x" * (4 << 20)

    with stepping(streaming, _Threaded()) as slow:
        client = slow.connect(GET)
        slow.step_until(is_read.is_set)
        slow.check_in(1000.0)
        during = len(slow.connections)
        go_on.set()

        assert (1, 8 << 20) == (during, len(slow.response(client).body))


class _Threaded(SmallAdmission):
    """Lets every request run in a thread of its own."""

    def enter(self, environ: Any) -> Any:
        """Return a token for a request that is likely to take long."""
        token = super().enter(environ)
        if token is not None:
            token.is_quick = False
        return token


# -- a full worker ---------------------------------------------------------------------------------


def test_a_full_worker_closes_its_idlest_connections() -> None:
    """Without room, the worker closes connections that have been idle for a second."""
    with stepping(echo, worker_connections=2) as server:
        idle = server.connect()
        server.connect()
        is_accepting = server.loop._acceptor.is_accepting
        server.check_in(CLOSE_IDLE_AFTER_S / 2)
        kept = len(server.connections)
        server.check_in(CLOSE_IDLE_AFTER_S)
        server.check_in(CLOSE_IDLE_AFTER_S)

        assert (False, 2, 0) == (is_accepting, kept, len(server.connections))
        assert is_closed(server, idle)
        assert 200 == server.exchange(server.connect(), GET).status


def test_a_full_worker_closes_slow_bodies_of_the_greatest_tenant() -> None:
    """Without idle connections, a connection of the tenant with the most slow clients is closed."""
    with stepping(echo, SmallAdmission(), worker_connections=3) as server:
        slow = [server.connect(post(b"x", size=9)) for _ in range(2)]
        other = server.connect(post(b"x", path=b"/globex/x", size=2))
        server.check_in(CLOSE_IDLE_AFTER_S)

        assert [True, True] == [is_closed(server, client) for client in slow]
        assert b"POST /globex/x xy" == server.exchange(other, b"y").body


def test_a_response_of_a_full_worker_makes_room_for_another_client() -> None:
    """Without room for a new connection, the worker closes each connection after its response."""
    with stepping(echo, worker_connections=2) as server:
        server.connect()
        response = server.exchange(server.connect(), GET)
        server.step_until(lambda: server.loop._acceptor.is_accepting)

        assert "close" == response.fields["connection"]


def test_a_worker_without_descriptors_closes_its_idlest_connections(
    server: SteppedServer,
) -> None:
    """If file descriptors run out, the worker closes idle connections to accept new clients."""
    silent = server.connect()
    server.loop._acceptor._lacks_until = server.loop.now + 2 * CLOSE_IDLE_AFTER_S

    server.check_in(1.5 * CLOSE_IDLE_AFTER_S)

    assert is_closed(server, silent)


def test_a_worker_with_room_keeps_silent_connections(server: SteppedServer) -> None:
    """Below its limit of connections, a worker gives a slow client the full time."""
    server.connect(GET[:5])

    server.check_in(CLOSE_IDLE_AFTER_S)

    assert 1 == len(server.connections)


# -- bodies ----------------------------------------------------------------------------------------


def test_a_body_arrives_before_its_request_runs(server: SteppedServer) -> None:
    """A request with a body runs when the whole body has been received."""
    client = server.connect(post(b"ab", size=4))
    server.step()
    before = server.connections[0].exchange

    assert before is not None
    assert before.record is None
    assert b"POST /acme/x abcd" == server.exchange(client, b"cd").body


def test_a_chunked_body_arrives_byte_by_byte(server: SteppedServer) -> None:
    """The app gets the decoded bytes of a chunked body, however the body is cut."""
    client = server.connect(CHUNKED_HEAD)
    for byte in b"5;ext=1\r\nhello\r\n1\r\n!\r\n0\r\nX-Trailer: 1\r\n\r":
        client.sendall(bytes([byte]))
        server.step()

    assert b"POST /acme/x hello!" == server.exchange(client, b"\n").body


def test_the_app_sees_a_plain_length() -> None:
    """A chunked body reaches the app with its length, and without a transfer coding."""
    seen: list[Any] = []

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        seen.extend([environ["CONTENT_LENGTH"], environ.get("HTTP_TRANSFER_ENCODING")])
        start_response("204 No Content", [])
        return []

    with stepping(app) as server:
        server.response(server.connect(CHUNKED_HEAD + b"3\r\nabc\r\n0\r\n\r\n"))

    assert ["3", None] == seen


def test_a_large_body_is_read_into_a_file_and_freed(admission: SmallAdmission) -> None:
    """A body of 2 MiB arrives completely, and its memory is free after the request."""
    budget, body = SpoolBudget(), bytes(range(256)) * 8192
    with stepping(echo, admission, budget=budget) as server:
        client = server.connect(post(size=len(body)))
        sending = threading.Thread(target=client.sendall, args=(body,))
        sending.start()
        server.step_until(lambda: not sending.is_alive())
        answer = server.response(client)
        sending.join()

        assert body == answer.body.removeprefix(b"POST /acme/x ")
        assert ({}, {}) == (budget.memory._used, budget.disk._used)


def test_an_unread_body_keeps_the_connection() -> None:
    """A body that the app does not read is not taken for the next request."""

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "3")])
        return [environ["REQUEST_METHOD"].encode()[:3]]

    with stepping(app) as server:
        client = server.connect(post(GET) + GET)
        answers = [server.response(client) for _ in range(2)]

    assert [(b"POS", False), (b"GET", False)] == [(one.body, one.closes) for one in answers]


def test_an_incomplete_body_gets_400(server: SteppedServer) -> None:
    """If a client ends its side within the body, the request does not run."""
    client = server.connect(post(b"ab", size=4))
    client.shutdown(socket.SHUT_WR)

    assert 400 == (answer := server.response(client)).status
    assert answer.closes


@pytest.mark.parametrize(
    ("chunks", "status"),
    [(b"x\r\n", 400), (b"3\r\nabcd\r\n", 400), (b"0\r\nHost: b\r\n\r\n", 400), (b"9\r\n", 413)],
)
def test_a_malformed_chunked_body_gets_one_answer(
    server: SteppedServer, admission: SmallAdmission, chunks: bytes, status: int
) -> None:
    """A chunked body that is malformed or too large gets one answer, and the connection ends."""
    admission.max_bytes = 8
    client = server.connect(CHUNKED_HEAD + chunks + GET)
    answer = server.response(client)

    assert (status, True) == (answer.status, answer.closes)
    assert is_closed(server, client)


# -- the decision on the head ----------------------------------------------------------------------


def test_a_client_is_told_to_continue_after_the_verdict(server: SteppedServer) -> None:
    """With a good head, 100 Continue comes at once, and then the answer to the body."""
    client = server.connect(post(b"", b"Expect: 100-continue", size=3))
    server.step_until(lambda: server._has_answered(client))
    interim = client.recv(len(CONTINUE))

    assert (CONTINUE, b"POST /acme/x abc") == (interim, server.exchange(client, b"abc").body)


def test_a_client_that_sends_its_body_at_once_is_not_told_to_continue(
    server: SteppedServer,
) -> None:
    """If the body arrives with the head, 100 Continue is left out (RFC 9110 §10.1.1)."""
    client = server.connect(post(b"abc", b"Expect: 100-continue"))

    assert 200 == server.response(client).status


@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize("expect", [(), (b"Expect: 100-continue",)])
def test_a_refused_head_gets_only_the_refusal(
    server: SteppedServer, admission: SmallAdmission, is_slow: bool, expect: tuple[bytes, ...]
) -> None:
    """A refused client gets no 100 Continue, and the head says that the connection ends."""
    admission.by_head["acme"] = lambda: FORBIDDEN
    admission.slow = {"acme"} if is_slow else set()
    client = server.connect(post(b"", *expect, size=100_000))
    answer = server.response(client)

    assert (403, True, [("acme", 403)]) == (answer.status, answer.closes, admission.noted)
    assert is_closed(server, client)


def test_a_refused_body_that_is_here_keeps_the_connection(
    server: SteppedServer, admission: SmallAdmission
) -> None:
    """A refused client whose body has already been received keeps its connection."""
    admission.by_head["acme"] = lambda: FORBIDDEN
    client = server.connect(post(b"abc") + GET)
    answers = [server.response(client) for _ in range(2)]

    assert [(403, False), (200, False)] == [(one.status, one.closes) for one in answers]


def test_a_slow_verdict_waits_in_a_thread(server: SteppedServer, admission: SmallAdmission) -> None:
    """While a head check waits in a thread, the leader serves other clients."""
    go_on = threading.Event()
    admission.slow = {"slow"}
    admission.by_head["slow"] = lambda: (go_on.wait(DEADLINE_S) and None) or None
    waiting = server.connect(post(b"abc", path=b"/slow/x"))

    during = server.exchange(server.connect(), GET).status
    go_on.set()

    assert (200, b"POST /slow/x abc") == (during, server.response(waiting).body)
    assert 4 == len(admission._free)


def test_a_verdict_that_fails_costs_its_connection(
    server: SteppedServer, admission: SmallAdmission, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in a head check, on any thread, ends the connection and is logged once."""
    admission.by_head["slow"] = lambda: pytest.fail("planted")
    for slow in (set[str](), {"slow"}):
        admission.slow = slow
        client = server.connect(post(b"abc", path=b"/slow/x"))
        assert is_closed(server, client)

    assert ["worker.connection_failed"] * 2 == [one.message for one in caplog.records]
    assert 4 == len(admission._free)
    assert 200 == server.exchange(server.connect(), GET).status


# -- the budget ------------------------------------------------------------------------------------


def test_a_body_waits_for_room_in_the_budget(admission: SmallAdmission) -> None:
    """If the budget is used up, the server stops reading until a part of the budget is free."""
    budget = SpoolBudget(memory_bytes=100, disk_bytes=100)
    with stepping(echo, admission, budget=budget) as server:
        assert budget.memory.take("other", 40)
        assert budget.disk.take("other", 40)
        client = server.connect(post(b"x" * 50))
        server.step_until(lambda: bool(server.connections[0].exchange.waits_for_room_since))  # type: ignore[union-attr]
        server.check_in(1.0)
        before = server.connections[0].mask
        budget.disk.give_back("other", 40)
        server.check_in(2.0)

        assert (0, 200) == (before, server.response(client).status)


def test_a_body_that_finds_no_room_gets_503(admission: SmallAdmission) -> None:
    """After `ROOM_TIMEOUT_S`, a waiting body gets 503 with `Retry-After` and `close`."""
    budget = SpoolBudget(memory_bytes=100, disk_bytes=100)
    with stepping(echo, admission, budget=budget) as server:
        client = server.connect(post(b"x" * 90))
        server.step_until(lambda: bool(server.connections[0].exchange.waits_for_room_since))  # type: ignore[union-attr]
        server.check_in(ROOM_TIMEOUT_S - 1)
        before = len(admission.noted)
        server.check_in(ROOM_TIMEOUT_S + 1)
        answer = server.response(client)

        assert (0, 503, "1", True) == (
            before, answer.status, answer.fields["retry-after"], answer.closes,
        )  # fmt: skip
        assert ({}, {}) == (budget.memory._used, budget.disk._used)


# -- waiting for a turn ----------------------------------------------------------------------------


@pytest.fixture(name="busy")
def _busy(admission: SmallAdmission) -> list[Any]:
    """Take all request slots of the fixture `server`, and return the tokens."""
    return [admission.enter({}) for _ in range(4)]


def test_a_request_waits_for_a_place_without_a_thread(
    server: SteppedServer, admission: SmallAdmission, busy: list[Any]
) -> None:
    """When another request ends, the waiting request runs."""
    client = server.connect(GET)
    server.step()
    before = len(server.protocol.turns._queue.tenants)
    admission.leave(busy.pop())
    server.loop.check_at = 0.0

    assert (1, 200) == (before, server.response(client).status)


@pytest.mark.usefixtures("busy")
def test_a_request_that_waits_too_long_gets_503(
    server: SteppedServer, admission: SmallAdmission
) -> None:
    """After `WAIT_S`, a request gets 503 and keeps its connection, unless its body is missing."""
    client = server.connect(GET)
    server.check_in(WAIT_S + 0.1)
    answer = server.response(client)

    assert (503, False, "1") == (answer.status, answer.closes, answer.fields["retry-after"])
    assert [("acme", 503)] == admission.noted


def test_a_request_whose_tenant_is_found_while_it_waits_keeps_its_body(
    server: SteppedServer, admission: SmallAdmission
) -> None:
    """A POST that arrives before its tenant is known reaches the app with its whole body."""
    enter, found = admission.enter, threading.Event()

    def enter_found(environ: Any) -> Any:
        if not found.is_set():
            return None
        environ[TENANT] = "acme"
        return enter(environ)

    admission.enter = enter_found  # type: ignore[method-assign]
    admission.reads_body = lambda environ: TENANT in environ  # type: ignore[method-assign]
    client = server.connect(post(b"abc"))
    server.step()
    found.set()
    server.loop.check_at = 0.0

    assert b"POST /acme/x abc" == server.response(client).body


def test_a_page_of_the_host_waits_for_no_other_path(
    server: SteppedServer, admission: SmallAdmission
) -> None:
    """`/-/livez` is answered while a request for an unknown path waits."""
    enter = admission.enter

    def enter_known(environ: Any) -> Any:
        return None if environ["PATH_INFO"] == "//stray" else enter(environ)

    admission.enter = enter_known  # type: ignore[method-assign]
    server.connect(GET.replace(b"/acme/x", b"//stray"))
    server.step()

    assert 200 == server.response(server.connect(GET.replace(b"/acme/x", b"//livez"))).status
    assert [""] == [*server.protocol.turns.waiting]
    server.protocol.turns._queue.tenants.clear()


def test_a_tenant_at_its_maximum_gets_503_at_once(
    server: SteppedServer, admission: SmallAdmission
) -> None:
    """A request above `MAX_CONCURRENT_REQUESTS` neither waits nor runs."""
    enter = admission.enter

    def enter_over(environ: Any) -> Any:
        token = enter(environ)
        assert token is not None
        token.is_over = True
        admission.leave(token)
        return token

    admission.enter = enter_over  # type: ignore[method-assign]

    clients = [server.connect(GET), server.connect(post(b"x"))]

    assert [503, 503] == [server.response(client).status for client in clients]
    assert [("acme", 503)] * 2 == admission.noted


@pytest.mark.usefixtures("busy")
def test_a_full_wait_queue_refuses_at_once(server: SteppedServer) -> None:
    """A tenant with `MAX_WAITING` waiting requests gets 503 for the next request."""
    server.connect(GET)
    waiting = server.protocol.turns._queue.tenants
    waiting["acme"] *= MAX_WAITING

    assert 503 == server.response(server.connect(GET)).status
    waiting.clear()


def test_later_requests_of_a_tenant_do_not_overtake(
    server: SteppedServer, admission: SmallAdmission, busy: list[Any]
) -> None:
    """While a request of a tenant waits, a later one of the same tenant waits behind it."""
    seen: list[str] = []
    enter = admission.enter

    def note(environ: Any) -> Any:
        token = enter(environ)
        if token is not None:
            seen.append(environ["PATH_INFO"])
        return token

    admission.enter = note  # type: ignore[method-assign]
    clients = [server.connect(GET.replace(b"/x", b"/%d" % number)) for number in range(3)]
    while busy:
        admission.leave(busy.pop())
    late = server.connect(GET.replace(b"/x", b"/3"))
    answers = [server.response(client).body for client in (*clients, late)]

    assert [b"GET /acme/%d " % number for number in range(4)] == answers
    assert [f"/acme/{number}" for number in range(4)] == seen


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        "heads.next_request",
        "turns.take",
        "responses._after",
        "responses._finish",
        "bodies._feed",
        "responses.drain",
    ],
)
def test_a_fault_in_a_step_costs_one_connection(
    server: SteppedServer,
    admission: SmallAdmission,
    step: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An exception in any step ends one connection, with one log line that has the stack."""
    other = server.connect()
    with monkeypatch.context() as patched:

        def fail(*_: object) -> None:
            raise ZeroDivisionError("planted")

        part, _, method = step.partition(".")
        patched.setattr(getattr(server.protocol, part), method, fail)
        patched.setitem(server.protocol.ready, LINGERING, server.protocol.responses.drain)  # type: ignore[misc]
        is_drain = method == "drain"
        client = server.connect((b"nonsense\r\n\r\n" if is_drain else post(b"abc")) + b"more")
        if is_drain:
            client.sendall(b"more")
        server.step_until(lambda: 1 == len(server.connections))
    client.close()

    [record] = caplog.records
    assert ("worker.connection_failed", ZeroDivisionError) == (
        record.message, record.exc_info and record.exc_info[0],
    )  # fmt: skip
    assert 4 == len(admission._free)
    assert 200 == server.exchange(other, GET).status


def test_a_fault_at_a_time_limit_costs_one_connection(
    server: SteppedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception at one connection's time limit does not affect the limits of others."""
    for _ in range(3):
        server.connect(GET[:5])
    first = server.connections[0]
    reject = server.protocol.heads.reject

    def fail_first(connection: Any, error: Any) -> None:
        if connection is first:
            raise ZeroDivisionError("planted")
        reject(connection, error)

    monkeypatch.setattr(server.protocol.heads, "reject", fail_first)
    server.check_in(HEAD_TIMEOUT_S + 1)
    server.check_in(HEAD_TIMEOUT_S + LINGER_S + 2)

    assert [] == server.connections
    assert ["worker.connection_failed"] == [one.message for one in caplog.records]


def test_a_client_that_leaves_costs_no_log_line(
    server: SteppedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that disconnects at any point leaves neither a connection nor a log line behind."""
    for data in (b"", GET[:5], GET, post(b"a", size=3), post(b"", b"Expect: 100-continue", size=3)):
        client = server.connect(data)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        server.step_until(lambda: not server.connections)

    assert [] == caplog.records


# -- hooks, `max_requests` and the end -------------------------------------------------------------


def test_hooks_and_access_log_of_gunicorn_are_called() -> None:
    """The hooks see each request and its response; an exception in a hook is only logged."""
    seen: list[Any] = []

    def pre(_: object, request: Any) -> None:
        seen.append((request.method, request.uri, request.path, request.query, request.version))

    def post_hook(_: object, request: Any, environ: Any, response: Any) -> None:
        seen.append((request.path, environ["PATH_INFO"], response.status, response.sent))
        raise ZeroDivisionError

    with stepping(echo, hooks=(pre, post_hook, False)) as server:
        answer = server.response(server.connect(GET.replace(b"/x", b"/x?y=1")))

    assert [
        ("GET", "/acme/x?y=1", "/acme/x", "y=1", (1, 1)),
        ("/acme/x", "/acme/x", "200 OK", 12),
    ] == seen
    assert 200 == answer.status


def test_gunicorns_access_log_gets_each_request() -> None:
    """Gunicorn's access log gets the response with its bytes, the request and the time."""
    logged: list[Any] = []

    class Log(logging.Logger):
        def access(self, response: Any, request: Any, environ: Any, took: Any) -> None:
            logged.append((response.status, response.sent, dict(response.headers), request.path,
                           environ["PATH_INFO"], took.total_seconds() >= 0))  # fmt: skip

    with stepping(echo, hooks=(None, None, True)) as server:
        server.worker.log = Log("access")
        server.response(server.connect(GET))

    assert [("200 OK", 12, {"Content-Length": "12"}, "/acme/x", "/acme/x", True)] == logged


def test_a_worker_ends_after_max_requests() -> None:
    """The worker is told to stop when it has begun `max_requests` requests."""
    with stepping(echo, max_requests=2) as server:
        client = server.connect()
        ended = [(server.exchange(client, GET).status, server.worker.has_ended) for _ in range(2)]

    assert [(200, False), (200, True)] == ended


def test_a_stopping_worker_serves_what_is_on_its_way(server: SteppedServer) -> None:
    """After a stop, a kept connection serves one more request, whose response says `close`."""
    kept, silent = server.connect(), server.connect()
    server.exchange(kept, GET)
    server.protocol.must_stop = True
    server.check_in(0.0)
    ended = server.protocol.has_ended
    answer = server.exchange(kept, GET)
    server.step_until(lambda: 1 == len(server.connections) or is_closed(server, kept))
    server.check_in(STOP_KEEPALIVE_S + LINGER_S + 1)

    assert (False, 200, True) == (ended, answer.status, answer.closes)
    assert is_closed(server, silent)
    assert server.protocol.has_ended


def test_a_worker_without_keepalive_closes_each_connection() -> None:
    """With `keepalive = 0`, each response says `close`."""
    with stepping(echo, keepalive=0) as server:
        assert server.response(server.connect(GET)).closes


def test_checks_go_to_the_worker(server: SteppedServer) -> None:
    """The loop calls `on_check` of the worker regularly, even without requests."""
    before = server.worker.checks
    server.check_in(10.0)

    assert before + 1 == server.worker.checks


# -- PROXY lines -----------------------------------------------------------------------------------

PROXY = b"PROXY TCP4 192.0.2.7 192.0.2.1 1234 80\r\n"


def address(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
    """Answer with the client's address."""
    answer = f"{environ['REMOTE_ADDR']}:{environ['REMOTE_PORT']}".encode()
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]


def test_a_proxy_line_holds_for_its_connection() -> None:
    """All requests of a connection have the address of its PROXY line."""
    with stepping(address, proxy_mode="v1") as server:
        client = server.connect(PROXY[:10])
        first = server.exchange(client, PROXY[10:] + GET)
        second = server.exchange(client, GET)

    assert [b"192.0.2.7:1234"] * 2 == [first.body, second.body]


def test_a_proxy_line_of_a_stranger_is_refused() -> None:
    """A PROXY line of a peer outside of `proxy_allow_ips` gets 403."""
    with stepping(address, proxy_mode="v1", trusted="192.0.2.9") as server:
        assert 403 == server.response(server.connect(PROXY + GET)).status


# -- threads ---------------------------------------------------------------------------------------


def test_long_requests_run_in_other_threads() -> None:
    """A request that is likely to take long does not keep the leader from other requests."""
    go_on, ran = threading.Event(), []

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        ran.append(threading.current_thread())
        if environ["PATH_INFO"] == "/acme/slow":
            go_on.wait(DEADLINE_S)
        start_response("200 OK", [("Content-Length", "0")])
        return []

    with stepping(app, _Threaded()) as server:
        slow = server.connect(GET.replace(b"/x", b"/slow"))
        wait_until(lambda: 1 == len(ran))
        quick = server.exchange(server.connect(), GET).status
        go_on.set()

        assert [200, 200] == [quick, server.response(slow).status]
        assert threading.current_thread() not in ran
