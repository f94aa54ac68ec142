"""A pool of threads for jobs that may hang. A job that hangs does not block later jobs.

In a `concurrent.futures.ThreadPoolExecutor`, a job that hangs would occupy its thread forever. The
process could not exit, because the interpreter waits for the threads of an executor.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

LATE_AFTER_S = 1.0
"""Seconds after which a job is late. A late job, such as an import that hangs, cannot be stopped. A
late job does not count toward the size of the pool, so that another thread can run the next job.
Builds take 10 to 125 ms."""

MAX_LATE_THREADS = 64
"""Maximum number of threads of one pool that late jobs may occupy, because more threads would slow
down requests. If all are occupied, the next job waits until a late job ends."""

Job = Callable[[], None]


class WorkerPool:
    """A few daemon threads that run jobs in order. Thread-safe. `close` ends the threads.

    A thread starts when a job needs one, and ends when no job is waiting.

    Args:
        name: the name of the threads.
        size: maximum number of concurrent jobs, not counting late jobs.
        clock: returns monotonic seconds.
    """

    def __init__(self, name: str, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._size = size
        self._clock = clock
        self._lock = threading.Lock()  # the lock protects the jobs and the threads
        self._waiting: deque[Job] = deque()
        self._started_at: dict[threading.Thread, float] = {}  # thread → start of its current job
        self._is_closed = False

    @property
    def has_waiting_jobs(self) -> bool:
        """Whether a job waits for a thread, so that `start_threads` must be called again soon."""
        return bool(self._waiting)

    def submit(self, job: Job) -> None:
        """Run `job` as soon as a thread is free. The job must not raise an exception."""
        with self._lock:
            if not self._is_closed:
                self._waiting.append(job)
        self.start_threads()

    def start_threads(self) -> None:
        """Start threads for the waiting jobs, up to the size of the pool."""
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
        except RuntimeError:  # no thread is available, so the next `start_threads` tries again
            self._waiting.appendleft(job)
        else:
            self._started_at[thread] = self._clock()

    def close(self) -> None:
        """Drop the waiting jobs and accept no more. Each thread ends after its current job."""
        with self._lock:
            self._is_closed = True
            self._waiting.clear()

    def join(self, deadline: float) -> None:
        """Wait until the threads have ended, or until `deadline` in monotonic seconds."""
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
