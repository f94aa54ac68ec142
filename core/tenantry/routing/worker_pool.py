"""Threads for jobs that may hang: a hung job does not block the jobs behind it.

`concurrent.futures.ThreadPoolExecutor` does not fit. A hung job would occupy its thread forever,
and the process could not exit, because the interpreter joins those threads.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

LATE_AFTER_S = 1.0
"""A job that runs longer than this is late: it no longer counts toward the size of its pool, and
another thread runs the next job. A hung import cannot be stopped. Builds take 10 to 125 ms. If many
are late because the machine is overloaded, more threads only make it worse."""

MAX_LATE_THREADS = 64
"""Threads of one pool that late jobs may occupy. Beyond that, jobs wait until one of them ends,
because still more threads would take what the process needs to serve."""

Job = Callable[[], None]


class WorkerPool:
    """A few daemon threads that run jobs in order. Thread-safe. `close` ends them.

    A thread starts when a job needs it, and ends when no job waits.

    Args:
        name: the name of the threads.
        size: number of jobs that run at once, late ones not counted.
        clock: monotonic seconds.
    """

    def __init__(self, name: str, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._size = size
        self._clock = clock
        self._lock = threading.Lock()  # protects everything below
        self._waiting: deque[Job] = deque()
        self._started_at: dict[threading.Thread, float] = {}  # thread → start of its current job
        self._is_closed = False

    @property
    def has_waiting_jobs(self) -> bool:
        """Whether a job waits for a thread. Then call `start_threads` again a little later."""
        return bool(self._waiting)

    def submit(self, job: Job) -> None:
        """Run a job as soon as a thread is free. The job must not raise."""
        with self._lock:
            if not self._is_closed:
                self._waiting.append(job)
        self.start_threads()

    def start_threads(self) -> None:
        """Start threads for the jobs that wait, as far as the size of the pool allows."""
        with self._lock:
            free = min(
                self._size - self._count_on_time(),
                self._size + MAX_LATE_THREADS - len(self._started_at),
            )
            for _ in range(min(free, len(self._waiting))):
                self._start_thread(self._waiting.popleft())

    def _start_thread(self, job: Job) -> None:
        thread = threading.Thread(target=self._run_jobs, args=(job,), name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread is available: the next call of `start_threads` tries again
            self._waiting.appendleft(job)
        else:
            self._started_at[thread] = self._clock()

    def close(self) -> None:
        """Drop the jobs that wait, and accept no more. Each thread ends after its current job."""
        with self._lock:
            self._is_closed = True
            self._waiting.clear()

    def join(self, deadline: float) -> None:
        """Wait for the threads, but not beyond `deadline` (seconds of `time.monotonic`)."""
        with self._lock:
            threads = list(self._started_at)
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))

    def _count_on_time(self) -> int:
        now = self._clock()
        return sum(started_at + LATE_AFTER_S > now for started_at in self._started_at.values())

    def _run_jobs(self, job: Job | None) -> None:
        while job is not None:
            job()
            job = self._next_job()

    def _next_job(self) -> Job | None:
        thread = threading.current_thread()
        with self._lock:
            self._started_at.pop(thread, None)
            if not self._waiting or self._count_on_time() >= self._size:
                return None
            self._started_at[thread] = self._clock()
            return self._waiting.popleft()
