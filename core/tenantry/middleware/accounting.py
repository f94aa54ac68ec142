"""Measures every request, whoever answers it: the outermost layer of the host. Knows WSGI only.

Outermost, so that what is refused on the way to an app is counted too: by the mount (maintenance,
a failed build) and by each layer around the app. A request is counted once, when the server closes
its body, also if that was streamed, cut or failed.
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

    A mount writes its tenant into the environ. A request that reaches no mount is logged, but not
    counted.

    Args:
        app: the app to measure.
        usage: counts the requests of each tenant.
        on_request_end: called with the record of each request, to log it.
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
        """Answer as the app does."""
        response = _MeasuredResponse(self, environ, start_response)
        try:
            response.body = self._app(environ, response.start)
        except BaseException:
            response.is_broken = True
            response.close()
            raise
        return response


class _MeasuredResponse:
    """One response, and what it takes, from the call to the server's `close()`."""

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
        self._open = [accounting]  # taken by who closes first
        self._environ = environ
        self._start_response = start_response
        self._status = ""
        self.body: Iterable[bytes] = ()
        self.is_broken = False  # by the app: what the client got is not whole, whatever the status
        self._bytes_out = 0
        self._path: str = environ.get("PATH_INFO", "")  # on its way a mount divides it
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
        """Be the app's `start_response`."""
        self._status = status
        if exc_info is None:
            return self._start_response(status, headers)
        return self._start_response(status, headers, exc_info)

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self.body:
                self._bytes_out += len(chunk)
                yield chunk
        except Exception:  # not where the server gives up: that closes the generator
            self.is_broken = True
            raise

    def close(self) -> None:
        try:
            accounting = self._open.pop()  # atomic: of two that close it, one counts it
        except IndexError:
            return
        # The body knows `start` and so this object: left in a circle, it would wait for the garbage
        # collector, at 30 µs for each request.
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
        record.wall_ns = time.perf_counter_ns() - self._begun_ns
        if self._thread == threading.get_ident():  # else this is the clock of another thread
            record.processor_ns = time.thread_time_ns() - self._processor_ns
        if record.tenant:
            accounting.usage.add_request(record)
        if accounting.on_request_end is not None:
            record.request_id = environ.get(REQUEST_ID, "")
            record.method, record.path = environ["REQUEST_METHOD"], self._path
            record.endpoint = environ.get(ENDPOINT) or ""
            record.client = environ.get(CLIENT) or ""
            accounting.on_request_end(record)


def _nothing() -> None:
    """Stand in for the `close` of a body that has none."""


class _Input:
    """A request's body that counts what is read of it; it has what PEP 3333 asks for, no more."""

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
