"""Whatever comes out of a tenant's app ends here: a WSGI middleware around each instance.

- Every exception, `SystemExit` and `KeyboardInterrupt` included, raised by the call, by the body
  or by its `close()`, is logged and becomes a 500, or a cut connection once the head is out:
  gunicorn's threaded worker stops the master on `SystemExit(3)`.
- Call, body and `close()` run in one copy of the thread's context, so that what a request leaves
  in context variables or in the decimal context is not seen by the next tenant on that thread.
- The head goes to the server with the first chunk of the body, checked: until then a failure can
  still be answered. A body shorter than its `Content-Length` cuts the connection, for otherwise
  a proxy would take the next response, of another tenant, for the rest of this one.
"""

import errno
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from core.problem import INTERNAL_ERROR

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_STATUS = re.compile(r"[1-9]\d\d(?: [\t\x20-\x7e\x80-\xff]*)?")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class ResponseCutError(ConnectionResetError):
    """Tells the server to close the connection: the response cannot be completed.

    A connection error, because gunicorn and waitress close on it without a second stack trace.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(errno.ECONNRESET, reason)


class Containment:
    """Runs one tenant's WSGI app; raises nothing but `ResponseCutError`. Safe in any thread."""

    def __init__(self, app: "WSGIApplication", logger: logging.Logger) -> None:
        self._app = app
        self._logger = logger

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Call the app in a context of its own; the response's `close()` ends it."""
        response = _Response(environ, start_response, self._logger)
        response.call(self._app)
        return response


class _Response:
    """One response from the app's call to the server's `close()`; used by one thread."""

    def __init__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse", logger: logging.Logger
    ) -> None:
        self._environ = environ
        self._start_response = start_response
        self._logger = logger
        self._context: Context = copy_context()
        self._head: tuple[str, list[tuple[str, str]]] | None = None
        self._is_head_sent = False
        self._chunks: Iterator[bytes] = iter(())
        self._close: Callable[[], object] | None = None
        self._written: list[bytes] = []
        self._left_bytes: int | None = None

    def call(self, app: "WSGIApplication") -> None:
        try:
            body = self._context.run(app, self._environ, self._start)
            self._close = getattr(body, "close", None)
            self._chunks = self._context.run(iter, body)
        except BaseException:  # noqa: BLE001 - a tenant's SystemExit must not stop the host
            self._fail("call")

    def _start(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: "OptExcInfo | None" = None,
        /,
    ) -> Callable[[bytes], object]:
        """Be the app's `start_response`: check the head and keep it (PEP 3333)."""
        if exc_info is not None and exc_info[1] is not None and self._is_head_sent:
            raise exc_info[1].with_traceback(exc_info[2])
        if self._head is not None and exc_info is None:
            raise RuntimeError("start_response was called twice")
        _check_head(status, headers)
        self._head = (status, headers)
        return self._written.append

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            chunk = self._next_chunk()
        except BaseException:  # noqa: BLE001 - a tenant's SystemExit must not stop the host
            return self._fail("body")
        if not self._is_head_sent:
            if self._head is None:
                return self._fail("head")
            self._send_head(*self._head)
        if chunk is None:
            self._check_length()
            raise StopIteration
        if self._left_bytes is not None:
            self._left_bytes -= len(chunk)
        return chunk

    def _next_chunk(self) -> bytes | None:
        """Return the next bytes, written or yielded; None at the end."""
        while True:
            if not self._written:
                chunk = self._context.run(next, self._chunks, None)
                if chunk is None:
                    return self._written.pop(0) if self._written else None
                self._written.append(chunk)  # behind what the app wrote while it made this one
            chunk = self._written.pop(0)
            if not isinstance(chunk, bytes):
                raise TypeError(f"the body has a {type(chunk).__name__}, expected bytes")
            if chunk:
                return chunk

    def _check_length(self) -> None:
        left, self._left_bytes = self._left_bytes, None
        if left is not None and left > 0:
            facts = self._facts() | {"missing_bytes": left}
            self._context.run(self._logger.error, "response.body_too_short", extra=facts)
            raise ResponseCutError("the body is shorter than its Content-Length")

    def _send_head(self, status: str, headers: list[tuple[str, str]]) -> None:
        self._is_head_sent = True
        self._left_bytes = _expected_bytes(self._environ["REQUEST_METHOD"], status, headers)
        self._start_response(status, headers)

    def _fail(self, where: str) -> bytes:
        """Log what is being handled; answer 500 while that is possible, cut the connection after.

        Raises:
            ResponseCutError: the head is out already.
        """
        facts = self._facts() | {"during": where}
        self._context.run(self._logger.exception, "request.failed", extra=facts)
        self._written.clear()
        self._chunks = iter(())
        self._left_bytes = None
        if self._is_head_sent:
            raise ResponseCutError("the application failed") from None
        body = INTERNAL_ERROR.body(self._environ)
        self._send_head(*INTERNAL_ERROR.head(len(body)))
        return body  # a server drops the body of an answer to HEAD

    def _facts(self) -> dict[str, Any]:
        return {"method": self._environ["REQUEST_METHOD"], "path": self._environ.get("PATH_INFO")}

    def close(self) -> None:
        """End the response: close the app's body, once however often the server calls it."""
        close, self._close = self._close, None
        if close is None:
            return
        try:
            self._context.run(close)
        except BaseException:  # noqa: BLE001 - a tenant's SystemExit must not stop the host
            facts = self._facts() | {"during": "close"}
            self._context.run(self._logger.exception, "request.failed", extra=facts)


def _check_head(status: Any, headers: Any) -> None:
    """Refuse what would be no HTTP, so that it fails in the tenant and not in the server."""
    if not isinstance(status, str) or not _STATUS.fullmatch(status):
        raise ValueError(f"no HTTP status line: {status!r}")
    for name, value in headers:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"no HTTP header name: {name!r}")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ValueError(f"the value of header {name!r} has characters that HTTP forbids")
        if name.lower() == "content-length" and not (value.isascii() and value.isdigit()):
            raise ValueError(f"the Content-Length is no number: {value!r}")


def _expected_bytes(method: str, status: str, headers: list[tuple[str, str]]) -> int | None:
    if method == "HEAD" or status[0] == "1" or status[:3] in ("204", "304"):
        return None  # RFC 9110 §6.4.1: these have no body, whatever they declare
    lengths = [int(value) for name, value in headers if name.lower() == "content-length"]
    return lengths[0] if lengths else None
