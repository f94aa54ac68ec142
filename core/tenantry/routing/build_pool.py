"""First builds: builds that a tenant's first request starts, and how long requests wait.

Because all tenants share the few threads that serve requests, a request never builds an instance on
its own thread. A thread of the `BuildPool` builds the instance, and the request waits for a limited
time. Under Tenantry's worker, the request waits in the wait queue of the server, without a thread.
Under another server, the request waits in its thread.
"""

import threading
from collections.abc import Callable

from tenantry.http.environ import START_WAIT_S
from tenantry.routing.worker_pool import WorkerPool

MAX_BUILDS = 8
"""Maximum number of concurrent first builds: as many as a worker has threads for requests."""

MAX_LONG_WAITS = 2
"""Maximum number of requests in a process that wait in a thread up to `START_WAIT_S`, each for a
different build. Even if two builds hang, a worker with four threads has two free threads."""

SHORT_WAIT_S = 5.0
"""Maximum seconds after the start of a build for which all other requests wait in a thread. The
limit is short because other tenants need the threads."""


class PendingBuild:
    """A running build that requests wait for."""

    def __init__(self, started_at: float) -> None:
        self.started_at = started_at
        self.has_ended = threading.Event()


class BuildPool(WorkerPool):
    """The threads for first builds in one process. Thread-safe. `close` ends the threads.

    Args:
        note_end: called after the end of each build.
    """

    def __init__(self, note_end: Callable[[], object] = lambda: None) -> None:
        super().__init__("tenantry-first-build", MAX_BUILDS)
        self.note_end = note_end
        self._wait_lock = threading.Lock()  # the lock protects `_long_waits`
        self._long_waits: set[PendingBuild] = set()

    def wait(self, build: PendingBuild, age_s: float) -> bool:
        """Wait for a build for a limited time. Return whether the build has ended.

        Args:
            build: the build.
            age_s: seconds since the start of the build.
        """
        with self._wait_lock:
            is_long = build not in self._long_waits and len(self._long_waits) < MAX_LONG_WAITS
            if is_long:
                self._long_waits.add(build)
        try:
            left_s = (START_WAIT_S if is_long else SHORT_WAIT_S) - age_s
            return left_s > 0 and build.has_ended.wait(left_s)
        finally:
            if is_long:
                with self._wait_lock:
                    self._long_waits.discard(build)
