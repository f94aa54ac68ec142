"""A crew: a few threads that do jobs in turn; a job that hangs does not keep its thread's place.

Knows nothing of what the jobs are. The threads are daemons that start with a job and end when none
waits: one that hangs stops neither `join()` nor the process.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable

RELIEF_S = 1.0
"""After so long in one job a thread no longer counts, and another one takes its place: an import
that hangs cannot be stopped. Builds take 10 to 125 ms; while many are late because the machine is
overloaded, more threads would only make that worse."""

MAX_HELD = 64
"""Threads that such jobs may hold, of one crew. Once there are as many, the jobs that wait go on
waiting: more threads would cost the process what is left of it."""

Job = Callable[[], None]


class WorkerPool:
    """Threads for jobs. Thread-safe.

    Args:
        name: what its threads are called.
        size: jobs done at once.
        clock: seconds.
    """

    def __init__(self, name: str, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._size = size
        self._clock = clock
        self._lock = threading.Lock()  # protects all below
        self._jobs: deque[Job] = deque()
        self._since: dict[threading.Thread, float] = {}  # when each began the job that it does
        self._is_dismissed = False

    def do(self, job: Job) -> None:
        """Have a job done as soon as a thread is free; it raises nothing."""
        with self._lock:
            if self._is_dismissed:
                return
            self._jobs.append(job)
        self.relieve()

    def relieve(self) -> None:
        """See to it that there are threads for the jobs that wait."""
        with self._lock:
            self._since = {one: since for one, since in self._since.items() if one.is_alive()}
            places = min(self._size - self._active(), self._size + MAX_HELD - len(self._since))
            for _ in range(min(places, len(self._jobs))):
                self._start(self._jobs.popleft())

    def relieve_at(self) -> float:
        """Return when `relieve` may be of use next; infinite while no job waits."""
        with self._lock:
            if not self._jobs or len(self._since) >= self._size + MAX_HELD:
                return math.inf
            now = self._clock()
            late_at = [since + RELIEF_S for since in self._since.values()]
            return min((at for at in late_at if at > now), default=now + RELIEF_S)

    def dismiss(self) -> None:
        """Drop the jobs that wait; each thread ends after the one that it does."""
        with self._lock:
            self._is_dismissed = True
            self._jobs.clear()

    def join(self, until: float) -> None:
        """Wait for the threads, until a moment of the monotonic clock at most."""
        with self._lock:
            threads = list(self._since)
        for thread in threads:
            thread.join(max(until - time.monotonic(), 0))

    def _active(self) -> int:
        now = self._clock()
        return sum(since + RELIEF_S > now for since in self._since.values())

    def _start(self, job: Job) -> None:
        thread = threading.Thread(target=self._work, args=([job],), name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # there is none to be had: `relieve` tries again
            self._jobs.appendleft(job)
        else:
            self._since[thread] = self._clock()

    def _work(self, first: list[Job]) -> None:
        job: Job | None = first.pop()  # a job holds what it was for: nobody keeps it
        while job is not None:
            job()
            job = None
            job = self._next()

    def _next(self) -> Job | None:
        me = threading.current_thread()
        with self._lock:
            self._since.pop(me, None)
            if not self._jobs or self._active() >= self._size:
                return None
            self._since[me] = self._clock()
            return self._jobs.popleft()
