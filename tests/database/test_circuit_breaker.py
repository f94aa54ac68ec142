"""A breaker: what is down is known to be down, and looked at now and then by one at a time."""

import pytest

from tenantry.database.circuit_breaker import (
    FIRST_PAUSE_S,
    MAX_PAUSE_S,
    SLOW_S,
    TRIES_AT_ONCE,
    Breaker,
)


class Clock:
    """Seconds that pass when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture(name="clock")
def _clock() -> Clock:
    return Clock()


@pytest.fixture(name="breaker")
def _breaker(clock: Clock) -> Breaker:
    return Breaker(clock=clock)


def test_a_closed_breaker_lets_everybody_try(breaker: Breaker) -> None:
    """Nothing failed: no pause, and nothing to probe."""
    assert (None, None, False) == (breaker.begin(), breaker.pause_s, breaker.begin_probe())


def test_after_a_failure_nobody_tries(breaker: Breaker) -> None:
    """It is news once; until the pause is over, everybody is told how long it takes."""
    breaker.begin()

    news = [breaker.fail(), breaker.fail()]

    assert [True, False] == news
    assert (2 * FIRST_PAUSE_S,) * 2 == (breaker.pause_s, breaker.begin())


def test_one_at_a_time_probes(breaker: Breaker, clock: Clock) -> None:
    """After the pause one may look; meanwhile, and until the next pause is over, nobody else."""
    breaker.begin()
    breaker.fail()
    is_early = breaker.begin_probe()
    clock.now += FIRST_PAUSE_S

    is_due = [breaker.begin_probe(), breaker.begin_probe()]
    breaker.fail()
    breaker.end_probe()

    assert (False, [True, False], False) == (is_early, is_due, breaker.begin_probe())


def test_pauses_double_up_to_a_bound(breaker: Breaker) -> None:
    """A database that was down for long is noticed soon after its return all the same."""
    pauses = []
    for _ in range(50):
        breaker.fail()
        pauses.append(breaker.pause_s)

    assert [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S, MAX_PAUSE_S] == pauses[:4]
    assert MAX_PAUSE_S == pauses[-1]


def test_a_success_closes_it(breaker: Breaker) -> None:
    """The first good try ends it, and says so."""
    breaker.fail()

    assert [True, False] == [breaker.succeed(), breaker.succeed()]
    assert breaker.pause_s is None


def test_a_slow_try_is_a_sign_of_failure(breaker: Breaker, clock: Clock) -> None:
    """While a try hangs, others do not hang beside it; when it ends well, all is well."""
    for _ in range(TRIES_AT_ONCE):
        breaker.begin()
    clock.now += SLOW_S

    pauses = breaker.pause_s, breaker.begin()
    for _ in range(TRIES_AT_ONCE):
        breaker.succeed()

    assert ((SLOW_S, SLOW_S), None) == (pauses, breaker.begin())
