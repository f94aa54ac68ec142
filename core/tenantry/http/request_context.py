"""What is known about one request while it is served, in the WSGI environ and in its context.

`middleware.accounting` opens it. `LogContext` makes it the `current_request`, which also reaches
threads that the app starts with a copy of the context.
"""

import re
from contextvars import ContextVar
from typing import TYPE_CHECKING

from tenantry.http.environ import REQUEST_CONTEXT

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_PARENT, _STATE = "HTTP_TRACEPARENT", "HTTP_TRACESTATE"
_TRACE = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
"""W3C Trace Context §3.2. Versions after 00 may append more fields."""


class RequestContext:
    """The state of one request. It holds no reference to the request itself."""

    # Class-level defaults: most requests change only two of them.
    tenant = ""
    request_id = ""
    trace_id = ""
    """The trace that the client started; empty if it started none."""
    traceparent = ""
    tracestate = ""
    queries = 0
    """For the log line only: if two threads of one request add at once, one query can be lost.
    `UsageCounters` counts exactly."""
    database_ns = 0

    def read_trace(self, environ: "WSGIEnvironment") -> None:
        """Take the trace from a valid `traceparent`; remove an invalid one from the environ.

        The header is passed on unchanged. A new span would leave a gap in the client's trace,
        because the host exports no spans.
        """
        parent = environ[_PARENT]
        found = _TRACE.fullmatch(parent)
        if found is None or (found[1] == "00" and found[3]):
            del environ[_PARENT]
            environ.pop(_STATE, None)
            return
        self.trace_id, self.traceparent = found[2], parent
        self.tracestate = environ.get(_STATE, "")


current_request: ContextVar[RequestContext | None] = ContextVar("tenantry.request", default=None)
"""The request that this context serves; None outside a request."""


def open_request_context(environ: "WSGIEnvironment") -> RequestContext:
    """Return the context of a request that has just arrived, and put it into the environ."""
    context = environ[REQUEST_CONTEXT] = RequestContext()
    if _PARENT in environ:
        context.read_trace(environ)
    return context


def outgoing_headers() -> dict[str, str]:
    """Return the headers that tie a request to another service to the current request.

    For endpoints, and for threads that run in a copy of the request's context. Empty outside a
    request.
    """
    context = current_request.get()
    if context is None:
        return {}
    headers = {"X-Request-ID": context.request_id}
    if context.traceparent:
        headers["traceparent"] = context.traceparent
    if context.tracestate:
        headers["tracestate"] = context.tracestate
    return headers
