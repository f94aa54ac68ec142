"""The build pool limits how many requests wait for an app that is being built.

The tests set the age of a build, so they do not wait.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from servers import DEADLINE_S, wait_until
from tenantry.http.environ import START_WAIT_S
from tenantry.routing.build_pool import (
    MAX_LONG_WAITS,
    SHORT_WAIT_S,
    BuildPool,
    PendingBuild,
)


@pytest.fixture(name="threads")
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Return a thread pool. The fixture closes the pool after the test."""
    with ThreadPoolExecutor(MAX_LONG_WAITS) as threads:
        yield threads


def test_few_requests_of_a_process_wait_long(threads: ThreadPoolExecutor) -> None:
    """Only a few requests of a process wait long for a build; other requests give up early."""
    pool = BuildPool()
    builds = [PendingBuild(0.0) for _ in range(MAX_LONG_WAITS + 1)]
    waiting = [threads.submit(pool.wait, build, SHORT_WAIT_S) for build in builds[:-1]]
    wait_until(lambda: len(pool._long_waits) == MAX_LONG_WAITS)

    others = [pool.wait(build, SHORT_WAIT_S) for build in builds]

    for build in builds:
        build.has_ended.set()
    assert [False] * len(builds) == others
    assert [True] * MAX_LONG_WAITS == [wait.result(DEADLINE_S) for wait in waiting]
    assert pool.wait(builds[-1], SHORT_WAIT_S)


def test_no_request_waits_for_a_very_old_build() -> None:
    """No request waits for a build that has run for very long."""
    build, pool = PendingBuild(0.0), BuildPool()

    assert not pool.wait(build, START_WAIT_S)
    assert not pool._long_waits
