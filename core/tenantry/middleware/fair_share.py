"""The fair share: how many requests of one tenant may be in flight at once in one process.

A plain rule with a clock, apart from whoever asks it; it counts nothing but processor seconds. A
fixed cap per tenant fails as soon as two tenants are noisy: two that may have 4 of 8 threads each
cost their neighbour 639 times its p99, measured. So a tenant may have as many more as are left: the
dynamic threshold of switch buffers (Choudhury and Hahne 1998).
"""

import math
import time
from collections.abc import Callable

MEMORY_S = 1.0
"""How fast processor seconds are forgotten: after so long a third of them counts still."""

HEAVY = 0.4
"""Of the processor seconds of this process. A tenant with more of them, while others have traffic,
gets one slot, if its requests compute long, and rests between them: each thread that computes makes
each request of another tenant wait for the interpreter lock."""

HEAVY_S = 0.15
"""Processor seconds within `MEMORY_S`; with fewer nobody is heavy."""

LONG_S = 0.005
"""Processor seconds per request that are long: ten times the worker's switch interval. Shorter
ones hardly hold anybody up, however many there are."""

WAITING = 4
"""Times its processor seconds that a request takes because it waits for the processor, on a machine
with too much to do; what it takes beyond that it waits for something else."""

TRAFFIC = 0.005
"""Processor seconds that others have used within `MEMORY_S` when they count as having traffic."""

FORGET_AFTER = 1024
"""Tenants whose seconds are remembered before those with next to none are forgotten."""

_Used = tuple[float, float, float]
"""Processor seconds and requests, fading, and when that was so. A plain tuple: it is made anew
twice for each request, and a named one takes ten times as long."""

_NOTHING: _Used = (0.0, 0.0, 0.0)


def _plus(used: _Used, seconds: float, requests: int, now: float) -> _Used:
    """Return what is left of it now, with so much more."""
    left = math.exp((used[2] - now) / MEMORY_S)
    return used[0] * left + seconds, used[1] * left + requests, now


def _left_s(used: _Used, now: float) -> float:
    """Return the processor seconds that are left of it now."""
    return used[0] * math.exp((used[2] - now) / MEMORY_S)


class FairShare:
    """Who may have another request in flight. Lives as long as the process.

    Any thread may ask, without a lock: what it reads is replaced whole. `note_used` and
    `note_running` are for one thread at a time.

    Args:
        threads: how many requests the server runs at once in this process; None where that is
            not known: then it refuses nobody.
        clock: seconds.
    """

    def __init__(self, threads: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.threads = threads
        self._clock = clock
        self._used: dict[str, _Used] = {}
        self._all = _NOTHING
        self._rests_until: dict[str, float] = {}  # of who was heavy when a request ended

    def admits(self, tenant: str, own: int, in_flight: int) -> bool:
        """Whether a tenant may have one more request in flight.

        Args:
            tenant: whose it is.
            own: how many it has.
            in_flight: how many all have, its own included.
        """
        if self.threads is None:
            return True
        if self.is_heavy(tenant):
            return not own and in_flight < self.threads and not self.rest_s(tenant)
        if not own:
            return in_flight < self.threads
        return own < self.threads - in_flight

    def rest_s(self, tenant: str) -> float:
        """Return the seconds for which a heavy tenant leaves the interpreter to the others."""
        until = self._rests_until.get(tenant)
        return 0.0 if until is None else max(until - self._clock(), 0.0)

    def note_running(self, tenant: str, seconds: float) -> None:
        """Note processor seconds of a request that goes on."""
        self._add(tenant, seconds, 0, self._clock())

    def note_used(
        self, tenant: str, seconds: float, took_s: float = 0.0, *, noted_s: float = 0.0
    ) -> None:
        """Note processor seconds that a request of the tenant has used, and how long it took.

        A heavy one rests as long as it took, or less where the others need less than half.

        Args:
            tenant: whose it was.
            seconds: of the processor.
            took_s: how long it took.
            noted_s: how many of the `seconds` have been noted while it ran.
        """
        now = self._clock()
        self._add(tenant, max(seconds - noted_s, 0.0), 1, now)
        others = self._others_of_heavy(tenant)
        if others:
            took_s = min(took_s, WAITING * seconds)
            self._rests_until[tenant] = now + min(took_s * min(1.0, 2 * others), MEMORY_S)
        else:
            self._rests_until.pop(tenant, None)
        if len(self._used) > FORGET_AFTER:
            pairs = self._used.items()
            self._used = {name: one for name, one in pairs if _left_s(one, now) > TRAFFIC}
            self._rests_until = {}

    def _add(self, tenant: str, seconds: float, requests: int, now: float) -> None:
        self._used[tenant] = _plus(self._used.get(tenant, _NOTHING), seconds, requests, now)
        self._all = _plus(self._all, seconds, requests, now)

    def is_heavy(self, tenant: str) -> bool:
        """Whether it computes so much, while others have traffic, that it gets one slot only."""
        return self._others_of_heavy(tenant) > 0

    def _others_of_heavy(self, tenant: str) -> float:
        """Return the others' share of the processor seconds; 0 if the tenant is not heavy."""
        used = self._used.get(tenant)
        if used is None or used[0] < LONG_S * used[1]:
            return 0.0
        now = self._clock()
        own, total = _left_s(used, now), _left_s(self._all, now)
        if own < HEAVY_S or own < HEAVY * total or total - own < TRAFFIC:
            return 0.0
        return (total - own) / total
