"""The record of one request: the trace, the number and time of queries, and the result.

`middleware.accounting` opens the record and completes the record at the end of the request. Then
usage counters and the access log read the record. `LogContext` sets the record as the
`current_request`, which also reaches threads that the app starts with a copy of the context.
"""

import re
from contextvars import ContextVar
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from tenantry.http.environ import REQUEST_RECORD

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_PARENT, _STATE = "HTTP_TRACEPARENT", "HTTP_TRACESTATE"
_TRACE = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
"""A `traceparent` header (W3C Trace Context §3.2). Versions after 00 may append more fields."""


class RequestRecord:
    """The record of one request, without a reference to the environ, the app or the body."""

    # The class has the defaults, because a call with 18 arguments takes 20 times as long.
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
    """The path as in the WSGI environ: without the query, and bytes as latin-1 (PEP 3333)."""
    endpoint = ""
    """The Flask endpoint that the request matched."""
    client = ""
    """The client's name as in `CLIENTS`, or `oidc:SUB`."""
    status = 0
    """The status of the response; 0 if the app did not start a response."""
    is_error = False
    """Whether the response is a 5xx that is not a refusal, or broke off."""
    is_refusal = False
    """Whether the host answered instead of the app."""
    bytes_in = 0
    """Bytes of the request body that were read."""
    bytes_out = 0
    """Bytes of the response body that were handed to the server."""
    wall_ns = 0
    processor_ns = 0
    """CPU time of the request's thread."""

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


def open_record(environ: "WSGIEnvironment") -> RequestRecord:
    """Create and return the record of a new request, and put the record into the environ."""
    record = environ[REQUEST_RECORD] = RequestRecord()
    record.address = environ.get("REMOTE_ADDR", "")
    if _PARENT in environ:
        record.read_trace(environ)
    return record


def record_unparsed(tenant: str, head: bytes, response: bytes) -> RequestRecord:
    """Return the record of a request that the server rejected before parsing it.

    Args:
        tenant: the name of the tenant.
        head: the head of the request, which starts with a valid method and path.
        response: the complete response, which has an `X-Request-ID` header.
    """
    method, target, _ = head.split(b" ", 2)
    response_head, _, body = response.partition(b"\r\n\r\n")
    request_id = response_head.partition(b"\r\nX-Request-ID: ")[2].partition(b"\r\n")[0]
    record = RequestRecord()
    record.tenant = tenant
    record.request_id = request_id.decode("latin-1")
    record.method = method.decode("latin-1")
    record.path = unquote_to_bytes(target.partition(b"?")[0]).decode("latin-1")
    record.status = int(response_head[9:12])
    record.is_refusal = True
    record.bytes_out = len(body)
    return record


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
