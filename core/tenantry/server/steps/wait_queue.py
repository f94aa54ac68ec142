"""The wait queue: requests that wait without a thread until they may run.

Without a wait queue, the host would refuse a burst of short requests, because all requests of a
burst are in flight at the same moment.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from tenantry.http.environ import MAX_WAIT

WAIT_S = 1.0
"""Maximum seconds that a request waits. A request runs within this time even behind hundreds of
requests of 1 ms. A request behind slow requests soon gets a 503."""

MAX_WAITING = 256
"""Maximum number of waiting requests of one tenant in one process. A full queue with requests of 1
ms is empty after a quarter of `WAIT_S`. The maximum is a quarter of the connections of a
process."""

MAX_LONG_WAITING = 512
"""Maximum number of requests with a longer wait (`MAX_WAIT` in the environ) in one process, for
all tenants together: half of the connections of a process. A tenant may have as many such requests
as are still free, so a tenant whose build hangs does not exclude the other tenants."""

FEW = 8
"""Number of requests with a longer wait that each tenant may have in any case."""

Item = TypeVar("Item")


class WaitQueue(Generic[Item]):
    """The waiting requests of a process, first in, first out per tenant, with tenants in turn.

    The wait queue is not thread-safe, because only the leader of the loop uses the wait queue.
    """

    def __init__(self) -> None:
        self.tenants: dict[str, deque[tuple[float, Item]]] = {}
        """The waiting requests of each tenant with their deadlines. The tenant whose request runs
        next comes first."""

    def add(self, tenant: str, item: Item, now: float) -> bool:
        """Add a request at the end of its tenant's queue; return False if the queue is full."""
        queue = self.tenants.setdefault(tenant, deque())
        deadline = now + WAIT_S
        if queue:
            deadline = max(deadline, queue[0][0])  # all these requests wait for the same build
        else:
            deadline += _more_s(item)
        most = MAX_WAITING
        if deadline > now + WAIT_S:
            waiting = sum(map(len, self.tenants.values()))
            most = min(most, max(MAX_LONG_WAITING - waiting, FEW))
        if len(queue) >= most:
            return False
        queue.append((deadline, item))
        return True

    def ready(self, admit: Callable[[Item], bool]) -> Iterator[Item]:
        """Remove and yield the requests that `admit` admits, one of each tenant in turn."""
        is_any = True
        while is_any:
            is_any = False
            for tenant in list(self.tenants):
                queue = self.tenants[tenant]
                if not admit(queue[0][1]):
                    continue
                is_any = True
                del self.tenants[tenant]
                item = queue.popleft()[1]
                if queue:
                    self.tenants[tenant] = queue  # the tenant now comes last
                yield item

    def expired(self, now: float) -> Iterator[Item]:
        """Remove and yield the requests that have waited for `WAIT_S`."""
        for tenant, queue in list(self.tenants.items()):
            while queue and queue[0][0] <= now:
                yield queue.popleft()[1]
            if not queue:
                self.tenants.pop(tenant, None)

    def due_at(self, now: float, rest_s: Callable[[str], float]) -> float:
        """Return when `ready` or `expired` can yield a request; infinity if no request waits.

        Args:
            now: seconds of the monotonic clock.
            rest_s: returns the seconds until a tenant's pause ends; 0 without a pause.
        """
        if not self.tenants:
            return math.inf
        first = min(queue[0][0] for queue in self.tenants.values())
        rests = [now + rest for tenant in self.tenants if (rest := rest_s(tenant))]
        return min(first, *rests, now + WAIT_S)


def _more_s(item: object) -> float:
    """Return the seconds that a request may wait for its tenant's instance."""
    more_s: float = getattr(item, "environ", {}).get(MAX_WAIT, 0.0)
    return more_s
