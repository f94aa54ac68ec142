"""Fair share: how many requests of one tenant may be in flight at once in one process.

A fixed cap per tenant fails as soon as two tenants are noisy: with a cap of 4 of 8 threads, two
noisy tenants multiplied their neighbor's p99 by 639. Therefore, a tenant may have as many requests
in flight as threads are free, like the dynamic threshold of switch buffers (Choudhury and Hahne
1998).
"""

import math
import time
from collections.abc import Callable

MEMORY_S = 1.0
"""Time constant in seconds of the decay of CPU seconds: after `MEMORY_S`, a third of the CPU
seconds still counts."""

HEAVY = 0.4
"""Share of this process's CPU seconds above which a tenant is heavy, if other tenants have traffic
and the heavy tenant's requests compute long. A heavy tenant gets one slot and pauses between
requests, because each thread that computes makes every other request wait for the interpreter
lock."""

HEAVY_S = 0.15
"""CPU seconds within `MEMORY_S` below which no tenant is heavy."""

LONG_S = 0.005
"""Minimum CPU seconds of a long request: ten times the worker's switch interval. Even many shorter
requests hardly delay other requests."""

WAITING = 4
"""Maximum ratio of a request's duration to its CPU seconds that waiting for the processor explains.
A request with a higher ratio also waits for other resources, such as a database."""

TRAFFIC = 0.005
"""Minimum CPU seconds of all other tenants within `MEMORY_S` that count as traffic."""

FORGET_AFTER = 1024
"""Number of remembered tenants above which fair share forgets tenants with almost no CPU
seconds."""

_Use = tuple[float, float, float]
"""Decayed CPU seconds, decayed number of requests, and the time of the last update. The value is a
plain tuple, because each request creates two tuples, and creating a named tuple takes ten times as
long."""

_NO_USE: _Use = (0.0, 0.0, 0.0)


class FairShare:
    """The rule of fair share in one process: whether a tenant may have another request in flight.

    Any thread may call `admits` without a lock, because `admits` uses only single dict operations,
    which are atomic, and the dicts contain only immutable tuples and numbers. `note_used` and
    `note_running` must be called by one thread at a time.

    Args:
        threads: number of requests that the server runs at once in this process. If `threads` is
            None, every request is admitted.
        clock: returns seconds.
    """

    def __init__(self, threads: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.threads = threads
        self._clock = clock
        self._use: dict[str, _Use] = {}
        self._total = _NO_USE
        # The end of the pause of each tenant that was heavy at the end of its last request.
        self._pauses_until: dict[str, float] = {}

    def admits(self, tenant: str, own: int, in_flight: int, busy: int) -> bool:
        """Whether a tenant may have one more request in flight.

        A tenant's first request needs fewer busy tenants than threads, so a tenant gets a thread no
        matter how many requests the other tenants have. Each further request needs more free
        threads than the tenant has requests. With up to 12 threads, at most 1.5 times as many
        requests as threads are in flight; with more threads, fewer than twice as many.

        Args:
            tenant: the tenant's name.
            own: number of the tenant's requests in flight.
            in_flight: number of requests in flight of all tenants.
            busy: number of tenants with a request in flight.
        """
        if self.threads is None:
            return True
        use = self._use.get(tenant)
        if use is not None and use[0] >= HEAVY_S and self.is_heavy(tenant):
            return not own and busy < self.threads and not self.rest_s(tenant)
        if not own:
            return busy < self.threads
        return own < self.threads - in_flight

    def rest_s(self, tenant: str) -> float:
        """Return the seconds until the end of a heavy tenant's pause; 0 without a pause."""
        until = self._pauses_until.get(tenant)
        return 0.0 if until is None else max(until - self._clock(), 0.0)

    def note_running(self, tenant: str, seconds: float) -> None:
        """Count CPU seconds of a running request."""
        self._add(tenant, seconds, 0, self._clock())

    def note_used(
        self, tenant: str, seconds: float, took_s: float = 0.0, *, noted_s: float = 0.0
    ) -> None:
        """Count the CPU seconds of a request that has ended.

        After a request, a heavy tenant pauses for the duration of the request, or for a shorter
        time if the other tenants need less than half of the processor.

        Args:
            tenant: the tenant's name.
            seconds: CPU seconds of the request.
            took_s: seconds from the start to the end of the request.
            noted_s: the part of `seconds` that `note_running` has already counted.
        """
        now = self._clock()
        self._add(tenant, max(seconds - noted_s, 0.0), 1, now)
        # Without `HEAVY_S` of CPU time, a tenant is not heavy.
        others = self._others_of_heavy(tenant) if self._use[tenant][0] >= HEAVY_S else 0.0
        if others:
            took_s = min(took_s, WAITING * seconds)
            self._pauses_until[tenant] = now + min(took_s * min(1.0, 2 * others), MEMORY_S)
        else:
            self._pauses_until.pop(tenant, None)
        if len(self._use) > FORGET_AFTER:
            pairs = self._use.items()
            self._use = {name: use for name, use in pairs if _seconds_left(use, now) > TRAFFIC}
            self._pauses_until = {}

    def _add(self, tenant: str, seconds: float, requests: int, now: float) -> None:
        own_s, own_requests, since = self._use.get(tenant, _NO_USE)
        left = math.exp((since - now) / MEMORY_S)
        self._use[tenant] = own_s * left + seconds, own_requests * left + requests, now
        total_s, total_requests, since = self._total
        left = math.exp((since - now) / MEMORY_S)
        self._total = total_s * left + seconds, total_requests * left + requests, now

    def is_heavy(self, tenant: str) -> bool:
        """Whether a tenant computes so much that the tenant gets only one slot."""
        return self._others_of_heavy(tenant) > 0

    def _others_of_heavy(self, tenant: str) -> float:
        """Return the other tenants' share of the CPU seconds; 0 if the tenant is not heavy."""
        use = self._use.get(tenant)
        if use is None or use[0] < LONG_S * use[1]:
            return 0.0
        now = self._clock()
        own, total = _seconds_left(use, now), _seconds_left(self._total, now)
        if own < HEAVY_S or own < HEAVY * total or total - own < TRAFFIC:
            return 0.0
        return (total - own) / total


def _seconds_left(use: _Use, now: float) -> float:
    return use[0] * math.exp((use[2] - now) / MEMORY_S)
