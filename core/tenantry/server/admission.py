"""The door: what the server's main loop asks about a request before it spends a thread on it.

An app that has one (`Host.door`) gives it to a server that asks; with another server the layers of
each instance decide the same, in a thread. Everything here is a look-up.
"""

from collections.abc import Callable
from http import HTTPStatus

from tenantry.http.problem import ProblemResponse, Refusal
from tenantry.http.raw_head import LIVENESS, NO_TENANT, match_prefix
from tenantry.middleware.concurrency import BUSY, RETRY_AFTER_S
from tenantry.middleware.fair_share import FairShare
from tenantry.middleware.host_pages import LIVE
from tenantry.routing.mount import Mount

NoteTurnedAway = Callable[[str, bytes, bytes], None]

_CROWDED = ProblemResponse(
    HTTPStatus.SERVICE_UNAVAILABLE, "The server is busy; try again.", retry_after_s=RETRY_AFTER_S
)


class Admission:
    """For one thread, that of the main loop; but for `let_in`.

    Args:
        share: the rule of this process.
        at: the mount at a prefix.
        is_operators: whether a listener, by its address, is the operators' own.
        let_in: told, on the thread that runs it, whose request was let in here.
        refusal: what every request of a tenant gets now, with its headers; None: it may come in.
        note_turned_away: told of each request that was refused here, and so reaches no layer:
            its tenant, its head and the answer.
    """

    live = LIVE
    """Answers `LIVENESS` when no thread can: whoever asks learns that the worker has not hung."""

    def __init__(
        self,
        share: FairShare,
        at: Callable[[str], Mount | None],
        is_operators: Callable[[object], bool],
        *,
        let_in: Callable[[str | None], None] = lambda _: None,
        refusal: Callable[[str], Refusal | None] = lambda _: None,
        note_turned_away: NoteTurnedAway = lambda *_: None,
    ) -> None:
        self.share = share
        self.is_operators = is_operators
        self.let_in = let_in
        self.refusal = refusal
        self.note_turned_away = note_turned_away
        self._at = at

    def whose(self, head: bytes) -> str:
        """Return the tenant that a request is for, as far as its head surely tells."""
        mount = match_prefix(head, self._at)
        if mount is not None:
            return mount.name
        return LIVENESS if head.startswith((b"GET /-/livez ", b"HEAD /-/livez ")) else NO_TENANT

    def busy(self, tenant: str) -> ProblemResponse:
        """Return what answers who has waited for a slot long enough."""
        return BUSY if tenant else _CROWDED
