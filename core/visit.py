"""One request while it is served: whose it is, and what its database work has taken so far.

The outermost layer puts it into the WSGI environ; inside the request's own context it is
`current`, also in threads that the request starts with a copy of its context.
"""

from contextvars import ContextVar

VISIT = "tenantry.visit"
"""Key of the WSGI environ under which the request's `Visit` stands."""


class Visit:
    """What is known of one request inside its context; it holds nothing of the request itself."""

    __slots__ = ("database_ns", "queries", "request_id", "tenant")

    def __init__(self) -> None:
        self.tenant = ""
        self.request_id = ""
        self.queries = 0
        """For the log line only: of two threads of one request that add at once, one may be lost.
        The ledger counts on its own, exactly."""
        self.database_ns = 0


current: ContextVar[Visit | None] = ContextVar("tenantry.visit", default=None)
"""The request that is served in this context; None outside of any."""
