"""One request while it is served: whose it is, its trace, and what its queries have taken so far.

The outermost layer puts it into the WSGI environ; inside the request's own context it is
`current`, also in threads that the request starts with a copy of its context.
"""

import re
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

REQUEST_CONTEXT = "tenantry.visit"
"""Key of the WSGI environ under which the request's `RequestContext` stands."""

_PARENT, _STATE = "HTTP_TRACEPARENT", "HTTP_TRACESTATE"
_TRACE = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
"""W3C Trace Context §3.2; a version that we do not know may have more to say."""


class RequestContext:
    """What is known of one request inside its context; it holds nothing of the request itself."""

    # Defaults of the class, for most requests change two of them only.
    tenant = ""
    request_id = ""
    trace_id = ""
    """Of the trace that the client began; empty where it began none."""
    traceparent = ""
    tracestate = ""
    queries = 0
    """For the log line only: of two threads of one request that add at once, one may be lost.
    The ledger counts on its own, exactly."""
    database_ns = 0

    def take_up_trace(self, environ: "WSGIEnvironment") -> None:
        """Note the client's trace, if its `traceparent` is valid; else the app sees none either.

        It is passed on as it came: a part of a trace that nobody records would leave a hole in it.
        """
        parent = environ[_PARENT]
        found = _TRACE.fullmatch(parent)
        if found is None or (found[1] == "00" and found[3]):
            del environ[_PARENT]
            environ.pop(_STATE, None)
            return
        self.trace_id, self.traceparent = found[2], parent
        self.tracestate = environ.get(_STATE, "")


current: ContextVar[RequestContext | None] = ContextVar("tenantry.visit", default=None)
"""The request that is served in this context; None outside of any."""


def begin(environ: "WSGIEnvironment") -> RequestContext:
    """Return the visit of a request that has just come in, and put it into its environ."""
    visit = environ[REQUEST_CONTEXT] = RequestContext()
    if _PARENT in environ:
        visit.take_up_trace(environ)
    return visit


def outgoing_headers() -> dict[str, str]:
    """Return what a request to another service should carry, so that logs and traces stay together.

    For endpoints; also in threads that have a copy of the request's context. Empty outside of one.
    """
    visit = current.get()
    if visit is None:
        return {}
    headers = {"X-Request-ID": visit.request_id}
    if visit.traceparent:
        headers["traceparent"] = visit.traceparent
    if visit.tracestate:
        headers["tracestate"] = visit.tracestate
    return headers
