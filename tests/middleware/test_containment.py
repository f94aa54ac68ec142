"""Whatever a tenant's app does, the server gets a whole response, a 500 or a cut connection."""

import contextvars
import decimal
import json
import logging
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import pytest

from tenantry.http.environ import REQUEST_ID
from tenantry.http.request_record import current_request
from tenantry.http.response_close import ResponseCutError
from tenantry.middleware.containment import Containment
from tenantry.middleware.log_context import LogContext

PLAIN = [("Content-Type", "text/plain")]

WHATEVER = [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), ValueError("no"), MemoryError()]

App = Callable[..., Any]
Head = tuple[str, list[tuple[str, str]]]


class Server:
    """A WSGI server without a network, which runs one request and keeps the response."""

    def __init__(self, app: App, method: str = "GET") -> None:
        self.heads: list[Head] = []
        self.chunks: list[bytes] = []
        environ = {"REQUEST_METHOD": method, "PATH_INFO": "/x", REQUEST_ID: "id-1"}
        contained = Containment(app, logging.getLogger("tenant.acme"))
        self.response: Any = contained(environ, self._start_response)

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: object = None
    ) -> Callable[[bytes], object]:
        assert exc_info is None
        self.heads.append((status, headers))
        return self.chunks.append

    def send(self) -> "Server":
        """Send every chunk, then close the response, as a server does."""
        try:
            self.chunks.extend(self.response)
        finally:
            self.response.close()
        return self

    @property
    def status(self) -> str:
        """The only status that the server has sent."""
        [(status, _)] = self.heads
        return status

    @property
    def body(self) -> bytes:
        """The bytes that were sent after the headers."""
        return b"".join(self.chunks)


class Body:
    """A body that raises each exception in the list of chunks and counts calls of `close()`."""

    def __init__(self, *chunks: object) -> None:
        self.chunks = iter(chunks)
        self.closed = 0

    def __iter__(self) -> "Body":
        return self

    def __next__(self) -> object:
        chunk = next(self.chunks)
        if isinstance(chunk, BaseException):
            raise chunk
        return chunk

    def close(self) -> None:
        """Count the calls."""
        self.closed += 1


def answering(
    *chunks: object, status: str = "200 OK", headers: list[tuple[str, str]] = PLAIN
) -> App:
    """Return an app that answers with the given chunks and raises exceptions among the chunks."""

    def app(_: object, start_response: App) -> Iterable[object]:
        start_response(status, list(headers))
        return Body(*chunks)

    return app


def is_internal_error(server: Server) -> bool:
    """Return whether the server sent exactly one response: the host's own complete 500."""
    [(status, headers)] = server.heads
    facts = dict(headers)
    document = json.loads(server.body)
    return (
        status == "500 Internal Server Error"
        and facts["Content-Type"] == "application/problem+json"
        and facts["Content-Length"] == str(len(server.body))
        and (document["status"], document["request_id"]) == (500, "id-1")
    )


def test_a_correct_response_passes_unchanged() -> None:
    """Status, headers and body of a correct app reach the server unchanged."""
    server = Server(answering(b"one", b"two")).send()

    assert [("200 OK", PLAIN)] == server.heads
    assert [b"one", b"two"] == server.chunks


@pytest.mark.parametrize("error", WHATEVER, ids=repr)
def test_an_exception_of_the_app_is_a_500(error: BaseException) -> None:
    """Any exception of the app's call, including `SystemExit`, becomes the host's 500."""

    def app(_: object, start_response: App) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        raise error

    server = Server(app).send()

    assert is_internal_error(server)


@pytest.mark.parametrize("error", WHATEVER, ids=repr)
def test_an_exception_of_iter_is_a_500(error: BaseException) -> None:
    """Any exception of `iter(body)` becomes the host's 500, and the body is closed."""

    class Broken(Body):
        def __iter__(self) -> "Body":
            raise error

    body = Broken()

    def app(_: object, start_response: App) -> Iterable[object]:
        start_response("200 OK", PLAIN)
        return body

    server = Server(app).send()

    assert is_internal_error(server)
    assert 1 == body.closed


@pytest.mark.parametrize("error", WHATEVER, ids=repr)
def test_an_exception_before_the_first_byte_is_a_500(
    error: BaseException,
) -> None:
    """An exception after only empty chunks becomes a 500, because no header has been sent."""
    server = Server(answering(b"", b"", error)).send()

    assert is_internal_error(server)


@pytest.mark.parametrize("error", WHATEVER, ids=repr)
def test_an_exception_after_the_first_byte_cuts_the_connection(
    error: BaseException,
) -> None:
    """Once bytes are sent, only a cut connection shows that the response is incomplete."""
    server = Server(answering(b"one", error, b"two"))

    with pytest.raises(ResponseCutError):
        server.send()

    assert ("200 OK", [b"one"]) == (server.status, server.chunks)


@pytest.mark.parametrize("error", WHATEVER, ids=repr)
def test_an_exception_of_close_is_logged_and_suppressed(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception of `close()` is logged once, and the response stays complete."""

    class Broken(Body):
        def close(self) -> None:
            raise error

    def app(_: object, start_response: App) -> Iterable[object]:
        start_response("200 OK", PLAIN)
        return Broken(b"one")

    server = Server(app).send()

    assert ("200 OK", b"one") == (server.status, server.body)
    assert [("request.failed", "close")] == [
        (r.getMessage(), r.__dict__["during"]) for r in caplog.records
    ]


def test_the_apps_close_runs_once() -> None:
    """If the server closes a response twice, the app's `close()` runs once."""
    body = Body(b"one")

    def app(_: object, start_response: App) -> Iterable[object]:
        start_response("200 OK", PLAIN)
        return body

    server = Server(app).send()
    server.response.close()

    assert 1 == body.closed


def test_an_unread_body_is_closed() -> None:
    """The body is closed if the client leaves before the first byte."""
    body = Body(b"one")

    def app(_: object, start_response: App) -> Iterable[object]:
        start_response("200 OK", PLAIN)
        return body

    server = Server(app)
    server.response.close()

    assert (1, []) == (body.closed, server.heads)


@pytest.mark.parametrize(
    "body",
    [None, 7, "text", ["text"], [bytearray(b"x")], [None], [b"", None, b"x"]],
    ids=repr,
)
def test_a_body_that_is_not_an_iterable_of_bytes_is_a_500(body: object) -> None:
    """A body that PEP 3333 does not allow becomes a 500 instead of an error in the server."""

    def app(_: object, start_response: App) -> object:
        start_response("200 OK", PLAIN)
        return body

    server = Server(app).send()

    assert is_internal_error(server)


def test_an_empty_body_is_a_response() -> None:
    """For a body without a byte, the headers are sent at the end of the body."""
    server = Server(answering(b"", status="302 Found", headers=[("Location", "/x/")])).send()

    assert [("302 Found", [("Location", "/x/")])] == server.heads
    assert [] == server.chunks


def test_start_response_may_follow_empty_chunks() -> None:
    """An app may call `start_response` as late as before the first non-empty chunk (PEP 3333)."""

    def late(_environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        yield b""
        start_response("200 OK", [])
        yield b"one"

    server = Server(late).send()

    assert ([("200 OK", [])], [b"one"]) == (server.heads, server.chunks)


@pytest.mark.parametrize("body", [[], [b"one"]], ids=repr)
def test_an_app_that_never_calls_start_response_gets_a_500(
    body: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """A body without `start_response` becomes a 500, and the log gives the reason."""
    server = Server(lambda _environ, _start_response: body).send()

    assert is_internal_error(server)
    assert "start_response was not called" in caplog.text


def test_an_app_that_calls_start_response_twice_gets_a_500() -> None:
    """A second `start_response` without `exc_info` becomes a 500."""

    def app(_: object, start_response: App) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        start_response("201 Created", PLAIN)
        return [b"one"]

    server = Server(app).send()

    assert is_internal_error(server)


def test_exc_info_replaces_headers_that_are_not_sent() -> None:
    """Until the first byte is sent, `exc_info` lets a second `start_response` replace the first."""

    def app(_: object, start_response: App) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        start_response("400 Bad Request", PLAIN, (ValueError, ValueError(), None))
        return [b"one"]

    server = Server(app).send()

    assert [("400 Bad Request", PLAIN)] == server.heads


def test_exc_info_cuts_the_connection_after_the_first_byte() -> None:
    """After the first byte, `start_response` raises the exception in `exc_info` (PEP 3333)."""
    seen: list[BaseException] = []

    def app(_: object, start_response: App) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"one"
        error = ValueError("late")
        try:
            start_response("500 Oh", PLAIN, (ValueError, error, None))
        except ValueError as raised:
            seen.append(raised)
            raise

    server = Server(app)

    with pytest.raises(ResponseCutError):
        server.send()

    assert ["late"] == [str(error) for error in seen]


_BAD_STATUSES = [
    *(
        "",
        "OK",
        "200OK",
        "20 OK",
        "2000 OK",
        "200 OK\r\nX: y",
        "200 \n",
        "\uff1200 OK",
        "200 \u2713",
    ),
    *("100 Continue", "101 Switching Protocols", "600 No", "000 No"),
    *(200, b"200 OK", None),
]


@pytest.mark.parametrize("status", _BAD_STATUSES, ids=repr)
def test_an_invalid_or_interim_status_is_a_500(status: Any) -> None:
    """A status line that is malformed or has an interim code is never sent."""
    server = Server(answering(b"one", status=status)).send()

    assert is_internal_error(server)


@pytest.mark.parametrize("status", ["200 OK", "200", "200 ", "404 Not Found", "599 Sch\xf6n"])
def test_a_status_with_or_without_a_reason_passes(status: str) -> None:
    """The reason phrase may be empty (RFC 9112 §4)."""
    server = Server(answering(b"one", status=status)).send()

    assert status == server.status


@pytest.mark.parametrize(
    "header",
    [
        ("X-A", "a\r\nSet-Cookie: session=evil"),
        ("X-A", "a\nb"),
        ("X-A", "a\x00b"),
        ("X-A", "caf\u0113"),
        ("X-A", 7),
        ("X A", "a"),
        ("X-A:", "a"),
        ("", "a"),
        (b"X-A", b"a"),
        ("Content-Length", "five"),
        ("Content-Length", "-1"),
        ("Content-Length", "٣"),
        ("Content-Length", "9" * 5000),
        ("X-A", "a", "b"),
        None,
    ],
    ids=lambda header: repr(header)[:40],
)
def test_an_invalid_header_is_a_500(header: Any) -> None:
    """A header with a line break, a wrong type or an invalid length is never sent."""
    server = Server(answering(b"one", headers=[header])).send()

    assert is_internal_error(server)


def test_two_different_content_lengths_are_a_500() -> None:
    """Two different lengths would allow response splitting, so such a response becomes a 500."""
    lengths = [("Content-Length", "3"), ("content-length", "4")]
    server = Server(answering(b"one", headers=lengths)).send()

    assert is_internal_error(server)


def test_changing_the_header_list_later_has_no_effect() -> None:
    """The checked headers are sent, although the app changes the list after `start_response`."""

    def app(_: object, start_response: App) -> Iterable[bytes]:
        headers = list(PLAIN)
        start_response("200 OK", headers)
        headers.append(("X-A", "a\r\nb"))
        return [b"one"]

    server = Server(app).send()

    assert [("200 OK", PLAIN)] == server.heads


@pytest.mark.parametrize("name", ["Transfer-Encoding", "Connection", "Keep-Alive", "Upgrade"])
def test_hop_by_hop_headers_are_removed(name: str) -> None:
    """Hop-by-hop headers that an app copied from another response are removed."""
    server = Server(answering(b"one", headers=[*PLAIN, (name, "chunked")])).send()

    assert [("200 OK", PLAIN)] == server.heads


def test_a_body_shorter_than_its_length_cuts_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A body shorter than its length cuts the connection, so no proxy adds other bytes."""
    server = Server(answering(b"one", headers=[("Content-Length", "5")]))

    with pytest.raises(ResponseCutError):
        server.send()

    assert [("response.body_too_short", 2)] == [
        (r.getMessage(), r.__dict__["missing_bytes"]) for r in caplog.records
    ]


@pytest.mark.parametrize("chunks", [[b"onetwo"], [b"on", b"etwo"], [b"one", b"two", b"three"]])
def test_a_body_longer_than_its_length_is_truncated(
    chunks: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """A proxy would take the extra bytes for the next response, so they are not sent."""
    server = Server(answering(*chunks, headers=[("Content-Length", "3")])).send()

    assert b"one" == server.body
    assert ["response.body_too_long"] == [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified", "200 OK"])
def test_a_response_without_a_body_may_declare_any_length(method: str, status: str) -> None:
    """Responses to HEAD, 204 and 304 have no body, whatever length the app declares."""
    chunks = [b"hello"] if (method, status) == ("GET", "200 OK") else []
    headers = [("Content-Length", "5")]

    server = Server(answering(*chunks, status=status, headers=headers), method).send()

    assert ([(status, headers)], chunks) == (server.heads, server.chunks)


@pytest.mark.parametrize(("method", "status"), [("HEAD", "200 OK"), ("GET", "204 No Content")])
def test_a_body_that_is_not_allowed_is_dropped(method: str, status: str) -> None:
    """The body of a 204 or of a response to HEAD is dropped, so no proxy reads it as a response."""
    server = Server(answering(b"one", b"two", status=status), method).send()

    assert (status, []) == (server.status, server.chunks)


def test_a_failed_head_request_gets_a_500_without_a_body() -> None:
    """The host's own 500 for a HEAD request has no body."""
    server = Server(answering(ValueError("no")), "HEAD").send()

    assert ("500 Internal Server Error", b"") == (server.status, server.body)


def test_written_and_yielded_bytes_keep_their_order() -> None:
    """Bytes passed to `write()` are sent in order with those that the body yields."""

    def app(_: object, start_response: App) -> Iterable[bytes]:
        write = start_response("200 OK", PLAIN)
        write(b"1")
        write(b"")
        write(b"2")

        def body() -> Iterator[bytes]:
            yield b"3"
            write(b"4")
            yield b"5"
            write(b"6")

        return body()

    server = Server(app).send()

    assert [b"1", b"2", b"3", b"4", b"5", b"6"] == server.chunks


def test_written_bytes_are_not_sent_if_the_call_fails() -> None:
    """An app that raises after calling `write()` gets a 500, because nothing has been sent yet."""

    def app(_: object, start_response: App) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)(b"half")
        raise ValueError("no")

    server = Server(app).send()

    assert is_internal_error(server)


def test_the_headers_are_sent_with_the_first_byte() -> None:
    """The headers go out with the first byte of the body, not with an empty chunk."""
    server = Server(answering(b"", b"one"))
    before = list(server.heads)

    next(server.response)

    assert ([], [("200 OK", PLAIN)]) == (before, server.heads)


_variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")


def test_a_request_leaves_nothing_in_the_thread() -> None:
    """The next request does not see context variables and decimal precision of an earlier one."""

    def app(_: object, start_response: App) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        seen = f"{_variable.get()} {decimal.getcontext().prec}"
        _variable.set("secret of acme")
        decimal.getcontext().prec = 3
        return [seen.encode()]

    first, second = Server(app).send(), Server(app).send()

    assert (b"default 28", b"default 28") == (first.body, second.body)
    assert ("default", 28) == (_variable.get(), decimal.getcontext().prec)


def test_body_and_close_run_in_the_context_of_the_call() -> None:
    """A context variable that the app's call sets is seen by the body's iteration and `close()`."""
    seen: list[str] = []

    class VariableBody(Body):
        def __next__(self) -> object:
            seen.append(_variable.get())
            return super().__next__()

        def close(self) -> None:
            seen.append(_variable.get())

    def app(_: object, start_response: App) -> Iterable[object]:
        start_response("200 OK", PLAIN)
        _variable.set("acme's")
        return VariableBody(b"one")

    Server(app).send()

    assert ["acme's"] * 3 == seen


def test_two_responses_on_one_thread_keep_their_contexts() -> None:
    """A thread that reads two bodies alternately keeps their context variables apart."""

    def app_of(name: str) -> App:
        def app(_: object, start_response: App) -> Generator[bytes]:
            start_response("200 OK", PLAIN)
            _variable.set(name)
            yield b"head "
            yield _variable.get().encode()

        return app

    acme, globex = Server(app_of("acme")).response, Server(app_of("globex")).response

    parts = [next(acme), next(globex), next(acme), next(globex)]

    assert [b"head ", b"head ", b"acme", b"globex"] == parts


@pytest.mark.parametrize("during", ["call", "body", "close"])
def test_the_log_line_has_stack_tenant_and_request(
    during: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure is one line on the tenant's logger: stack, tenant, request ID, method and path."""
    merged: list[tuple[str, str]] = []

    class Spy(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            context = current_request.get()
            assert context is not None
            merged.append((context.tenant, context.request_id))
            return bool(record)

    class Broken(Body):
        def close(self) -> None:
            if during == "close":
                raise ValueError("the reason")

    def app(_: object, start_response: App) -> Any:
        if during == "call":
            raise ValueError("the reason")
        start_response("200 OK", PLAIN)
        return Broken(ValueError("the reason") if during == "body" else b"one")

    spy = Spy()
    logger = logging.getLogger("tenant.acme")
    logger.addFilter(spy)
    try:
        Server(LogContext(app, "acme")).send()
    finally:
        logger.removeFilter(spy)

    [record] = caplog.records
    facts = record.__dict__
    assert (during, "GET", "/x") == (facts["during"], facts["method"], facts["path"])
    assert "ValueError: the reason" in caplog.text
    assert "test_containment.py" in caplog.text
    assert [("acme", "id-1")] == merged


def test_a_failing_log_filter_does_not_prevent_the_500() -> None:
    """If a tenant's own filter on the tenant's logger raises, the client still gets the 500."""

    def broken(_: logging.LogRecord) -> bool:
        raise SystemExit(3)

    logger = logging.getLogger("tenant.acme")
    logger.addFilter(broken)
    try:
        server = Server(answering(ValueError("no"))).send()
    finally:
        logger.removeFilter(broken)

    assert is_internal_error(server)


def test_an_endless_recursion_is_a_500() -> None:
    """An app that exceeds the recursion limit gets a 500, and the limit stays the same."""

    def app(environ: object, start_response: App) -> object:
        return app(environ, start_response)

    limit = sys.getrecursionlimit()
    server = Server(app).send()

    assert is_internal_error(server)
    assert limit == sys.getrecursionlimit()
