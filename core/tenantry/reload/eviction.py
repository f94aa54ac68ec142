"""Closes instances that were idle too long and, above the maximum, the least recently used."""

import time
from collections.abc import Callable
from queue import SimpleQueue

from tenantry.reload.draining import Draining
from tenantry.routing.mount import Mount

GROWTH = 20
"""Number of additional instances that count as growth. Until then, a full garbage
collection, one after each change of a tenant, takes about 1 ms longer for each of them."""


class Eviction:
    """The mounts of one process that have an instance. One thread uses it, except `note_built`.

    It keeps its own set, because looking at all of 10,000 mounts every second would delay requests.

    Args:
        max_active: number of instances that may stay built.
        idle_timeout_s: how long an instance may go without a request.
        draining: takes the evicted instances.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        max_active: int,
        idle_timeout_s: float,
        draining: Draining,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_active = max_active
        self._idle_timeout_s = idle_timeout_s
        self._draining = draining
        self._clock = clock
        self._built: SimpleQueue[Mount] = SimpleQueue()  # since the last check
        self._active: set[Mount] = set()
        self._former = 0  # number of instances at the last growth, or less

    def note_built(self, mount: Mount) -> None:
        """Note that a mount has an instance. Thread-safe."""
        self._built.put(mount)

    def check(self) -> list[str]:
        """Evict the due instances that have no request in flight. Return their tenants."""
        while not self._built.empty():
            self._active.add(self._built.get())
        used = [
            (instance.used_at, mount)
            for mount in self._active
            if (instance := mount.instance) is not None
        ]
        self._active = {mount for _, mount in used}
        used.sort(key=lambda pair: pair[0])
        evicted: list[str] = []
        too_many = len(used) - self._max_active
        for used_at, mount in used:
            if too_many <= 0 and self._clock() - used_at <= self._idle_timeout_s:
                break
            instance = mount.evict()
            if instance is not None:
                too_many -= 1
                self._draining.add(mount.name, instance)
                evicted.append(mount.name)
        return evicted

    def take_growth(self) -> bool:
        """Return, once per growth, whether there are many more instances than before."""
        has_grown = len(self._active) - self._former >= GROWTH
        self._former = len(self._active) if has_grown else min(self._former, len(self._active))
        return has_grown
