"""The record of one request: the trace, the number and time of queries, and the result.

`middleware.accounting` opens the record and completes the record at the end of the request. After
the request, usage counters and the access log read the record. `LogContext` sets the record as the
`current_request`, which also reaches threads that the app starts with a copy of the context.
"""

import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_PARENT, _STATE = "HTTP_TRACEPARENT", "HTTP_TRACESTATE"
_TRACE = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
"""A `traceparent` header (W3C Trace Context §3.2). Versions after 00 may append more fields."""


class ClientConnection(Protocol):
    """The connection of a request's client, as far as the WSGI layers may use it."""

    sent_bytes: int
    """Bytes that were sent to the client."""
    is_waiting: bool
    """Whether the thread of the request waits for the client."""
    is_hijacked: bool
    """Whether the app uses the socket itself, such as for a WebSocket."""

    def send_last(self, data: bytes) -> None:
        """Send bytes without waiting, as the end of the connection's last response."""


class RequestRecord:
    """The record of one request.

    After the request, the record refers to no environ, app or body.
    """

    # The defaults are class attributes, because a call with 18 arguments takes 20 times as long.
    tenant = ""
    """The name of the tenant; empty if the request reached no tenant."""
    request_id = ""
    trace_id = ""
    """The ID of the trace that the client started; empty if the client started no trace."""
    traceparent = ""
    tracestate = ""
    address = ""
    """The client's address: `REMOTE_ADDR` before the app can change it."""
    queries = 0
    """Number of database queries, for the access log only.

    If two threads of one request add a query at once, the record can lose a query. `UsageCounters`
    counts every query.
    """
    database_ns = 0

    # `Accounting` sets the following attributes at the end of the request.
    method = ""
    path = ""
    """The path as in the WSGI environ: without the query, and decoded as latin-1 (PEP 3333)."""
    endpoint = ""
    """The Flask endpoint that the request matched."""
    client = ""
    """The client's name as in `CLIENTS`, or `oidc:SUB`."""
    status = 0
    """The status of the response; 0 if the app did not start a response."""
    is_error = False
    """Whether the response is incomplete, or is a 5xx that is not a refusal."""
    is_refusal = False
    """Whether the host answered instead of the app."""
    bytes_in = 0
    """Bytes of the request body that were read."""
    bytes_out = 0
    """Bytes of the response body that were passed to the server."""
    wall_ns = 0
    processor_ns = 0
    """CPU time of the request's thread."""

    # `RequestsInFlight` sets the following attributes.
    limits: Any = None
    cell: int | None = None
    """The request's cell on the scoreboard."""
    is_in_flight = False
    """Whether the request counts as a request in flight."""
    is_over = False
    """Whether the tenant already has its maximum number of requests in flight."""
    is_quick = True
    """Whether the request is likely to end within milliseconds."""
    entered_by = 0
    thread = 0
    """Python's identifier of the thread that runs the request; 0 before the request runs."""
    begun_ns = 0
    """Time at which the request began to run, on the monotonic clock; 0 before."""
    processor_begun_ns = 0
    """The CPU time of the thread when the request began to run."""
    noted_s = 0.0
    """CPU seconds of the request that fair share has already counted."""

    # `Accounting` and the watchdog of `deadlines` set the following attributes.
    environ: "WSGIEnvironment | None" = None
    """The environ of a running request."""
    connection: ClientConnection | None = None
    """The client's connection, if the server provides it."""
    input: Any = None
    """The body of the request, which counts the bytes that are read."""
    is_reported = False
    """Whether the request was reported at its deadline."""
    sent_bytes = 0
    """Bytes that the connection had sent when the response last grew."""
    progress_ns = 0
    """Time at which the watchdog last saw the response grow, on the monotonic clock."""
    _answerer: dict[str, str]

    def claim_answer(self, who: Literal["app", "watchdog"]) -> bool:
        """Return whether the caller may answer a request whose deadline has passed.

        Only the first caller may answer.
        """
        if "_answerer" not in self.__dict__:
            # `setdefault` is atomic, so both threads see the same dict.
            self.__dict__.setdefault("_answerer", {})
        return self._answerer.setdefault("by", who) == who

    def read_trace(self, environ: "WSGIEnvironment") -> None:
        """Record the trace of a valid `traceparent`; remove an invalid header from the environ.

        The app receives the header unchanged. The host exports no spans, so a span of the host
        would leave a gap in the client's trace.
        """
        parent = environ[_PARENT]
        found = _TRACE.fullmatch(parent)
        if found is None or (found[1] == "00" and found[3]):
            del environ[_PARENT]
            environ.pop(_STATE, None)
            return
        self.trace_id, self.traceparent = found[2], parent
        self.tracestate = environ.get(_STATE, "")


current_request: ContextVar[RequestRecord | None] = ContextVar("tenantry.request", default=None)
"""The record of the request that the current context serves; None outside a request."""


def outgoing_headers() -> dict[str, str]:
    """Return headers that link a request to another service with the current request.

    Endpoints, and threads that run in a copy of the request's context, can call `outgoing_headers`.
    Outside a request, the result is empty.
    """
    record = current_request.get()
    if record is None:
        return {}
    headers = {"X-Request-ID": record.request_id}
    if record.traceparent:
        headers["traceparent"] = record.traceparent
    if record.tracestate:
        headers["tracestate"] = record.tracestate
    return headers
