"""Accounting: the WSGI layer that measures every request.

`Accounting` is the outermost layer of the host, so `Accounting` also counts requests that a mount
or a layer refuses. A request counts once, when the server closes the body of the response, even if
the response is incomplete.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any

from tenantry.http.environ import CLIENT, ENDPOINT, REFUSED, REQUEST_ID, SENT_STATUS, TENANT
from tenantry.http.request_record import RequestRecord, open_record
from tenantry.observability.usage_counters import UsageCounters

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_FAILED = "5"

OnRequestEnd = Callable[[RequestRecord], object]


class Accounting:
    """WSGI middleware: counts and logs each request when it ends. Thread-safe.

    A mount writes the name of its tenant into the WSGI environ. A request that reaches no mount is
    logged, but not counted.

    Args:
        app: the app to measure.
        usage: counts the requests of each tenant.
        on_request_end: called with the record of each request, for the access log.
    """

    def __init__(
        self,
        app: "WSGIApplication",
        usage: UsageCounters,
        on_request_end: OnRequestEnd | None = None,
    ) -> None:
        self._app = app
        self.usage = usage
        self.on_request_end = on_request_end

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Call the app, and measure the app's response."""
        response = _MeasuredResponse(self, environ, start_response)
        try:
            response.body = self._app(environ, response.start)
        except BaseException:
            response.is_broken = True
            response.close()
            raise
        return response


class _MeasuredResponse:
    """One response, measured from the call of the app to the server's `close()`."""

    __slots__ = (
        "_begun_ns",
        "_bytes_out",
        "_environ",
        "_input",
        "_open",
        "_path",
        "_processor_ns",
        "_record",
        "_start_response",
        "_status",
        "_thread",
        "body",
        "is_broken",
    )  # fmt: skip

    def __init__(
        self, accounting: Accounting, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> None:
        self._open = [accounting]  # the first `close` removes the item
        self._environ = environ
        self._start_response = start_response
        self._status = ""
        self.body: Iterable[bytes] = ()
        self.is_broken = False  # the app raised, so the response is incomplete
        self._bytes_out = 0
        # The path before a mount changes `PATH_INFO`.
        self._path: str = environ.get("PATH_INFO", "")
        self._record = open_record(environ)
        self._input: _Input | None = None
        if environ.get("CONTENT_LENGTH", "0") not in ("", "0") or (
            "HTTP_TRANSFER_ENCODING" in environ
        ):
            self._input = environ["wsgi.input"] = _Input(environ["wsgi.input"])
        self._thread = threading.get_ident()
        self._begun_ns = time.perf_counter_ns()
        self._processor_ns = time.thread_time_ns()

    def start(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        """Record the status of the response. The app calls `start` as `start_response`."""
        self._status = status
        if exc_info is None:
            return self._start_response(status, headers)
        return self._start_response(status, headers, exc_info)

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self.body:
                self._bytes_out += len(chunk)
                yield chunk
        except Exception:  # a GeneratorExit means that the server has given up
            self.is_broken = True
            raise

    def close(self) -> None:
        try:
            accounting = self._open.pop()  # atomic, so that one of two calls counts the request
        except IndexError:
            return
        # The body refers to `start`, and so to the `_MeasuredResponse`. A reference cycle would
        # leave the response to the garbage collector, which takes 30 µs per request.
        body, self.body = self.body, ()
        try:
            getattr(body, "close", _nothing)()
        finally:
            self._finish(accounting)

    def _finish(self, accounting: Accounting) -> None:
        environ, record = self._environ, self._record
        record.tenant = environ.get(TENANT, "")
        if not record.tenant and accounting.on_request_end is None:
            return
        status = environ.get(SENT_STATUS) or self._status
        record.status = int(status[:3] or 0)
        record.is_refusal = REFUSED in environ
        record.is_error = self.is_broken or (not record.is_refusal and status[:1] == _FAILED)
        record.bytes_in = 0 if self._input is None else self._input.size
        record.bytes_out = self._bytes_out
        if self._thread == threading.get_ident():  # the CPU clock is the thread's own
            record.processor_ns = time.thread_time_ns() - self._processor_ns
        record.wall_ns = time.perf_counter_ns() - self._begun_ns
        if record.tenant:
            accounting.usage.add_request(record)
        if accounting.on_request_end is not None:
            record.request_id = environ.get(REQUEST_ID, "")
            record.method, record.path = environ["REQUEST_METHOD"], self._path
            record.endpoint = environ.get(ENDPOINT) or ""
            record.client = environ.get(CLIENT) or ""
            accounting.on_request_end(record)


def _nothing() -> None:
    """Do nothing, in place of the `close` of a body without a `close` method."""


class _Input:
    """A request body that counts the bytes read from it, with the methods of PEP 3333."""

    __slots__ = ("_stream", "size")

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.size = 0

    def read(self, *size: int) -> bytes:
        data = self._stream.read(*size)
        self.size += len(data)
        return data

    def readline(self, *size: int) -> bytes:
        line = self._stream.readline(*size)
        self.size += len(line)
        return line

    def readlines(self, hint: int = -1) -> list[bytes]:
        lines = self._stream.readlines(hint)
        self.size += sum(map(len, lines))
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")
