"""What a request may cost before its tenant's app sees it: the size of its body.

Werkzeug 3.1.9 cuts a chunked body at `MAX_CONTENT_LENGTH` and lets the app answer 200; here it is
413, chunked or not, and an app never gets a cut body.
"""

import io
from collections.abc import Iterable
from http import HTTPStatus
from typing import IO, TYPE_CHECKING

from werkzeug.exceptions import RequestEntityTooLarge

from core.problem import ProblemAnswer

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

TOO_LARGE = ProblemAnswer(
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body of this request is larger than allowed here."
)
BAD_LENGTH = ProblemAnswer(HTTPStatus.BAD_REQUEST, "The Content-Length is no number.")


class BodyLimit:
    """WSGI middleware: a body over `max_bytes` gets 413. Safe in any thread."""

    def __init__(self, app: "WSGIApplication", max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Refuse by the declared length; without one, count what is read."""
        declared = environ.get("CONTENT_LENGTH") or ""
        if declared:
            if not (declared.isascii() and declared.isdigit()):
                return BAD_LENGTH(environ, start_response)
            if int(declared) > self._max_bytes:
                return TOO_LARGE(environ, start_response)
            return self._app(environ, start_response)
        body = environ["wsgi.input"] = _CountedBody(environ["wsgi.input"], self._max_bytes)
        response = self._app(environ, start_response)
        if not body.is_too_large:
            return response
        # The app caught the exception and answered something else.
        getattr(response, "close", lambda: None)()
        error = RequestEntityTooLarge()
        answer = TOO_LARGE.body(environ)
        start_response(*TOO_LARGE.head(len(answer)), (RequestEntityTooLarge, error, None))  # type: ignore[arg-type]
        return [answer]


class _CountedBody(io.RawIOBase):
    """A body of unknown length; reading more than `max_bytes` of it raises."""

    def __init__(self, stream: IO[bytes], max_bytes: int) -> None:
        self._stream = stream
        self._left = max_bytes
        self.is_too_large = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        data = self._stream.read(min(len(view), self._left)) if self._left else b""
        self._left -= len(data)
        # Asked as soon as the limit is reached, for Werkzeug stops reading there by itself.
        if self.is_too_large or (not self._left and self._stream.read(1)):
            self.is_too_large = True
            raise RequestEntityTooLarge
        view[: len(data)] = data
        return len(data)
