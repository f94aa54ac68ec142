"""Failed attempts: limits the number of requests without a valid key.

Requests without a valid key do not count toward the tenant's rate, so they have a separate limit
for each tenant and client address. Above the limit, a request without a valid key gets 429 instead
of 401. The key is checked first, so that a request with a valid key is always admitted, even if
another client with the same address has reached the limit.
"""

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

MAX_ATTEMPTS = 60
"""Maximum number of failed attempts of one client address at one tenant in `WINDOW_S`. A client
that polls once per second with a wrong key still sees why it is refused."""

WINDOW_S = 60.0
"""Number of seconds after the first failed attempt in which attempts are counted."""

MAX_ADDRESSES = 4096
"""Maximum number of addresses in memory (1 MiB), so that a client with many addresses does not fill
the memory. Above this number, the oldest address is removed."""


class FailedAttempts:
    """Counts the failed attempts in one process. Each worker counts separately. Thread-safe.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # this lock protects the dict and its entries
        self._entries: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    def note(self, tenant: str, address: str) -> int:
        """Count a failed attempt.

        Return 0 up to the limit, and otherwise the seconds until the address may try again.
        """
        key = tenant, _network(address)
        now = self._clock()
        with self._lock:
            count, ends = self._entries.pop(key, (0, now + WINDOW_S))
            if now >= ends:
                count, ends = 0, now + WINDOW_S
            self._entries[key] = count + 1, ends
            if len(self._entries) > MAX_ADDRESSES:
                self._entries.popitem(last=False)
        return max(math.ceil(ends - now), 1) if count >= MAX_ATTEMPTS else 0


def _network(address: str) -> str:
    """Return an IPv4 address, or the /64 network of an IPv6 address.

    One client can use all addresses of a /64 network.
    """
    if ":" not in address:
        return address
    try:
        return str(ipaddress.ip_network((address, 64), strict=False))
    except ValueError:
        return address
