"""An app gets a whole request body within the limit, or the client gets 413."""

import io
import logging
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import IO, Any

import pytest
from flask import Flask, request, stream_with_context
from gunicorn.http.errors import ChunkMissingTerminator, InvalidChunkSize, NoMoreData
from werkzeug.test import Client, TestResponse

from tenantry.middleware.body_limit import MEMORY_BYTES, BodyLimit
from tenantry.middleware.containment import Containment
from tenantry.middleware.head_checks import HeadChecks

App = Callable[..., Any]

LIMIT = 20
FORM = "application/x-www-form-urlencoded"


def flask_app(limit: int = LIMIT) -> Flask:
    """Return an app that reads the body in one of the usual ways and answers with the size."""
    app = Flask("tenant.acme")
    app.config["MAX_CONTENT_LENGTH"] = limit

    @app.post("/<reader>")
    def read(reader: str) -> str:
        return str(READERS[reader]())

    @app.post("/streams")
    def stream() -> Iterator[bytes]:
        return stream_with_context(part for part in iter(lambda: request.stream.read(3), b""))

    @app.post("/ignores")
    def ignore() -> str:
        return "not read"

    return app


def limited(app: App, max_bytes: int = LIMIT) -> HeadChecks:
    """Return an app behind a limit of the body, without other checks."""
    return HeadChecks(app, "acme", [], BodyLimit(max_bytes))


READERS: dict[str, Callable[[], int]] = {
    "get_data": lambda: len(request.get_data()),
    "form": lambda: sum(len(key) + 1 + len(value) for key, value in request.form.items()),
    "json": lambda: len(request.get_json(force=True)) + 2,
    "read": lambda: len(request.stream.read()),
    "parts": lambda: sum(len(part) for part in iter(lambda: request.stream.read(3), b"")),
    "lines": lambda: sum(len(line) for line in request.stream),
}


def body_of(reader: str, size_bytes: int) -> bytes:
    """Return a body of that size in the form that the view reads."""
    if reader == "form":
        return b"a=" + b"x" * (size_bytes - 2)
    return b'"' + b"x" * (size_bytes - 2) + b'"'


def post(
    app: App, path: str, body: bytes | io.RawIOBase, *, length: str | None = None
) -> TestResponse:
    """Send a POST as gunicorn does: with the given `Content-Length`, or chunked if None."""
    environ = {
        "CONTENT_TYPE": FORM,
        "CONTENT_LENGTH": length or "",
        "HTTP_TRANSFER_ENCODING": "" if length else "chunked",
        "wsgi.input": io.BytesIO(body) if isinstance(body, bytes) else body,
        "wsgi.input_terminated": True,
    }
    contained = Containment(app, logging.getLogger("tenant.acme"))
    return Client(contained).post(f"/{path}", environ_overrides=environ, buffered=True)


def outcome(answer: TestResponse) -> tuple[int, str]:
    """Return the status, and the response's text or the title of its problem document."""
    if answer.mimetype == "application/problem+json":
        return answer.status_code, str(answer.get_json()["title"])
    return answer.status_code, answer.text


TOO_LARGE = (413, HTTPStatus.REQUEST_ENTITY_TOO_LARGE.phrase)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_a_body_of_exactly_the_limit_reaches_the_app_whole(reader: str, is_chunked: bool) -> None:
    """A body as large as the limit reaches the app complete, chunked or not."""
    length = None if is_chunked else str(LIMIT)

    answer = post(limited(flask_app()), reader, body_of(reader, LIMIT), length=length)

    assert (200, str(LIMIT)) == outcome(answer)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_one_byte_over_the_limit_is_413(reader: str, is_chunked: bool) -> None:
    """A body one byte over the limit gets 413 instead of reaching the app truncated."""
    length = None if is_chunked else str(LIMIT + 1)

    answer = post(limited(flask_app()), reader, body_of(reader, LIMIT + 1), length=length)

    assert TOO_LARGE == outcome(answer)


@pytest.mark.parametrize("path", ["ignores", "streams"])
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_a_body_over_the_limit_is_413_even_if_the_app_ignores_it(
    path: str, is_chunked: bool
) -> None:
    """The host answers 413 for apps that do not read the body, or that read during the response."""
    length = None if is_chunked else "21"

    answer = post(limited(flask_app()), path, b"x" * 21, length=length)

    assert TOO_LARGE == outcome(answer)


def test_a_chunked_body_streams_through_an_app_that_echoes_it() -> None:
    """An app that reads a chunked body while streaming the response gets the whole body."""
    answer = post(limited(flask_app()), "streams", b"x" * LIMIT)

    assert (200, "x" * LIMIT) == outcome(answer)


def test_a_large_chunked_body_is_closed_with_the_response() -> None:
    """A body too large for memory arrives whole; the temporary file closes with the response."""
    size = MEMORY_BYTES + 1
    bodies: list[IO[bytes]] = []

    def app(environ: dict[str, Any], start_response: App) -> Iterable[bytes]:
        bodies.append(environ["wsgi.input"])
        start_response("200 OK", [])
        return [str(len(environ["wsgi.input"].read())).encode()]

    answer = post(limited(app, size), "x", b"x" * size)

    assert ((200, str(size)), True) == (outcome(answer), bodies[0].closed)


def test_a_chunked_body_is_closed_when_the_app_fails() -> None:
    """The body's file is closed although the app raises."""
    bodies: list[IO[bytes]] = []

    def app(environ: dict[str, Any], _: object) -> Iterable[bytes]:
        bodies.append(environ["wsgi.input"])
        raise ValueError("no")

    answer = post(limited(app), "x", b"x")

    assert ((500, "Internal Server Error"), True) == (outcome(answer), bodies[0].closed)


class EndlessBody(io.RawIOBase):
    """A request body that never ends, and that counts the bytes that the app reads."""

    def __init__(self) -> None:
        self.read_bytes = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return as many bytes as requested."""
        assert size >= 0, "read without a bound"
        self.read_bytes += size
        return b"x" * size


def test_an_endless_body_is_read_to_the_limit_and_no_further() -> None:
    """The host reads one byte more than the limit from a body that never ends, then answers 413."""
    body = EndlessBody()

    answer = post(limited(flask_app()), "get_data", body)

    assert (TOO_LARGE, LIMIT + 1) == (outcome(answer), body.read_bytes)


@pytest.mark.parametrize("reader", READERS)
def test_a_body_that_ends_before_its_length_is_400(reader: str) -> None:
    """A body shorter than `Content-Length` gets 400, because the client disconnected too early."""
    answer = post(limited(flask_app()), reader, body_of(reader, 10), length="20")

    assert 400 == answer.status_code


@pytest.mark.parametrize(
    "error", [ChunkMissingTerminator(b"x"), InvalidChunkSize(b"zz"), NoMoreData()], ids=repr
)
def test_a_chunked_body_that_is_cut_is_400(error: Exception) -> None:
    """Malformed chunks and a client that leaves within a chunk get 400."""

    class Cut(io.RawIOBase):
        def read(self, _: int = -1, /) -> bytes:
            raise error

    answer = post(limited(flask_app()), "get_data", Cut())

    assert (400, "Bad Request") == outcome(answer)


@pytest.mark.parametrize("length", ["five", "-1", "+5", "5 ", "0x5", "5,5", "\u0665", "9" * 5000])
def test_an_invalid_content_length_is_400(length: str) -> None:
    """A `Content-Length` that is not a plain decimal number gets 400, whatever the server."""
    answer = post(limited(flask_app()), "ignores", b"12345", length=length)

    assert (400, "Bad Request") == outcome(answer)


@pytest.mark.parametrize(
    ("body", "length", "expected"),
    [
        (b"", None, (200, "0")),
        (b"", "0", (200, "0")),
        (b"x", None, TOO_LARGE),
        (b"x", "1", TOO_LARGE),
    ],
)
def test_a_limit_of_0_allows_empty_bodies_only(
    body: bytes, length: str | None, expected: tuple[int, str]
) -> None:
    """`MAX_CONTENT_LENGTH = 0` rejects every non-empty body.

    A limit of 0 does not mean "no limit".
    """
    answer = post(limited(flask_app(0), 0), "get_data", body, length=length)

    assert expected == outcome(answer)


def test_a_body_of_declared_length_is_read_by_the_app_only() -> None:
    """The host does not read a body with a `Content-Length` that the app ignores."""
    body = EndlessBody()

    answer = post(limited(flask_app()), "ignores", body, length="20")

    assert ((200, "not read"), 0) == (outcome(answer), body.read_bytes)


def test_a_body_of_unknown_length_counts_as_empty() -> None:
    """Without a length, on a server that does not end the stream, no byte is read (PEP 3333)."""
    body = EndlessBody()
    environ = {"CONTENT_LENGTH": "", "wsgi.input": body}

    answer = Client(limited(flask_app())).post("/get_data", environ_overrides=environ)

    assert ((200, "0"), 0) == (outcome(answer), body.read_bytes)
