"""Admission: decisions of the server's main loop about a request before a thread runs the request.

Tenantry's gunicorn worker asks `Host.admission`. Under another server, the layers of each instance
make the same decisions in the thread. Each decision of `Admission` is a fast look-up.
"""

from collections.abc import Callable
from http import HTTPStatus

from tenantry.http.problem import ProblemResponse, Refusal
from tenantry.http.raw_head import LIVENESS, NO_TENANT, match_prefix
from tenantry.middleware.concurrency import BUSY, RETRY_AFTER_S
from tenantry.middleware.fair_share import FairShare
from tenantry.middleware.host_pages import LIVE
from tenantry.routing.mount import Mount

OnRefusal = Callable[[str, bytes, bytes], None]
"""A function that is called with the tenant, the request head and the response of a refusal."""

_HOST_BUSY = ProblemResponse(
    HTTPStatus.SERVICE_UNAVAILABLE, "The server is busy; try again.", retry_after_s=RETRY_AFTER_S
)
_LIVENESS_HEADS = (b"GET /-/livez ", b"HEAD /-/livez ")


class Admission:
    """Decides on requests before a thread. Only the main loop calls methods other than `let_in`.

    Args:
        share: the rule of fair share in this process.
        at: returns the mount at a URL prefix.
        is_operators: returns whether a socket's own address is the address of the operators'
            listener.
        let_in: called on the thread that runs a request, with the tenant that was admitted.
        refusal: returns the response that every request of a tenant gets now, or None.
        on_refusal: called for each request that `Admission` refuses before any layer.
    """

    live = LIVE
    """The response to a liveness probe while no thread is free, because the worker still works."""

    def __init__(
        self,
        share: FairShare,
        at: Callable[[str], Mount | None],
        is_operators: Callable[[object], bool],
        *,
        let_in: Callable[[str | None], None] = lambda _: None,
        refusal: Callable[[str], Refusal | None] = lambda _: None,
        on_refusal: OnRefusal = lambda *_: None,
    ) -> None:
        self.share = share
        self.is_operators = is_operators
        self.let_in = let_in
        self.refusal = refusal
        self.on_refusal = on_refusal
        self._at = at

    def tenant_of(self, head: bytes) -> str:
        """Return the tenant that a request head clearly names, or `LIVENESS`, or `NO_TENANT`."""
        mount = match_prefix(head, self._at)
        if mount is not None:
            return mount.name
        return LIVENESS if head.startswith(_LIVENESS_HEADS) else NO_TENANT

    @staticmethod
    def busy(tenant: str) -> ProblemResponse:
        """Return the response to a request that has waited too long for a slot."""
        return BUSY if tenant else _HOST_BUSY
