"""Puts instances to sleep: those idle for too long, and of too many the least recently used."""

import time
from collections.abc import Callable
from queue import SimpleQueue

from tenantry.reload.draining import Draining
from tenantry.routing.mount import Mount

MANY_AWAKE = 20
"""So many more instances than before are worth a word to the garbage collector: until then each of
its full collections, one after each change of a tenant, takes about 1 ms more for each of them."""


class Eviction:
    """The mounts of one process that have an instance. One thread uses it, but for `note_awake`.

    It keeps a list of its own: a look at all of 10,000 mounts each second would cost the requests.

    Args:
        max_active: how many may be awake.
        idle_timeout_s: how long one may be without a request.
        departures: takes the instances that are let go.
        clock: seconds.
    """

    def __init__(
        self,
        max_active: int,
        idle_timeout_s: float,
        departures: Draining,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.note_settled: Callable[[], None] = lambda: None
        """Called when many more are awake than before."""
        self.note_asleep: Callable[[str], None] = lambda _: None
        """Called with the name of each tenant that was put to sleep."""
        self._max_active = max_active
        self._idle_timeout_s = idle_timeout_s
        self._departures = departures
        self._clock = clock
        self._woken: SimpleQueue[Mount] = SimpleQueue()
        self.note_awake = self._woken.put  # one bound method for all mounts
        self._awake: set[Mount] = set()
        self._settled = 0

    def check(self) -> None:
        """Let go who may not stay; never one with a request in flight."""
        while not self._woken.empty():
            self._awake.add(self._woken.get())
        pairs = [(mount, mount.instance) for mount in self._awake]
        awake = [(each.used_at, mount) for mount, each in pairs if each is not None]
        self._awake = {mount for _, mount in awake}
        self._tell_of_many()
        awake.sort(key=lambda pair: pair[0])
        too_many = len(awake) - self._max_active
        for used_at, mount in awake:
            is_overdue = self._clock() - used_at > self._idle_timeout_s
            if too_many <= 0 and not is_overdue:
                return
            instance = mount.evict()
            if instance is not None:
                too_many -= 1
                self._departures.add(mount.name, instance)
                self.note_asleep(mount.name)

    def _tell_of_many(self) -> None:
        if len(self._awake) - self._settled >= MANY_AWAKE:
            self.note_settled()
            self._settled = len(self._awake)
        self._settled = min(self._settled, len(self._awake))
