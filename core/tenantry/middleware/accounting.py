"""Measures every request, whoever answers it: the outermost layer of the host. Knows WSGI only.

Outermost, so that what is refused on the way to an app is counted too: by the mount (maintenance,
a failed build) and by each layer around the app. A request is counted once, when the server closes
its body, also if that was streamed, cut or failed.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any

from tenantry.http.environ import REFUSED, SENT_STATUS, TENANT
from tenantry.http.request_context import RequestContext, open_request_context
from tenantry.observability.usage_counters import UsageCounters

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_FAILED = "5"

NoteRequest = Callable[["WSGIEnvironment", RequestContext, str, str, int, int, int, int], None]
"""Takes the environ, the visit, the path as it came in, the status, bytes in and out, and the
nanoseconds that it took, on the clock and of the processor."""


class Accounting:
    """WSGI middleware: counts each request for its tenant in the ledger. Safe in any thread.

    The tenant is known when the request has reached its mount, which writes it into the environ;
    a request that reached none is nobody's.

    Args:
        app: what is measured.
        ledger: where it is counted.
        note: told of every request, a tenant's or not, when it has ended; None for nobody.
    """

    def __init__(
        self, app: "WSGIApplication", ledger: UsageCounters, note: "NoteRequest | None" = None
    ) -> None:
        self._app = app
        self.ledger = ledger
        self.note = note

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer as the app does."""
        response = _Metered(self, environ, start_response)
        try:
            response.body = self._app(environ, response.start)
        except BaseException:
            response.is_broken = True
            response.close()
            raise
        return response


class _Metered:
    """One response, and what it takes, from the call to the server's `close()`."""

    __slots__ = (
        "_begun_ns", "_bytes_out", "_environ", "_input", "_open", "_path", "_processor_ns",
        "_start_response", "_status", "_thread", "_visit", "body", "is_broken",
    )  # fmt: skip

    def __init__(
        self, metering: Accounting, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> None:
        self._open = [metering]  # taken by who closes first
        self._environ = environ
        self._start_response = start_response
        self._status = ""
        self.body: Iterable[bytes] = ()
        self.is_broken = False  # by the app: what the client got is not whole, whatever the status
        self._bytes_out = 0
        self._path: str = environ.get("PATH_INFO", "")  # on its way a mount divides it
        self._visit = open_request_context(environ)
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
            metering = self._open.pop()  # atomic: of two that close it, one counts it
        except IndexError:
            return
        # The body knows `start` and so this object: left in a circle, it would wait for the garbage
        # collector, at 30 µs for each request.
        body, self.body = self.body, ()
        try:
            getattr(body, "close", _nothing)()
        finally:
            self._count(metering)

    def _count(self, metering: Accounting) -> None:
        environ = self._environ
        tenant = environ.get(TENANT)
        status, bytes_out = environ.get(SENT_STATUS) or self._status, self._bytes_out
        bytes_in = 0 if self._input is None else self._input.size
        is_same = self._thread == threading.get_ident()  # or the clock is another thread's
        processor_ns = time.thread_time_ns() - self._processor_ns if is_same else 0
        wall_ns = time.perf_counter_ns() - self._begun_ns
        if tenant is not None:
            is_refused = REFUSED in environ
            is_error = self.is_broken or (not is_refused and status[:1] == _FAILED)
            metering.ledger.note_request(
                tenant, is_error, is_refused, bytes_in, bytes_out, wall_ns, processor_ns
            )
        if metering.note is not None:
            path, visit = self._path, self._visit
            metering.note(environ, visit, path, status, bytes_in, bytes_out, wall_ns, processor_ns)


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
