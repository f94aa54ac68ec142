"""One request: its trace and what its queries take while it is served, and all facts at its end.

`middleware.accounting` opens the record and completes it. Usage counters and the access log then
read it. `LogContext` makes it the `current_request`, which also reaches threads that the app starts
with a copy of the context.
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
"""W3C Trace Context §3.2. Versions after 00 may append more fields."""


class RequestRecord:
    """One request. It holds no reference to the environ, the app or the body."""

    # Defaults of the class, because a call with 18 arguments takes 20 times as long.
    tenant = ""
    """Empty if the request reached no tenant."""
    request_id = ""
    trace_id = ""
    """The trace that the client started; empty if it started none."""
    traceparent = ""
    tracestate = ""
    queries = 0
    """For the access log only: if two threads of one request add at once, one query can be lost.
    `UsageCounters` counts exactly."""
    database_ns = 0

    # Set when the request has ended
    method = ""
    path = ""
    """As in the WSGI environ: without the query; bytes as latin-1 (PEP 3333)."""
    endpoint = ""
    """The Flask endpoint that it matched."""
    client = ""
    """The client's name as in `CLIENTS`, or `oidc:SUB`."""
    status = 0
    """0 if the app did not start a response."""
    is_error = False
    """A 5xx that is not a refusal, or a response that broke off."""
    is_refusal = False
    """The host answered instead of the app."""
    bytes_in = 0
    """Bytes of the request body that were read."""
    bytes_out = 0
    """Bytes of the response body that were handed to the server."""
    wall_ns = 0
    processor_ns = 0
    """CPU time of the request's thread."""

    def read_trace(self, environ: "WSGIEnvironment") -> None:
        """Take the trace from a valid `traceparent`; remove an invalid one from the environ.

        The app receives the header unchanged. The host exports no spans, so a span of its own
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
"""The request that this context serves; None outside a request."""


def open_record(environ: "WSGIEnvironment") -> RequestRecord:
    """Return the record of a request that has just arrived, and put it into the environ."""
    record = environ[REQUEST_RECORD] = RequestRecord()
    if _PARENT in environ:
        record.read_trace(environ)
    return record


def record_unparsed(tenant: str, head: bytes, response: bytes) -> RequestRecord:
    """Return the record of a request that the server rejected before parsing it.

    Args:
        tenant: the name of the tenant.
        head: the head of the request; starts with a valid method and path.
        response: the complete response; it has an `X-Request-ID`.
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
    """Return the headers that tie a request to another service to the current request.

    For endpoints, and for threads that run in a copy of the request's context. Empty outside a
    request.
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
