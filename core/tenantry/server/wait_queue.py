"""The wait queue: requests that wait for a slot of their tenant without a thread.

The wait queue knows no sockets and starts no threads; the server calls the wait queue. Without a
wait queue, the host would refuse a burst of quick requests, because all requests of a burst are in
flight at the same moment.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from tenantry.middleware.fair_share import FairShare

WAIT_S = 1.0
"""Maximum seconds that a request waits. A request gets its turn even behind hundreds of requests of
1 ms. A request behind slow requests soon gets a 503."""

MAX_WAITING = 256
"""Maximum number of waiting requests of one tenant in one process. A full queue with requests of 1
ms is empty after a quarter of `WAIT_S`. The maximum is a quarter of the connections of a
process."""

Item = TypeVar("Item")


class WaitQueue(Generic[Item]):
    """The waiting requests of a process, first in, first out per tenant, with tenants in turn.

    Thread-safe.

    Args:
        share: the rule of fair share.
        clock: returns monotonic seconds.
    """

    def __init__(self, share: FairShare, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        self._lock = threading.Lock()  # protects the counts and the queues
        self._running: dict[str, int] = {}  # contains only tenants with a running request
        self._in_flight = 0
        # Tenant → the tenant's waiting requests with their deadlines. The tenant with the next turn
        # comes first.
        self._waiting: dict[str, deque[tuple[float, Item]]] = {}

    def is_full(self, tenant: str) -> bool:
        """Whether the wait queue of `tenant` is full."""
        with self._lock:
            return len(self._waiting.get(tenant, ())) >= MAX_WAITING

    def may_run(self, tenant: str) -> bool:
        """Whether a request of `tenant` that arrives now would run at once."""
        with self._lock:
            return self._may_run(tenant)

    def _may_run(self, tenant: str) -> bool:
        return tenant not in self._waiting and self._admits(tenant)

    def arrive(self, tenant: str | None, item: Item) -> bool:
        """Return True if the request may run now; otherwise, add the request to the queue.

        `end`, `ready` or `expired` returns a queued request later. A request of an operator
        (`tenant` is None) always runs, but counts as in flight, because the request uses a thread.
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
        """Record the end of a running request; return the queued requests that may run now."""
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
        """Return the queued requests that may run now, after the end of a pause (see `left_s`)."""
        with self._lock:
            return list(self._next())

    def _next(self) -> Iterator[Item]:
        """Yield queued requests that may run now, one request of each tenant in turn."""
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
        """Return the seconds until `ready` or `expired` is due; None if no request waits."""
        with self._lock:
            if not self._waiting:
                return None
            tenants = list(self._waiting)
            first = min(waiting[0][0] for waiting in self._waiting.values())
        rests = [rest_s for name in tenants if (rest_s := self._share.rest_s(name))]
        return min(max(first - self._clock(), 0.0), *rests, WAIT_S)

    def expired(self) -> list[tuple[str, Item]]:
        """Remove and return the requests that have waited for `WAIT_S`, with their tenants."""
        now, gone = self._clock(), []
        with self._lock:
            for tenant, waiting in list(self._waiting.items()):
                while waiting and waiting[0][0] <= now:
                    gone.append((tenant, waiting.popleft()[1]))
                if not waiting:
                    del self._waiting[tenant]
        return gone
