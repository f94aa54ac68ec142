"""What a request may cost before its tenant's app sees it: the size of its body.

An app never gets a cut body. Seen with Werkzeug 3.1.9 on gunicorn 27.0.1: a chunked body was cut at
`MAX_CONTENT_LENGTH`, and any body where the client left, and the app took it for whole; while a
body of exactly the limit was refused when it was read in parts.
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
BAD_LENGTH = ProblemResponse(HTTPStatus.BAD_REQUEST, "The Content-Length is no number.")
BAD_BODY = ProblemResponse(HTTPStatus.BAD_REQUEST, "The body of this request is malformed or cut.")

MEMORY_BYTES = 512 << 10
"""A chunked body beyond this goes to a temporary file; Werkzeug does so with a form's parts."""

_READ_BYTES = 64 << 10
_LENGTH = re.compile(r"[0-9]{1,18}")
_TERMINATED = "wsgi.input_terminated"


class BodyLimit:
    """WSGI middleware: a body over `max_bytes` gets 413. Safe in any thread.

    A body of declared length is judged by that and streams to the app; without one (chunked) it is
    read here, whole, and the app gets it with its length.
    """

    __slots__ = ("_app", "_max_bytes")

    def __init__(self, app: "WSGIApplication", max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Refuse the request, or pass it on with a body that has a length."""
        # Where the server says that it ends the stream, Werkzeug reads to that end, wherever it
        # is, instead of the declared length: without the word, a body that is cut raises.
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
            opened.pop_all()  # from here on the response closes it
            return response


def _copy(source: IO[bytes], target: IO[bytes], max_bytes: int) -> int:
    """Copy at most `max_bytes`; return how many.

    Raises:
        ClientDisconnected: the source ends before its end.
    """
    size = 0
    while data := _read(source, min(_READ_BYTES, max_bytes - size)):
        size += target.write(data)
    return size


def _read(source: IO[bytes], size: int) -> bytes:
    try:
        return source.read(size)
    except Exception as error:  # the server's own: the client left, or its chunks are none
        raise ClientDisconnected from error
