"""Crews: real threads, jobs that end when a test lets them, a clock moved by hand."""

import math
import threading
from collections.abc import Iterator

import pytest

from servers import DEADLINE_S, wait_until
from tenantry.routing import worker_pool as crew_module
from tenantry.routing.worker_pool import RELIEF_S, WorkerPool


class Late:
    """A crew of two, and jobs that go on until the end of the test."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.crew = WorkerPool("late", 2, lambda: self.now_s)
        self.begun: list[int] = []
        self.released = threading.Event()

    def hang(self, count: int) -> None:
        """Give it jobs that hang."""
        for number in range(count):
            self.crew.do(lambda number=number: self._hang(number))  # type: ignore[misc]

    def _hang(self, number: int) -> None:
        self.begun.append(number)
        assert self.released.wait(DEADLINE_S)

    def begun_after(self, rounds: int) -> int:
        """Return how many jobs were begun when their threads were late so many times."""
        for _ in range(rounds):
            self.now_s += RELIEF_S
            self.crew.relieve()
        wait_until(lambda: len(self.begun) >= len(self.crew._since))
        return len(self.begun)


@pytest.fixture(name="late")
def _late() -> Iterator[Late]:
    """Return a crew whose jobs end with the test."""
    late = Late()
    yield late
    late.crew.dismiss()
    late.released.set()


@pytest.mark.parametrize(("rounds", "expected"), [(0, 2), (1, 4), (3, 8), (9, 8)])
def test_late_jobs_lose_their_place(late: Late, rounds: int, expected: int) -> None:
    """Two more are begun each time; the threads that are late are not stopped."""
    late.hang(8)

    assert expected == late.begun_after(rounds)


def test_late_jobs_hold_so_many_threads_and_no_more(
    late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the others wait until one of them ends."""
    monkeypatch.setattr(crew_module, "MAX_HELD", 3)
    late.hang(8)

    begun = [late.begun_after(9), late.crew.relieve_at()]

    late.released.set()
    wait_until(lambda: len(late.begun) == 8)
    assert [5, math.inf] == begun


def test_it_says_when_to_relieve_it(late: Late) -> None:
    """When the next thread is late, if a job waits for its place."""
    asked = [late.crew.relieve_at()]
    for count in (2, 1):
        late.hang(count)
        asked.append(late.crew.relieve_at())

    assert [math.inf, math.inf, late.now_s + RELIEF_S] == asked


def test_its_threads_end_when_no_job_waits(late: Late) -> None:
    """A crew without jobs is a few bytes."""
    late.released.set()
    late.hang(5)

    wait_until(lambda: len(late.begun) == 5 and not late.crew._since)

    late.crew.join(math.inf)


def test_a_dismissed_crew_does_nothing_more(late: Late) -> None:
    """What waits is dropped, and so is what comes."""
    late.hang(3)
    late.begun_after(0)

    late.crew.dismiss()
    late.hang(1)

    assert 2 == late.begun_after(3)
