"""First builds: who waits how long. Ages are told, not waited for."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from servers import DEADLINE_S, wait_until
from tenantry.routing.build_pool import (
    BUILD_PATIENCE_S,
    LONG_PATIENCE_S,
    MANY_PATIENT,
    Building,
    BuildPool,
)

YOUNG_S = BUILD_PATIENCE_S
"""The age at which only the patient wait on; they do for longer than any deadline of a test."""


@pytest.fixture(name="threads")
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Return threads that end with the test."""
    with ThreadPoolExecutor(MANY_PATIENT) as threads:
        yield threads


def test_few_requests_of_a_process_wait_long(threads: ThreadPoolExecutor) -> None:
    """One for each of a few builds; all others give up early, until one of the few is done."""
    first_builds = BuildPool()
    buildings = [Building(0.0) for _ in range(MANY_PATIENT + 1)]
    waiting = [threads.submit(first_builds.wait, one, YOUNG_S) for one in buildings[:-1]]
    wait_until(lambda: len(first_builds._patient) == MANY_PATIENT)

    impatient = [first_builds.wait(one, YOUNG_S) for one in buildings]

    for one in buildings:
        one.is_over.set()
    assert [False] * len(buildings) == impatient
    assert [True] * MANY_PATIENT == [one.result(DEADLINE_S) for one in waiting]
    assert first_builds.wait(buildings[-1], YOUNG_S)


def test_nobody_waits_for_a_build_that_is_very_old() -> None:
    """A tenant that hangs holds no thread from then on."""
    building, first_builds = Building(0.0), BuildPool()

    assert not first_builds.wait(building, LONG_PATIENCE_S)
    assert not first_builds._patient
