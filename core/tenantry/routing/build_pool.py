"""Builds for first requests, and how long requests wait for them.

The threads that serve requests are few, and all tenants share them. A request therefore never
builds: it waits for a build on a thread of this pool, for a limited time.
"""

import threading

from tenantry.routing.worker_pool import WorkerPool

MAX_BUILDS = 8
"""Builds that run at once: as many as a worker has threads for requests."""

LONG_WAIT_S = 20.0
"""Maximum age of a build for which one request keeps waiting. A build usually takes 10 to 125 ms.
With a database to migrate, on a machine with five times the work that it can do, one took 12 s."""

MAX_LONG_WAITS = 2
"""Requests of a process that may wait that long, each for a different build. Even if these hang, a
worker with four threads has two left."""

SHORT_WAIT_S = 0.25
"""Maximum age of a build for which every other request keeps waiting. During this time it occupies
a thread that other tenants need."""


class PendingBuild:
    """A build that has not ended, for the requests that wait for it."""

    def __init__(self, started_at: float) -> None:
        self.started_at = started_at
        self.has_ended = threading.Event()


class BuildPool(WorkerPool):
    """The first builds of one process. Thread-safe. `close` ends it."""

    def __init__(self) -> None:
        super().__init__("tenantry-first-build", MAX_BUILDS)
        self._wait_lock = threading.Lock()  # protects `_long_waits`
        self._long_waits: set[PendingBuild] = set()

    def wait(self, build: PendingBuild, age_s: float) -> bool:
        """Wait for a build as long as this request may. Return whether the build has ended.

        Args:
            build: the build.
            age_s: how long the build has been running.
        """
        with self._wait_lock:
            is_long = build not in self._long_waits and len(self._long_waits) < MAX_LONG_WAITS
            if is_long:
                self._long_waits.add(build)
        try:
            left_s = (LONG_WAIT_S if is_long else SHORT_WAIT_S) - age_s
            return left_s > 0 and build.has_ended.wait(left_s)
        finally:
            if is_long:
                with self._wait_lock:
                    self._long_waits.discard(build)
