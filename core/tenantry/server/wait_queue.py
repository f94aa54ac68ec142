"""The waiting room: requests that wait for a slot of their tenant before they cost a thread.

A plain object that the server asks: it knows no sockets and starts nothing. Without it
a burst of quick requests would be refused, for all of them are in flight at one moment; and what a
tenant has in threads would only be known when each of its requests has taken one.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from tenantry.middleware.fair_share import FairShare

WAIT_S = 1.0
"""How long a request waits at most: quick ones, 1 ms each, get their turn, also behind hundreds of
others; one behind requests that take seconds is told soon to come again."""

ROOM = 256
"""Requests of one tenant that may wait in one process: what 1 ms each clears in a quarter of
`WAIT_S`, and a quarter of the connections that a process may have."""

Item = TypeVar("Item")


class WaitQueue(Generic[Item]):
    """Who runs and who waits, first come first served in each tenant, and tenants in turn.

    Thread-safe.

    Args:
        share: the rule.
        clock: seconds.
    """

    def __init__(self, share: FairShare, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        self._lock = threading.Lock()  # protects all below
        self._running: dict[str, int] = {}  # only of who has any
        self._in_flight = 0
        self._waiting: dict[str, deque[tuple[float, Item]]] = {}  # until when; next in turn first

    def is_full(self, tenant: str) -> bool:
        """Whether none of the tenant may wait any more."""
        with self._lock:
            return len(self._waiting.get(tenant, ())) >= ROOM

    def may_run(self, tenant: str) -> bool:
        """Whether a request of the tenant that arrives now would run at once."""
        with self._lock:
            return self._may_run(tenant)

    def _may_run(self, tenant: str) -> bool:
        return tenant not in self._waiting and self._admits(tenant)

    def arrive(self, tenant: str | None, item: Item) -> bool:
        """Let a request in; whether it may run now, else one of those below returns it.

        That of an operator (None) always may: it is counted, for it takes a thread.
        """
        with self._lock:
            if tenant is None:
                self._in_flight += 1
            elif self._may_run(tenant):
                self._begin(tenant)
            else:
                self._waiting.setdefault(tenant, deque()).append((self._clock() + WAIT_S, item))
                return False
        return True

    def end(self, tenant: str | None) -> list[Item]:
        """Note that a request which ran has ended; return those that may run now."""
        with self._lock:
            self._in_flight -= 1
            if tenant is not None:
                left = self._running[tenant] - 1
                if left:
                    self._running[tenant] = left
                else:
                    del self._running[tenant]
            return list(self._next()) if self._waiting else []

    def ready(self) -> list[Item]:
        """Return those that may run now, when a rest is over (`left_s`)."""
        with self._lock:
            return list(self._next())

    def _next(self) -> Iterator[Item]:
        """Give one to each tenant that may have one, and behind the others, until none may."""
        is_any = True
        while is_any:
            is_any = False
            for tenant in list(self._waiting):
                if self._admits(tenant):
                    is_any = True
                    self._begin(tenant)
                    waiting = self._waiting.pop(tenant)
                    yield waiting.popleft()[1]
                    if waiting:
                        self._waiting[tenant] = waiting

    def _admits(self, tenant: str) -> bool:
        return self._share.admits(tenant, self._running.get(tenant, 0), self._in_flight)

    def _begin(self, tenant: str) -> None:
        self._running[tenant] = self._running.get(tenant, 0) + 1
        self._in_flight += 1

    def left_s(self) -> float | None:
        """Return in how many seconds something is due: `ready` or `expired`; None: nobody waits."""
        with self._lock:
            if not self._waiting:
                return None
            tenants = list(self._waiting)
            first = min(waiting[0][0] for waiting in self._waiting.values())
        rests = [rest_s for name in tenants if (rest_s := self._share.rest_s(name))]
        return min(max(first - self._clock(), 0.0), *rests, WAIT_S)

    def expired(self) -> list[tuple[str, Item]]:
        """Return who has waited long enough, with its tenant; it is in no longer."""
        now, gone = self._clock(), []
        with self._lock:
            for tenant, waiting in list(self._waiting.items()):
                while waiting and waiting[0][0] <= now:
                    gone.append((tenant, waiting.popleft()[1]))
                if not waiting:
                    del self._waiting[tenant]
        return gone
