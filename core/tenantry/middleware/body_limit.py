"""Body limit: refuses request bodies over a tenant's `MAX_CONTENT_LENGTH`.

An app never gets a truncated body. Without this layer, Werkzeug 3.1.9 on gunicorn 27.0.1 truncates
a chunked body at `MAX_CONTENT_LENGTH`, and any body when the client disconnects, so the app takes a
truncated body for complete. Werkzeug also refuses a body of exactly `MAX_CONTENT_LENGTH` bytes if
the app reads the body in parts.
"""

import re
from collections.abc import Iterable
from contextlib import ExitStack
from http import HTTPStatus
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING

from werkzeug.exceptions import ClientDisconnected
from werkzeug.wsgi import ClosingIterator

from tenantry.http.problem import ProblemResponse

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

TOO_LARGE = ProblemResponse(
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body of this request is larger than allowed here."
)
BAD_LENGTH = ProblemResponse(HTTPStatus.BAD_REQUEST, "The Content-Length is not a number.")
BAD_BODY = ProblemResponse(
    HTTPStatus.BAD_REQUEST, "The body of this request is malformed or incomplete."
)

MEMORY_BYTES = 512 << 10
"""Maximum size of a chunked body in memory. A larger chunked body goes to a temporary file."""

_READ_BYTES = 64 << 10
_LENGTH = re.compile(r"[0-9]{1,18}")
_TERMINATED = "wsgi.input_terminated"


class BodyLimit:
    """WSGI middleware: a body over `max_bytes` gets 413. Thread-safe.

    A body with a `Content-Length` streams to the app. `BodyLimit` reads a chunked body completely
    before the call of the app, and gives the app the body with a `Content-Length`.
    """

    __slots__ = ("_app", "_max_bytes")

    def __init__(self, app: "WSGIApplication", max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Refuse the request, or call the app with a body of known length."""
        # With the key `wsgi.input_terminated`, Werkzeug reads up to the end of the stream instead
        # of the declared length. Without the key, reading an incomplete body raises an error.
        is_terminated = environ.pop(_TERMINATED, False)
        declared = environ.get("CONTENT_LENGTH") or ""
        if declared:
            if not _LENGTH.fullmatch(declared):
                return BAD_LENGTH(environ, start_response)
            if int(declared) > self._max_bytes:
                return TOO_LARGE(environ, start_response)
        elif is_terminated:
            return self._read_first(environ, start_response)
        return self._app(environ, start_response)

    def _read_first(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        with ExitStack() as opened:
            body = opened.enter_context(SpooledTemporaryFile(MEMORY_BYTES))
            try:
                size = _copy(environ["wsgi.input"], body, self._max_bytes + 1)
            except ClientDisconnected:
                return BAD_BODY(environ, start_response)
            if size > self._max_bytes:
                return TOO_LARGE(environ, start_response)
            if not size:
                return self._app(environ, start_response)
            body.seek(0)
            environ["wsgi.input"], environ["CONTENT_LENGTH"] = body, str(size)
            environ.pop("HTTP_TRANSFER_ENCODING", None)
            response = ClosingIterator(self._app(environ, start_response), body.close)
            opened.pop_all()  # after this line, the response closes the body
            return response


def _copy(source: IO[bytes], target: IO[bytes], max_bytes: int) -> int:
    """Copy at most `max_bytes` bytes; return the number of copied bytes.

    Raises:
        ClientDisconnected: the body is incomplete or malformed.
    """
    size = 0
    while data := _read(source, min(_READ_BYTES, max_bytes - size)):
        size += target.write(data)
    return size


def _read(source: IO[bytes], size: int) -> bytes:
    try:
        return source.read(size)
    except Exception as error:  # the server's own exceptions: disconnected, or malformed chunks
        raise ClientDisconnected from error
