"""Measures every request, whoever answers it: the outermost layer of the host. Knows WSGI only.

Outermost, so that what is refused on the way to an app is counted too: by the mount (maintenance,
a failed build) and by each layer around the app. A request is counted once, when the server closes
its body, also if that was streamed, cut or failed.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any

from core.ledger import Ledger
from core.problem import REFUSED, TENANT
from core.visit import VISIT, Visit

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_FAILED = "5"


class Metering:
    """WSGI middleware: counts each request for its tenant in the ledger. Safe in any thread.

    The tenant is known when the request has reached its mount, which writes it into the environ;
    a request that reached none is nobody's.
    """

    def __init__(self, app: "WSGIApplication", ledger: Ledger) -> None:
        self._app = app
        self.ledger = ledger

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer as the app does."""
        response = _Metered(self, environ, start_response)
        try:
            response.take(self._app(environ, response.start))
        except BaseException:
            response.close()
            raise
        return response


class _Metered:
    """One response, and what it takes, from the call to the server's `close()`."""

    __slots__ = (
        "_begun_ns", "_body", "_environ", "_input", "_next", "_open", "_processor_ns",
        "_start_response", "_status", "_thread", "_visit", "bytes_out",
    )  # fmt: skip

    def __init__(
        self, metering: Metering, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> None:
        self._open = [metering]  # taken by who closes first
        self._environ = environ
        self._start_response = start_response
        self._status = ""
        self._body: Iterable[bytes] = ()
        self.bytes_out = 0
        self._visit = environ[VISIT] = Visit()
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

    def take(self, body: Iterable[bytes]) -> None:
        self._body = body
        self._next = iter(body).__next__

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = self._next()
        self.bytes_out += len(chunk)
        return chunk

    def close(self) -> None:
        try:
            metering = self._open.pop()  # atomic: of two that close it, one counts it
        except IndexError:
            return
        try:
            getattr(self._body, "close", _nothing)()
        finally:
            self._count(metering)

    def _count(self, metering: Metering) -> None:
        environ = self._environ
        tenant = environ.get(TENANT)
        if tenant is None:
            return
        wall_ns = time.perf_counter_ns() - self._begun_ns
        is_same = self._thread == threading.get_ident()  # or the clock is another thread's
        is_refused = REFUSED in environ
        metering.ledger.note_request(
            tenant,
            not is_refused and self._status[:1] == _FAILED,
            is_refused,
            0 if self._input is None else self._input.size,
            self.bytes_out,
            wall_ns,
            time.thread_time_ns() - self._processor_ns if is_same else 0,
        )


def _nothing() -> None:
    """Stand in for the `close` of a body that has none."""


class _Input:
    """A request's body that counts what is read of it."""

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

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
