"""Rate limit: the head check that answers 429 to requests over a tenant's rate.

The check counts the requests of all clients of a tenant together, before the host calls the app.
Requests without a valid key do not count, because otherwise other clients could use up the rate of
the tenant's clients.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from limits import RateLimitItem, parse_many

from tenantry.http.environ import RATE_HEADERS
from tenantry.http.problem import ProblemResponse, Refusal
from tenantry.middleware.rate_files import HostStorage
from tenantry.middleware.rate_storage import RateCount, SharedStorage

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

Headers = list[tuple[str, str]]

LOOK_AGAIN_S = 1.0
"""Seconds after which the host checks again whether a tenant is over its rate, because the rate in
the tenant file may have changed."""

_DETAIL = "This application receives more requests than its rate limit allows."


@dataclass(frozen=True)
class RateDecision:
    """The decision of a rate limit about one request."""

    is_over: bool
    limit: int
    """Maximum number of requests per window."""
    window_s: int
    remaining: int
    reset_s: int
    """Seconds until more requests fit the rate."""

    def headers(self) -> Headers:
        """Return the `RateLimit` headers of draft-ietf-httpapi-ratelimit-headers.

        Many clients know the three headers of the drafts up to 06. Two more headers follow the
        drafts from 08 on.
        """
        return [
            ("RateLimit-Limit", str(self.limit)),
            ("RateLimit-Remaining", str(self.remaining)),
            ("RateLimit-Reset", str(self.reset_s)),
            ("RateLimit-Policy", f'"default";q={self.limit};w={self.window_s}'),
            ("RateLimit", f'"default";r={self.remaining};t={self.reset_s}'),
        ]

    def problem(self) -> ProblemResponse:
        """Return the 429 response to a request over the rate."""
        return ProblemResponse(
            HTTPStatus.TOO_MANY_REQUESTS, _DETAIL, retry_after_s=max(self.reset_s, 1)
        )


class _Over(NamedTuple):
    """The state of a tenant that is over its rate."""

    until: float
    """Time at which to check the rate again, in monotonic seconds."""
    back_at: float
    decision: RateDecision
    refusal: Refusal
    """The 429 response, which all requests over the rate share."""


class RateLimiter:
    """The rate limits of all tenants of a process. Thread-safe. `close()` closes the storage.

    Args:
        url: the storage of the counts: `memory://` for all processes of this host, or a Redis URL
            for several hosts.
        folder: the folder of the counts with `memory://`; None to count in this process alone.
        clock: returns monotonic seconds.
        note_uncounted: called with the tenant's name for each request that is admitted without
            being counted.
    """

    def __init__(
        self,
        url: str,
        folder: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        note_uncounted: Callable[[str], None] = lambda _: None,
        over: dict[str, Any] | None = None,
    ) -> None:
        self._clock = clock
        self._note_uncounted = note_uncounted
        self.is_in_memory = url.startswith("memory:")
        self._storage = (
            HostStorage(folder, clock=clock) if self.is_in_memory else SharedStorage(url)
        )
        self._over: dict[str, _Over] = {} if over is None else over

    @property
    def unanswered_total(self) -> int:
        """Number of requests that were admitted because the storage did not respond."""
        return self._storage.unanswered_total

    def hit(self, tenant: str, rates: tuple[RateLimitItem, ...]) -> RateDecision | None:
        """Count one request of a tenant; return None if the storage does not respond.

        If a tenant has several rates, the method returns the decision of the first exceeded rate.
        If no rate is exceeded, the method returns the decision of the rate with the fewest requests
        left.
        """
        counts = self._storage.hit(tenant, rates)
        if counts is None:
            self._note_uncounted(tenant)
            return None
        least = min(counts, key=_remaining)
        decision = _decide(least)
        if decision.is_over:
            self._note_over(tenant, least.wait_s, decision)
        return decision

    def _note_over(self, tenant: str, wait_s: float, decision: RateDecision) -> None:
        now = self._clock()
        until, back_at = now + min(wait_s, LOOK_AGAIN_S), now + wait_s
        self._over[tenant] = _Over(
            until, back_at, decision, (decision.problem(), decision.headers())
        )

    def known_over(self, tenant: str) -> Refusal | None:
        """Return a 429 response and its headers if the tenant is known to be over its rate."""
        known = self._over.get(tenant)
        if known is None:
            return None
        until, back_at, decision, refusal = known
        now = self._clock()
        if now >= until:
            self._over.pop(tenant, None)
            return None
        reset_s = max(math.ceil(back_at - now), 1)
        if reset_s != decision.reset_s:
            decision = RateDecision(True, decision.limit, decision.window_s, 0, reset_s)
            refusal = decision.problem(), decision.headers()
            self._over[tenant] = _Over(until, back_at, decision, refusal)
        return refusal

    def close(self) -> None:
        """Close the storage of the counts."""
        self._storage.close()


class RateLimit:
    """Head check that answers 429 to requests over the tenant's rate. Thread-safe.

    The response to each counted request has `RateLimit` headers.
    """

    __slots__ = ("_items", "_rates", "_tenant", "is_quick")

    def __init__(self, rates: RateLimiter, tenant: str, rate: str) -> None:
        self.is_quick = rates.is_in_memory  # Redis makes a request wait
        self._rates = rates
        self._tenant = tenant
        self._items = tuple(sorted(parse_many(rate), key=RateLimitItem.get_expiry))

    def refuse(self, environ: "WSGIEnvironment") -> Refusal | None:
        """Count the request, and return a 429 if it is over the rate."""
        decision = self._rates.hit(self._tenant, self._items)
        if decision is None:
            return None
        headers = decision.headers()
        if decision.is_over:
            return decision.problem(), headers
        environ[RATE_HEADERS] = headers
        return None


def _remaining(count: RateCount) -> int:
    return count.remaining


def _decide(count: RateCount) -> RateDecision:
    has_fit, limit, window_s, remaining, wait_s = count
    reset_s = math.ceil(wait_s) if has_fit else max(math.ceil(wait_s), 1)
    return RateDecision(not has_fit, limit, window_s, remaining, reset_s)
