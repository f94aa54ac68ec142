"""Accounting: runs each routed request, and settles the record of the request exactly once.

`Accounting` is the outermost layer of the host, so `Accounting` also counts requests that a mount
or a layer refuses. A request counts once, when the server closes the body of the response, even if
the response is incomplete.

Tenantry's gunicorn worker admits a request before a thread runs it, and puts the request's record
into the environ. Under another server, `Accounting` admits the request itself.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from http import HTTPStatus
from typing import IO, TYPE_CHECKING, Any

from tenantry.http.environ import (
    CLIENT,
    CONNECTION,
    ENDPOINT,
    REFUSED,
    REQUEST_ID,
    REQUEST_RECORD,
    TARGET,
    TENANT,
)
from tenantry.http.problem import ProblemResponse
from tenantry.http.request_record import RequestRecord
from tenantry.http.response_close import ResponseCutError, on_close
from tenantry.middleware.in_flight import TENANT_BUSY, RequestsInFlight
from tenantry.middleware.start_wait import StartWait
from tenantry.observability.usage_counters import UsageCounters

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_FIRST_FAILURE = 500
_ID_NAME_CHARS = len("X-Request-ID")
_TRACEPARENT = "HTTP_TRACEPARENT"

OnRequestEnd = Callable[[RequestRecord], object]


class Accounting:
    """The WSGI app behind the router: answers, counts and logs each request. Thread-safe.

    Args:
        in_flight: the requests in flight of this process.
        usage: counts the requests of each tenant.
        on_request_end: called with the record of each request, for the access log.
    """

    def __init__(
        self,
        in_flight: RequestsInFlight,
        usage: UsageCounters,
        on_request_end: OnRequestEnd | None = None,
    ) -> None:
        self._in_flight = in_flight
        self._usage = usage
        self._on_request_end = on_request_end
        self.start_wait: StartWait | None = None
        """Makes requests wait for their tenant; None if requests wait in threads of the server."""

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer the request with the app that the environ names as `TARGET`."""
        target = environ[TARGET]
        record: RequestRecord | None = environ.get(REQUEST_RECORD)
        if record is None:
            is_waiting = self.enter(environ) is None
            record = environ[REQUEST_RECORD]
            if is_waiting or record.is_over:
                target = TENANT_BUSY
        # A mount or the app can change the path later.
        record.path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        record.request_id, record.method = environ[REQUEST_ID], environ["REQUEST_METHOD"]
        record.address = environ.get("REMOTE_ADDR", "")
        record.environ, record.connection = environ, environ.get(CONNECTION)
        if "CONTENT_LENGTH" in environ or "HTTP_TRANSFER_ENCODING" in environ:
            record.input = environ["wsgi.input"] = _Input(environ["wsgi.input"])
        thread = record.thread = threading.get_ident()
        if record.entered_by != thread:
            self._in_flight.move_to_thread(record)
        record.begun_ns = time.monotonic_ns()
        record.processor_begun_ns = time.thread_time_ns()
        try:
            body = target(environ, partial(_start, record, start_response))
        except BaseException as error:
            record.is_error = record.is_error or not isinstance(error, ResponseCutError)
            self._finish(record)
            raise
        if type(body) is list:  # the body of a host page, or of a refusal
            record.bytes_out = sum(map(len, body))
        return on_close(body, partial(self._finish, record))

    def enter(self, environ: "WSGIEnvironment") -> RequestRecord | None:
        """Put the record of a new request into the environ; return None if it may not run now.

        A request that belongs to no tenant may always run.
        """
        tenant = environ.get(TENANT, "")
        start_wait = self.start_wait
        if start_wait is not None and (not tenant or environ[TARGET].instance is None):
            if start_wait.must_wait(environ):
                return None
            tenant = environ.get(TENANT, "")
        record = None
        if tenant:
            record = self._in_flight.enter(tenant, environ[TARGET].limits)
        is_refused = tenant and record is None
        if record is None:
            record = RequestRecord()
            record.tenant = tenant
        environ[REQUEST_RECORD] = record
        if _TRACEPARENT in environ:
            record.read_trace(environ)
        return None if is_refused else record

    def _finish(self, record: RequestRecord) -> None:
        """Settle the record of a request whose response is closed."""
        environ = record.environ
        if environ is None:  # this is a second call
            return
        if record.connection is not None and record.connection.is_hijacked:
            record.status = HTTPStatus.SWITCHING_PROTOCOLS.value
        record.environ = record.connection = None
        if record.thread == threading.get_ident():  # each thread has its own CPU clock
            record.processor_ns = time.thread_time_ns() - record.processor_begun_ns
        record.wall_ns = time.monotonic_ns() - record.begun_ns
        if record.is_in_flight:
            self._in_flight.leave(record)
        record.is_refusal = REFUSED in environ
        if not record.is_refusal and record.status >= _FIRST_FAILURE:
            record.is_error = True
        if record.input is not None:
            record.bytes_in, record.input = record.input.size, None
        if record.tenant:
            self._usage.add_request(record)
        if self._on_request_end is not None:
            record.endpoint = environ.get(ENDPOINT) or ""
            record.client = environ.get(CLIENT) or ""
            self._on_request_end(record)

    def note_refusal(
        self, environ: "WSGIEnvironment", problem: ProblemResponse, sent_bytes: int
    ) -> None:
        """Count and log a request that the server has refused before it ran.

        The environ of a malformed request has only the request's method and ID.
        """
        record = RequestRecord()
        record.tenant = environ.get(TENANT, "")
        record.path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        record.status = problem.status.value
        record.is_refusal = True
        record.bytes_out = sent_bytes
        record.request_id, record.method = environ[REQUEST_ID], environ["REQUEST_METHOD"]
        record.address = environ.get("REMOTE_ADDR", "")
        if record.tenant:
            self._usage.add_request(record)
        if self._on_request_end is not None:
            self._on_request_end(record)


def _start(
    record: RequestRecord,
    start_response: "StartResponse",
    status: str,
    headers: list[tuple[str, str]],
    exc_info: Any = None,
) -> Callable[[bytes], object]:
    """Note the status of the response, and add the ID of the request."""
    if record.limits is not None and record.limits.is_answering:
        _check_unanswered(record)
    record.status = int(status[:3])
    for name, _ in headers:
        if len(name) == _ID_NAME_CHARS and name.lower() == "x-request-id":
            headers = [header for header in headers if header[0].lower() != "x-request-id"]
            break
    return start_response(status, [("X-Request-ID", record.request_id), *headers], exc_info)


def _check_unanswered(record: RequestRecord) -> None:
    """Let the app answer, unless the watchdog has answered at the deadline.

    Raises:
        ResponseCutError: the client already has a 504.
    """
    if not record.claim_answer("app"):
        raise ResponseCutError("the client already has a 504")


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
