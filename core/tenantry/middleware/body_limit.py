"""Body limit: refuses request bodies over a tenant's `MAX_CONTENT_LENGTH`.

An app never gets a truncated body. Without the limit, Werkzeug 3.1.9 on gunicorn 27.0.1 truncates
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

from tenantry.http.environ import RATE_HEADERS
from tenantry.http.problem import ProblemResponse, Refusal

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

TOO_LARGE = ProblemResponse(
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body of this request is larger than allowed here."
)
BAD_LENGTH = ProblemResponse(HTTPStatus.BAD_REQUEST, "The Content-Length is not a number.")
BAD_BODY = ProblemResponse(
    HTTPStatus.BAD_REQUEST, "The body of this request is malformed or incomplete."
)

INPUT_TERMINATED = "wsgi.input_terminated"
"""Key of the WSGI environ with which a server promises that the stream of the body ends."""

MEMORY_BYTES = 512 << 10
"""Maximum size in bytes of a chunked body in memory. A larger chunked body goes to a temporary
file."""

_READ_BYTES = 64 << 10
_LENGTH = re.compile(r"[0-9]{1,18}")


class BodyLimit:
    """Head check: a body over `max_bytes` gets 413. Thread-safe.

    A body with a `Content-Length` streams to the app. The layer around the app reads a body of
    unknown length completely before the call of the app.
    """

    __slots__ = ("_max_bytes",)

    is_quick = True

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes

    def refuse(self, environ: "WSGIEnvironment") -> Refusal | None:
        """Return the response to a request with an invalid or too large length, or None."""
        declared = environ.get("CONTENT_LENGTH") or "0"
        if not _LENGTH.fullmatch(declared):
            problem = BAD_LENGTH
        elif int(declared) > self._max_bytes:
            problem = TOO_LARGE
        else:
            return None
        return problem, environ.get(RATE_HEADERS, [])

    def read_first(
        self, app: "WSGIApplication", environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Read a body of unknown length, and call the app with the body's `Content-Length`."""
        source, left_bytes = environ["wsgi.input"], self._max_bytes + 1
        with ExitStack() as opened:
            try:
                start = _read(source, min(_READ_BYTES, left_bytes))
                if start:  # without a body, no file is opened
                    body = opened.enter_context(SpooledTemporaryFile(MEMORY_BYTES))
                    size = body.write(start) + _copy(source, body, left_bytes - len(start))
            except ClientDisconnected:
                return BAD_BODY(environ, start_response)
            if not start:
                return app(environ, start_response)
            if size > self._max_bytes:
                return TOO_LARGE(environ, start_response)
            body.seek(0)
            environ["wsgi.input"], environ["CONTENT_LENGTH"] = body, str(size)
            environ.pop("HTTP_TRANSFER_ENCODING", None)
            response = ClosingIterator(app(environ, start_response), body.close)
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
    except Exception as error:  # each server has its own classes for disconnects and bad chunks
        raise ClientDisconnected from error
