"""Eviction of instances that have been idle for too long, or that exceed the maximum number."""

import time
from collections.abc import Callable
from queue import SimpleQueue

from tenantry.reload.draining import Draining
from tenantry.routing.mount import Mount

GROWTH = 20
"""Number of additional instances that count as growth. Each additional instance makes a full
garbage collection about 1 ms longer."""


class Eviction:
    """Evicts instances of one process. Only `note_built` is thread-safe.

    `Eviction` keeps its own set of the mounts that have an instance, because checking 10,000 mounts
    every second would delay requests.

    Args:
        max_active: maximum number of instances that stay built.
        idle_timeout_s: seconds without a request after which an instance is evicted.
        draining: receives the evicted instances.
        clock: returns monotonic seconds.
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
        # The mounts that have a new instance since the last check.
        self._built: SimpleQueue[Mount] = SimpleQueue()
        self._active: set[Mount] = set()
        self._former = 0  # lowest number of instances since the last growth

    def note_built(self, mount: Mount) -> None:
        """Record that a mount has an instance. Thread-safe."""
        self._built.put(mount)

    def check(self) -> list[str]:
        """Evict instances that are idle for too long or too many; return the tenants' names."""
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
        """Return whether the number of instances has grown by `GROWTH` since the last growth."""
        has_grown = len(self._active) - self._former >= GROWTH
        self._former = len(self._active) if has_grown else min(self._former, len(self._active))
        return has_grown
