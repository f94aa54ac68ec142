"""The worker pool starts additional threads while jobs hang.

The tests use real threads, jobs that end on request, and a clock that a test moves.
"""

import math
import threading
from collections.abc import Iterator

import pytest

from servers import DEADLINE_S, wait_until
from tenantry.routing import worker_pool
from tenantry.routing.worker_pool import LATE_AFTER_S, WorkerPool


class HangingJobs:
    """A pool of two threads, and jobs that hang until the test releases them."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.pool = WorkerPool("hanging", 2, lambda: self.now_s)
        self.started: list[int] = []
        self.released = threading.Event()

    def submit(self, count: int) -> None:
        """Submit jobs that hang until the test releases them."""
        for number in range(count):
            self.pool.submit(lambda number=number: self._hang(number))  # type: ignore[misc]

    def _hang(self, number: int) -> None:
        self.started.append(number)
        assert self.released.wait(DEADLINE_S)

    def started_after(self, rounds: int) -> int:
        """Return how many jobs have started after all threads were late `rounds` times."""
        for _ in range(rounds):
            self.now_s += LATE_AFTER_S
            self.pool.start_threads()
        wait_until(lambda: len(self.started) >= len(self.pool._started_at))
        return len(self.started)


@pytest.fixture(name="jobs")
def _jobs() -> Iterator[HangingJobs]:
    """Return the hanging jobs. The fixture closes the pool after the test."""
    jobs = HangingJobs()
    yield jobs
    jobs.pool.close()
    jobs.released.set()


@pytest.mark.parametrize(("rounds", "expected"), [(0, 2), (1, 4), (3, 8), (9, 8)])
def test_late_jobs_do_not_count_toward_the_size(
    jobs: HangingJobs, rounds: int, expected: int
) -> None:
    """If both threads of a pool hang for too long, two more threads start."""
    jobs.submit(8)

    assert expected == jobs.started_after(rounds)


def test_late_jobs_occupy_a_limited_number_of_threads(
    jobs: HangingJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker pool limits how many additional threads it starts."""
    monkeypatch.setattr(worker_pool, "MAX_LATE_THREADS", 3)
    jobs.submit(8)

    started, is_waiting = jobs.started_after(9), jobs.pool.has_waiting_jobs

    jobs.released.set()
    wait_until(lambda: len(jobs.started) == 8)
    assert (5, True, False) == (started, is_waiting, jobs.pool.has_waiting_jobs)


def test_threads_end_when_no_job_waits(jobs: HangingJobs) -> None:
    """A worker pool without jobs has no threads."""
    jobs.released.set()
    jobs.submit(5)

    wait_until(lambda: len(jobs.started) == 5 and not jobs.pool._started_at)

    jobs.pool.join(math.inf)


def test_a_closed_pool_starts_no_job(jobs: HangingJobs) -> None:
    """A closed worker pool drops waiting jobs, and jobs that are submitted later."""
    jobs.submit(3)
    jobs.started_after(0)

    jobs.pool.close()
    jobs.submit(1)

    assert 2 == jobs.started_after(3)


def test_without_a_free_thread_in_the_system_a_job_waits(
    jobs: HangingJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the system cannot start a thread, the job waits until the next attempt."""
    jobs.released.set()
    start = threading.Thread.start

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    jobs.submit(1)
    is_waiting = jobs.pool.has_waiting_jobs
    monkeypatch.setattr(threading.Thread, "start", start)

    jobs.pool.start_threads()

    wait_until(lambda: jobs.started == [0])
    assert is_waiting
