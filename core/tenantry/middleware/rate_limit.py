"""Rates: how many requests of a tenant are admitted per time; over it they get 429.

Counted for the tenant, whoever its clients are, before its app is called.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from limits import RateLimitItem, parse_many

from tenantry.http.problem import ProblemResponse, Refusal
from tenantry.middleware.rate_storage import OwnStorage, SharedStorage, Window

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Headers = list[tuple[str, str]]

LOOK_AGAIN_S = 1.0
"""How long it is believed, at most, that a tenant is over its rate, without counting: its file may
have another one by then."""

_DETAIL = "This application gets more requests than its rate limit allows."


@dataclass(frozen=True)
class Verdict:
    """What a rate says about one request."""

    is_over: bool
    limit: int
    """Requests per window, in this process."""
    window_s: int
    remaining: int
    reset_s: int
    """When more are allowed: the next one, if it is over the rate; else the next window's."""

    def headers(self) -> Headers:
        """Return the `RateLimit` headers: as clients know them, and as the newest draft has them.

        draft-ietf-httpapi-ratelimit-headers: three fields up to -06, two others from -08 on.
        """
        return [
            ("RateLimit-Limit", str(self.limit)),
            ("RateLimit-Remaining", str(self.remaining)),
            ("RateLimit-Reset", str(self.reset_s)),
            ("RateLimit-Policy", f'"default";q={self.limit};w={self.window_s}'),
            ("RateLimit", f'"default";r={self.remaining};t={self.reset_s}'),
        ]

    def problem(self) -> ProblemResponse:
        """Return the 429."""
        return ProblemResponse(
            HTTPStatus.TOO_MANY_REQUESTS, _DETAIL, retry_after_s=max(self.reset_s, 1)
        )


class _Over(NamedTuple):
    """What is known of a tenant over its rate."""

    until: float
    """Until when that is believed."""
    back_at: float
    verdict: Verdict
    refusal: Refusal
    """Made once: each request of a flood gets the same."""


class RateLimiter:
    """The rates of all tenants of this process. Thread-safe; `close()` ends it.

    Args:
        url: where they are counted: `memory://`, or a Redis.
        processes: how many processes of this host serve now: in memory each counts its part.
        clock: seconds.
        note_uncounted: told of the tenant of each request that passes because nobody can tell.
    """

    def __init__(
        self,
        url: str,
        processes: Callable[[], int],
        *,
        clock: Callable[[], float] = time.monotonic,
        note_uncounted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._note_uncounted = note_uncounted
        self._storage = OwnStorage(clock=clock) if _is_memory(url) else SharedStorage(url)
        self._processes = processes if _is_memory(url) else lambda: 1
        self._over: dict[str, _Over] = {}

    @property
    def unanswered_total(self) -> int:
        """Requests that passed because the storage did not answer."""
        return self._storage.unanswered_total

    def hit(self, tenant: str, rates: Iterable[RateLimitItem]) -> Verdict | None:
        """Count one request of a tenant; None if nobody can tell.

        With several rates: what the first that is over says, else the one with the least left.
        """
        least: Verdict | None = None
        processes = max(self._processes(), 1)
        for rate in rates:
            limit, window_s = max(rate.amount // processes, 1), rate.get_expiry()
            answer = self._storage.acquire(rate.key_for(tenant), limit, window_s)
            if answer is None:
                self._note_uncounted(tenant)
                return None
            verdict = _verdict(*answer, limit, window_s)
            if verdict.is_over:
                self._note_over(tenant, _wait_s(answer[1], limit, window_s), verdict)
                return verdict
            if least is None or verdict.remaining < least.remaining:
                least = verdict
        return least

    def _note_over(self, tenant: str, wait_s: float, verdict: Verdict) -> None:
        now = self._clock()
        until, back_at = now + min(wait_s, LOOK_AGAIN_S), now + wait_s
        self._over[tenant] = _Over(until, back_at, verdict, (verdict.problem(), verdict.headers()))

    def known_over(self, tenant: str) -> Refusal | None:
        """Return the 429, with its headers, of a tenant that is surely over its rate still."""
        known = self._over.get(tenant)
        if known is None:
            return None
        until, back_at, verdict, refusal = known
        now = self._clock()
        if now >= until:
            self._over.pop(tenant, None)
            return None
        reset_s = max(math.ceil(back_at - now), 1)
        if reset_s != verdict.reset_s:
            verdict = Verdict(True, verdict.limit, verdict.window_s, 0, reset_s)
            refusal = verdict.problem(), verdict.headers()
            self._over[tenant] = _Over(until, back_at, verdict, refusal)
        return refusal

    def close(self) -> None:
        """Ask the storage no more."""
        self._storage.close()


class RateLimit:
    """WSGI middleware: a request over its tenant's rate gets 429. Safe in any thread."""

    __slots__ = ("_app", "_items", "_rates", "_tenant")

    def __init__(self, app: "WSGIApplication", rates: RateLimiter, tenant: str, rate: str) -> None:
        self._app = app
        self._rates = rates
        self._tenant = tenant
        self._items = tuple(sorted(parse_many(rate), key=RateLimitItem.get_expiry))

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Count the request; refuse it, or tell in the response what is left."""
        verdict = self._rates.hit(self._tenant, self._items)
        if verdict is None:
            return self._app(environ, start_response)
        start = _with_headers(start_response, verdict.headers())
        return (verdict.problem() if verdict.is_over else self._app)(environ, start)


def _is_memory(url: str) -> bool:
    return url.startswith("memory:")


def _verdict(has_fit: bool, window: Window, limit: int, window_s: int) -> Verdict:
    if not has_fit:
        wait_s = _wait_s(window, limit, window_s)
        return Verdict(True, limit, window_s, 0, max(math.ceil(wait_s), 1))
    counted = int(window.previous * window.previous_s / window_s) + window.current
    return Verdict(False, limit, window_s, max(limit - counted, 0), math.ceil(window.left_s))


def _wait_s(window: Window, limit: int, window_s: int) -> float:
    """Return the seconds before which no request fits, whatever comes."""
    room = limit - 1 - window.current
    if room < 0 or not window.previous:
        return window.left_s
    in_sight_s = (room + 1) * window_s / window.previous
    return max(window.previous_s - in_sight_s, 0.0)


def _with_headers(start_response: "StartResponse", added: Headers) -> "StartResponse":
    def start(status: str, headers: Headers, exc_info: Any = None, /) -> Callable[[bytes], object]:
        if exc_info is None:
            return start_response(status, [*headers, *added])
        return start_response(status, [*headers, *added], exc_info)

    return start
