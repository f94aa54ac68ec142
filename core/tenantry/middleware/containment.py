"""Containment: the WSGI layer that keeps an app's exceptions and context from other tenants.

- The layer logs every exception from the app's call, body or `close()`, including `SystemExit` and
  `KeyboardInterrupt`. An exception becomes a 500, or a closed connection if the response head has
  been sent. Without `Containment`, `SystemExit(3)` stops gunicorn's master and all workers.
- The app's call, body and `close()` run in an empty `contextvars.Context`, so that the next request
  on the thread does not see context variables or a decimal context of an earlier request. A copy of
  the thread's context would share mutable objects such as decimal's.
- The validated status and headers go to the server with the first body chunk, so a failure before
  the first chunk becomes an error response.
- A body shorter than its `Content-Length` closes the connection, and a body longer than its
  `Content-Length` is cut. Otherwise, a proxy could mix the end of a response with the beginning of
  another tenant's response.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any
from wsgiref.util import is_hop_by_hop

from tenantry.http.environ import ENDPOINT, REQUEST_RECORD, matched_endpoint
from tenantry.http.problem import INTERNAL_ERROR
from tenantry.http.request_record import RequestRecord
from tenantry.http.response_close import ClosingBody, ResponseCutError

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_STATUS = re.compile(r"[2-5][0-9][0-9](?: [\t\x20-\x7e\x80-\xff]*)?")
"""The status line of a final response. After a 1xx, a client waits for another response (RFC 9110
§15.2)."""
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_LENGTH_DIGITS = 18
_LENGTH = re.compile(rf"[0-9]{{1,{_LENGTH_DIGITS}}}")
_END = object()
_NO_CHUNKS: Iterator[bytes] = iter(())
_BODILESS = ("204", "304")

_USUAL = frozenset({
    "Access-Control-Allow-Origin", "Cache-Control", "Content-Disposition", "Content-Type", "Date",
    "ETag", "Expires", "Last-Modified", "Link", "Location", "Set-Cookie", "Vary",
})  # fmt: skip
"""Common header names that are neither a length nor hop-by-hop, so need no further check."""


class Containment:
    """WSGI middleware around one tenant's app. Raises only `ResponseCutError`. Thread-safe."""

    __slots__ = ("_app", "_logger")

    def __init__(self, app: "WSGIApplication", logger: logging.Logger) -> None:
        self._app = app
        self._logger = logger

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Call the app, and later the body's `close()`, in an empty context."""
        return _Response(self._app, environ, start_response, self._logger)


class _Response(ClosingBody):
    """One response, from the call of the app to the server's `close()`. Not thread-safe."""

    __slots__ = (
        "_chunks", "_close", "_context", "_declared_bytes", "_environ", "_head", "_is_head_sent",
        "_left_bytes", "_logger", "_record", "_start_response", "_written",
    )  # fmt: skip

    def __init__(
        self,
        app: "WSGIApplication",
        environ: "WSGIEnvironment",
        start_response: "StartResponse",
        logger: logging.Logger,
    ) -> None:
        # Calling `super().__init__` would be one more call for each request.
        self.callbacks: list[Callable[[], object]] = []
        self._open = [True]
        self._environ = environ
        self._start_response = start_response
        self._logger = logger
        self._record: RequestRecord = environ.get(REQUEST_RECORD) or RequestRecord()
        self._context = Context()
        self._head: tuple[str, list[tuple[str, str]]] | None = None
        self._declared_bytes: int | None = None
        self._is_head_sent = False
        self._chunks: Iterator[bytes] = _NO_CHUNKS
        self._close: Callable[[], object] | None = None
        self._written: list[bytes] = []
        self._left_bytes: int | None = None
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
        """Check and keep the response head. The app calls this as `start_response` (PEP 3333)."""
        if exc_info is not None and exc_info[1] is not None and self._is_head_sent:
            raise exc_info[1].with_traceback(exc_info[2])
        if self._head is not None and exc_info is None:
            raise RuntimeError("start_response was called twice")
        self._environ[ENDPOINT] = matched_endpoint(self._environ)
        checked, self._declared_bytes = _checked(status, headers)
        # Copy the headers, because the app could change the list after the check.
        self._head = status, checked
        return self._written.append

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            chunk = self._next_chunk()
        except BaseException:  # noqa: BLE001 - a tenant's SystemExit must not stop the host
            self._fail("body")
            chunk = self._next_chunk()
        if not self._is_head_sent:
            assert self._head is not None  # noqa: S101 - `_next_chunk` raises without a head
            self._is_head_sent = True
            # A response to HEAD, a 204 and a 304 have no body, even with a `Content-Length`
            # (RFC 9110 §6.4.1).
            is_bodiless = self._environ["REQUEST_METHOD"] == "HEAD"
            is_bodiless = is_bodiless or self._head[0][:3] in _BODILESS
            self._left_bytes = 0 if is_bodiless else self._declared_bytes
            self._start_response(*self._head)
        left = self._left_bytes
        if left is not None:
            if len(chunk) > left:
                self._end_body()
            chunk = chunk[:left]
            self._left_bytes = left - len(chunk)
        if not chunk:
            if self._left_bytes:
                self._fail_short()
            raise StopIteration
        self._record.bytes_out += len(chunk)
        return chunk

    def _next_chunk(self) -> bytes:
        """Return the next bytes that the app wrote or yielded; empty at the end of the body."""
        written = self._written
        while True:
            if written:
                chunk: Any = written.pop(0)
            else:
                chunk = self._context.run(next, self._chunks, _END)
                if written:  # bytes that the app wrote during `next` come first
                    if chunk is not _END:
                        written.append(chunk)
                    continue
            part: bytes = b"" if chunk is _END else chunk
            if not isinstance(part, bytes):
                raise TypeError(f"the body has a {type(part).__name__}, expected bytes")
            if not part and chunk is not _END:
                continue
            if self._head is None:
                raise RuntimeError("start_response was not called")
            return part

    def _end_body(self) -> None:
        """Drop the bytes that the app sends beyond the `Content-Length`."""
        self._drop_body()
        if self._environ["REQUEST_METHOD"] != "HEAD":  # an app may send a body in response to HEAD
            self._log("response.body_too_long")

    def _fail_short(self) -> None:
        missing, self._left_bytes = self._left_bytes, None
        self._log("response.body_too_short", missing_bytes=missing)
        self._record.is_error = True
        raise ResponseCutError("the body is shorter than its Content-Length")

    def _drop_body(self) -> None:
        # Create a new list, because a thread of the app may still write to the old list.
        self._written = []
        self._chunks = iter(())

    def _fail(self, during: str) -> None:
        """Log the current exception, and replace the response with a 500.

        Raises:
            ResponseCutError: the head has already been sent, or the app uses the socket itself.
        """
        connection = self._record.connection
        if connection is not None and connection.is_hijacked:
            # Apps end a WebSocket with an exception, because they cannot return a response.
            raise ResponseCutError("the application has taken over the connection") from None
        self._log("request.failed", exc_info=True, during=during)
        self._drop_body()
        self._left_bytes = None
        if self._is_head_sent:
            self._record.is_error = True
            raise ResponseCutError("the application failed") from None
        status, headers, body = INTERNAL_ERROR.render(self._environ)
        self._head, self._declared_bytes = (status, headers), len(body)
        self._written.append(body)

    def _log(self, event: str, *, exc_info: bool = False, **facts: object) -> None:
        facts["method"] = self._environ["REQUEST_METHOD"]
        facts["path"] = self._environ.get("PATH_INFO")
        # The tenant's code can add a filter to the logger. If the filter fails, the log loses one
        # line.
        with suppress(BaseException):
            self._context.run(self._logger.error, event, exc_info=exc_info, extra=facts)

    def close_body(self) -> None:
        """Close the app's body."""
        close, self._close = self._close, None
        if close is None:
            return
        try:
            self._context.run(close)
        except BaseException:  # noqa: BLE001 - a tenant's SystemExit must not stop the host
            self._log("request.failed", exc_info=True, during="close")


def _checked(status: Any, headers: Any) -> tuple[list[tuple[str, str]], int | None]:
    """Return the headers of a valid response head, and the `Content-Length` or None.

    `_checked` drops hop-by-hop headers, which belong to the server (PEP 3333). An app that passes
    on another server's response often sends a hop-by-hop header, and `Transfer-Encoding` would
    corrupt the body.

    Raises:
        ValueError: the head is not valid HTTP. Without the check, the server would fail.
    """
    if not isinstance(status, str) or not _STATUS.fullmatch(status):
        raise ValueError(f"not an HTTP status line: {status!r}")
    kept: list[tuple[str, str]] = []
    lengths: list[str] = []
    for name, value in headers:
        if not isinstance(value, str) or not (
            (value.isascii() and value.isprintable()) or _VALUE.fullmatch(value)
        ):
            raise ValueError(f"the value of header {name!r} has characters that HTTP forbids")
        if name not in _USUAL:
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ValueError(f"not an HTTP header name: {name!r}")
            if is_hop_by_hop(name):
                continue
            if name.lower() == "content-length":
                lengths.append(value)
        kept.append((name, value))
    if len(lengths) == 1 and lengths[0].isdecimal() and lengths[0].isascii():
        return kept, int(lengths[0]) if len(lengths[0]) <= _LENGTH_DIGITS else _length(lengths)
    return kept, _length(lengths) if lengths else None


def _length(values: list[str]) -> int:
    """Return the common value of all `Content-Length` headers.

    Raises:
        ValueError: the values differ, or are not a number.
    """
    if len(set(values)) > 1 or not _LENGTH.fullmatch(values[0]):
        raise ValueError(f"the Content-Length is not one number: {', '.join(sorted(set(values)))}")
    return int(values[0])
