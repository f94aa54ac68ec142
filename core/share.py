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
"""Of the interpreter's time. One tenant with more of it, while others have traffic, gets one slot:
each thread that computes makes each request of another tenant wait for the interpreter lock."""

TRAFFIC = 0.005
"""Of the interpreter's time: what others have used before they count as having traffic."""

FORGET_AFTER = 1024
"""Tenants whose seconds are remembered before those with next to none are forgotten."""


class FairShare:
    """Who may have another request in flight. Lives as long as the process.

    Any thread may ask, without a lock: what it reads is replaced whole. `note_used` is for one
    thread at a time.

    Args:
        threads: how many requests the server runs at once in this process; None where that is
            not known: then it refuses nobody.
        clock: seconds.
    """

    def __init__(self, threads: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.threads = threads
        self._clock = clock
        self._used: dict[str, tuple[float, float]] = {}  # seconds, and when that was so
        self._all = (0.0, 0.0)

    def admits(self, tenant: str, own: int, in_flight: int) -> bool:
        """Whether a tenant may have one more request in flight.

        Args:
            tenant: whose it is.
            own: how many it has.
            in_flight: how many all have, its own included.
        """
        if self.threads is None:
            return True
        if not own:
            return in_flight < self.threads
        return own < self.threads - in_flight and not self.is_heavy(tenant)

    def note_used(self, tenant: str, seconds: float) -> None:
        """Note processor seconds that a request of the tenant has taken."""
        now = self._clock()
        self._used[tenant] = _decayed(self._used.get(tenant), now) + seconds, now
        self._all = _decayed(self._all, now) + seconds, now
        if len(self._used) > FORGET_AFTER:
            pairs = self._used.items()
            self._used = {name: one for name, one in pairs if _decayed(one, now) > TRAFFIC}

    def is_heavy(self, tenant: str) -> bool:
        """Whether it computes so much, while others have traffic, that it gets one slot only."""
        now = self._clock()
        own, total = _decayed(self._used.get(tenant), now), _decayed(self._all, now)
        return own > HEAVY * MEMORY_S and total - own > TRAFFIC * MEMORY_S


def _decayed(used: tuple[float, float] | None, now: float) -> float:
    return 0.0 if used is None else used[0] * math.exp((used[1] - now) / MEMORY_S)
