"""First builds: what builds the instances that requests ask for, and how long these may wait.

The requests' own threads are few and all tenants share them: none of them builds, so that a build
that hangs holds none for long.
"""

import threading

from tenantry.routing.worker_pool import WorkerPool

FIRST_BUILDERS = 8
"""First builds at once: as many as a worker has threads for requests."""

LONG_PATIENCE_S = 20.0
"""How old a build may get before the last request stops waiting for it and gets 503. A usual build
takes 10 to 125 ms; with a database to migrate, on a machine with five times the work that it can
do, one took 12 s. It costs no more threads than `MANY_PATIENT`, however long it is."""

MANY_PATIENT = 2
"""So many requests of a process, each for another build, wait that long: who has four threads has
two left, whatever hangs."""

BUILD_PATIENCE_S = 0.25
"""How old a build may get before all other requests stop waiting for it. Each holds a thread that
other tenants need for this long and no longer."""


class Building:
    """A build that is going on, for those who wait for it."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.is_over = threading.Event()


class BuildPool:
    """The first builds of one process. Thread-safe."""

    def __init__(self) -> None:
        self._crew = WorkerPool("tenantry-first-build", FIRST_BUILDERS)
        self.begin = self._crew.do
        """Have a build done soon, on another thread."""
        self.relieve = self._crew.relieve
        """Let other threads take the place of those that are late."""
        self._lock = threading.Lock()  # protects the set
        self._patient: set[Building] = set()  # those for which a request waits long

    def wait(self, building: Building, age_s: float) -> bool:
        """Wait for the end of a build, as long as this request may; False if that was too short."""
        with self._lock:
            is_patient = building not in self._patient and len(self._patient) < MANY_PATIENT
            if is_patient:
                self._patient.add(building)
        try:
            patience_s = LONG_PATIENCE_S if is_patient else BUILD_PATIENCE_S
            return age_s < patience_s and building.is_over.wait(patience_s - age_s)
        finally:
            if is_patient:
                with self._lock:
                    self._patient.discard(building)

    def close(self, until: float) -> None:
        """Begin no more; wait for the threads until a moment of the monotonic clock at most."""
        self._crew.dismiss()
        self._crew.join(until)
