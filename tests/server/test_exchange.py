"""A request and its response: the head, the framing of the body, and faults of the app."""

import logging
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from servers import DEADLINE_S
from tenantry.http.environ import REQUEST_ID
from tenantry.http.request_head import Framing
from tenantry.http.response_close import ResponseCutError
from tenantry.server.connection import Connection, HijackableSocket
from tenantry.server.exchange import Exchange
from tenantry.server.serving import Serving
from tenantry.server.spool import SpoolBudget

App = Callable[..., Iterable[bytes]]
LOG = logging.getLogger("gunicorn.error")
FRAMING = Framing(0, is_kept_alive=True, expects_continue=False, is_http_1_0=False)


class Answered:
    """The response that a client gets, and the exchange after the response."""

    def __init__(self, app: App, **options: Any) -> None:
        server, client = socket.socketpair()
        server.setblocking(False)
        client.settimeout(DEADLINE_S)
        method = options.pop("method", "GET")
        keeps_alive = options.pop("keeps_alive", True)
        connection = Connection(server, None, None)
        environ = {"REQUEST_METHOD": method, "RAW_URI": "/x", REQUEST_ID: "id-1"}
        framing = FRAMING._replace(**options)
        serving = Serving(SpoolBudget(), keeps_alive=keeps_alive)
        self.exchange = Exchange(connection, environ, framing, serving)
        environ["gunicorn.socket"] = HijackableSocket(exchange=self.exchange)
        connection.exchange = self.exchange
        with server, client:
            self.exchange.respond(app, LOG)
            connection.close()
            data = client.makefile("rb").read()
        self.head, _, self.body = data.partition(b"\r\n\r\n")
        lines = self.head.decode("latin-1").split("\r\n")
        self.status_line, self.fields = lines[0], lines[1:]


def answering(
    *chunks: bytes, status: str = "200 OK", headers: Iterable[tuple[str, str]] = ()
) -> App:
    """Return an app that answers in chunks."""

    def app(_: object, start_response: Callable[..., object]) -> Iterable[bytes]:
        start_response(status, list(headers))
        return chunks

    return app


# -- the head --------------------------------------------------------------------------------------


def test_a_head_has_the_fields_of_the_app_and_of_the_server() -> None:
    """The server adds the date and the connection, and leaves the other fields unchanged."""
    headers = [
        ("Content-Length", "2"),
        ("x-Own", "a\xe4"),
        ("Set-Cookie", "a"),
        ("Set-Cookie", "b"),
    ]

    answered = Answered(answering(b"ab", headers=headers))

    date, *fields = answered.fields
    assert ("HTTP/1.1 200 OK", b"ab") == (answered.status_line, answered.body)
    assert date.startswith("Date: ")
    assert date.endswith(" GMT")
    assert [f"{name}: {value}" for name, value in headers] + ["Connection: keep-alive"] == fields
    assert (2, True) == (answered.exchange.sent_bytes, answered.exchange.is_kept_alive)


@pytest.mark.parametrize(
    "name",
    [*("Connection", "KEEP-ALIVE", "Transfer-Encoding", "te", "Trailer", "Upgrade", "date"),
     *("Proxy-Authenticate",)],
)  # fmt: skip
def test_fields_of_the_server_are_not_the_apps(name: str) -> None:
    """The app cannot set fields of the connection (PEP 3333)."""
    answered = Answered(answering(headers=[(name, "planted"), ("Content-Length", "0")]))

    assert "planted" not in answered.head.decode()


@pytest.mark.parametrize(
    ("options", "connection"),
    [
        ({}, "keep-alive"),
        ({"is_kept_alive": False}, "close"),
        ({"keeps_alive": False}, "close"),
    ],
)
def test_a_head_says_whether_the_connection_stays(options: Any, connection: str) -> None:
    """The connection stays open only if client and worker keep it."""
    answered = Answered(answering(headers=[("Content-Length", "0")]), **options)

    assert f"Connection: {connection}" == answered.fields[-1]


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("200 OK\r\nX: y", []),
        ("200 OK", [("X", "a\r\nSet-Cookie: b")]),
        ("200 OK", [("X", "a\nb")]),
        ("200 OK", [("X", "a\rb")]),
        ("200 OK", [("X", "a\x00b")]),
        ("200 OK", [("X\r\nY", "a")]),
        ("200 OK", [("X", "\u2028")]),
        ("200 OK", [("Content-Length", "many")]),
    ],
)
@pytest.mark.parametrize("more", [[], [("Content-Length", "2")]])
def test_a_head_with_forbidden_characters_becomes_a_500(
    caplog: pytest.LogCaptureFixture, status: str, headers: list[Any], more: list[Any]
) -> None:
    """An app cannot split its response; the client gets one complete 500 instead."""
    answered = Answered(answering(b"ab", status=status, headers=headers + more))

    assert "HTTP/1.1 500 Internal Server Error" == answered.status_line
    assert f"Content-Length: {len(answered.body)}" in answered.fields
    assert "X-Request-ID: id-1" in answered.fields
    assert b'"request_id": "id-1"' in answered.body
    assert ["Error handling request /x"] == [one.getMessage() for one in caplog.records]


# -- the body --------------------------------------------------------------------------------------


def test_a_body_of_unknown_length_is_chunked() -> None:
    """Without a length, each chunk of the app that is not empty is a chunk of the response."""
    answered = Answered(answering(b"", b"hello", b"", b"x" * 16))

    assert "Transfer-Encoding: chunked" in answered.fields
    assert b"5\r\nhello\r\n10\r\n" + b"x" * 16 + b"\r\n0\r\n\r\n" == answered.body
    assert (21, True) == (answered.exchange.sent_bytes, answered.exchange.is_kept_alive)


def test_an_empty_body_of_unknown_length_ends() -> None:
    """A chunked response without any bytes ends with the last chunk."""
    assert b"0\r\n\r\n" == Answered(answering()).body


def test_a_body_for_http_1_0_ends_with_the_connection() -> None:
    """A body of unknown length for an HTTP/1.0 client ends when the connection closes."""
    answered = Answered(answering(b"one", b"two"), is_http_1_0=True)

    assert (b"onetwo", "Connection: close") == (answered.body, answered.fields[-1])


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Same")]
)
def test_some_responses_have_no_body(method: str, status: str) -> None:
    """HEAD, 204 and 304 have no body, and their connection stays open (RFC 9110 §6.4.1)."""
    answered = Answered(answering(b"abc", status=status), method=method)

    assert (b"", 0, True) == (
        answered.body, answered.exchange.sent_bytes, answered.exchange.is_kept_alive,
    )  # fmt: skip
    assert not any(field.startswith("Transfer-Encoding") for field in answered.fields)


def test_a_response_to_head_may_tell_a_length() -> None:
    """A response to HEAD has the length that a GET would have."""
    answered = Answered(answering(headers=[("Content-Length", "5")]), method="HEAD")

    assert "Content-Length: 5" in answered.fields
    assert answered.exchange.is_kept_alive


def test_a_204_has_no_length() -> None:
    """A 204 with a length would make a client wait (RFC 9110 §8.6)."""
    headers = [("Content-Length", "5")]

    assert b"Content-Length" not in Answered(answering(status="204 None", headers=headers)).head


def test_bytes_beyond_the_length_are_dropped() -> None:
    """Bytes beyond the `Content-Length` are not sent, because they would look like a response."""
    answered = Answered(answering(b"abc", b"def", b"ghi", headers=[("Content-Length", "4")]))

    assert (b"abcd", True) == (answered.body, answered.exchange.is_kept_alive)


def test_a_short_body_ends_the_connection() -> None:
    """If an app sends fewer bytes than its `Content-Length`, the connection closes."""
    answered = Answered(answering(b"abc", headers=[("Content-Length", "4")]))

    assert (b"abc", False, True) == (
        answered.body, answered.exchange.is_kept_alive, answered.exchange.has_failed,
    )  # fmt: skip


def test_an_app_may_write() -> None:
    """Bytes that an app passes to `write` (PEP 3333) come before the bytes of the body."""

    def app(_: object, start_response: Callable[..., Any]) -> list[bytes]:
        write = start_response("200 OK", [("Content-Length", "6")])
        write(b"one")
        return [b"two"]

    assert b"onetwo" == Answered(app).body


# -- faults ----------------------------------------------------------------------------------------


class Body:
    """A response body that can raise, and that counts its closes."""

    def __init__(self, *chunks: bytes, raises: BaseException | None = None) -> None:
        self.closes = 0
        self._chunks, self._raises = chunks, raises

    def __iter__(self) -> Iterator[bytes]:
        """Yield the chunks, then raise."""
        yield from self._chunks
        if self._raises is not None:
            raise self._raises

    def close(self) -> None:
        """Count."""
        self.closes += 1


def giving(body: Body) -> App:
    """Return an app with the given body and a length of 100."""

    def app(_: object, start_response: Callable[..., object]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "100")])
        return body

    return app


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt()])
def test_a_failing_body_cuts_the_response(
    caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """After the head, an exception ends the connection, and the body is closed once."""
    body = Body(b"the beginning", raises=error)

    answered = Answered(giving(body))

    assert (b"the beginning", False, 1) == (
        answered.body, answered.exchange.is_kept_alive, body.closes,
    )  # fmt: skip
    assert 1 == len(caplog.records)


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), GeneratorExit()])
def test_an_app_that_raises_gets_a_500(
    caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """Before the head, the client gets a 500, and the log has the stack once."""

    def app(*_: object) -> Iterable[bytes]:
        raise error

    answered = Answered(app)

    assert "HTTP/1.1 500 Internal Server Error" == answered.status_line
    assert [True] == [bool(record.exc_info) for record in caplog.records]


def test_an_app_that_starts_no_response_gets_a_500(caplog: pytest.LogCaptureFixture) -> None:
    """A body without a call of `start_response` is a fault of the app."""
    answered = Answered(lambda *_: [b"abc"])

    assert ("HTTP/1.1 500 Internal Server Error", 1) == (
        answered.status_line, len(caplog.records),
    )  # fmt: skip


def test_an_app_may_replace_its_head_before_it_is_sent() -> None:
    """With `exc_info`, a second head replaces the first; without, it is a fault (PEP 3333)."""

    def replacing(_: object, start_response: Callable[..., object]) -> list[bytes]:
        start_response("200 OK", [])
        start_response("418 Teapot", [], (ValueError, ValueError(), None))
        return [b"x"]

    def repeating(_: object, start_response: Callable[..., object]) -> list[bytes]:
        start_response("200 OK", [])
        start_response("418 Teapot", [])
        return [b"x"]

    assert "HTTP/1.1 418 Teapot" == Answered(replacing).status_line
    assert "HTTP/1.1 500 Internal Server Error" == Answered(repeating).status_line


def test_an_app_cannot_replace_a_head_that_is_sent() -> None:
    """After the head, `exc_info` raises the app's own exception."""
    error = ValueError("late")
    seen: list[BaseException] = []

    def app(_: object, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "3")])(b"abc")
        try:
            start_response("500 Oh", [], (ValueError, error, None))
        except ValueError as caught:
            seen.append(caught)
        return []

    assert (b"abc", [error]) == (Answered(app).body, seen)


def test_a_cut_response_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A response that the layers cut ends the connection without another log line."""
    answered = Answered(giving(Body(b"x", raises=ResponseCutError("planted"))))

    assert (b"x", False, []) == (answered.body, answered.exchange.is_kept_alive, caplog.records)


def test_a_connection_error_of_the_app_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    """A `ConnectionError` from a connection that the app has opened becomes a 500."""

    def app(*_: object) -> Iterable[bytes]:
        raise ConnectionRefusedError("the database")

    assert "HTTP/1.1 500 Internal Server Error" == Answered(app).status_line
    assert 1 == len(caplog.records)


# -- a hijacked connection -------------------------------------------------------------------------


@pytest.mark.parametrize("end", [StopIteration, None])
def test_a_hijacked_connection_gets_nothing_more(
    caplog: pytest.LogCaptureFixture, end: type[BaseException] | None
) -> None:
    """After an app has taken over the socket, the server sends nothing and logs no exception."""

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        environ["gunicorn.socket"].sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\nframe")
        if end is not None:
            raise end
        start_response("200 OK", [])
        return [b"not sent"]

    answered = Answered(app)

    assert ("HTTP/1.1 101 Switching Protocols", b"frame") == (answered.status_line, answered.body)
    assert (True, False, []) == (
        answered.exchange.connection.is_hijacked, answered.exchange.is_kept_alive, caplog.records,
    )  # fmt: skip
