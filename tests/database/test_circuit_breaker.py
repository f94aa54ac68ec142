"""A circuit breaker stops attempts after a failure, and then allows one probe at a time."""

import pytest

from tenantry.database.circuit_breaker import (
    FIRST_PAUSE_S,
    MAX_ATTEMPTS,
    MAX_PAUSE_S,
    SLOW_S,
    CircuitBreaker,
)


class Clock:
    """A clock that the test sets. Times are in seconds."""

    now = 100.0

    def __call__(self) -> float:
        """Return the time that the test has set."""
        return self.now


@pytest.fixture(name="clock")
def _clock() -> Clock:
    return Clock()


@pytest.fixture(name="breaker")
def _breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(clock=clock)


def test_a_closed_breaker_allows_attempts(breaker: CircuitBreaker) -> None:
    """A circuit breaker without failures allows every attempt."""
    assert (None, None, False) == (breaker.begin(), breaker.pause_s, breaker.begin_probe())


def test_a_failure_opens_it(breaker: CircuitBreaker) -> None:
    """After the first failure, the circuit breaker blocks attempts for a pause."""
    breaker.begin()

    has_opened = [breaker.fail(), breaker.fail()]

    assert [True, False] == has_opened
    assert (2 * FIRST_PAUSE_S,) * 2 == (breaker.pause_s, breaker.begin())


def test_one_probe_runs_at_a_time(breaker: CircuitBreaker, clock: Clock) -> None:
    """After each pause, the circuit breaker allows one probe."""
    breaker.begin()
    breaker.fail()
    is_early = breaker.begin_probe()
    clock.now += FIRST_PAUSE_S

    is_due = [breaker.begin_probe(), breaker.begin_probe()]
    breaker.fail()
    breaker.end_probe()

    assert (False, [True, False], False) == (is_early, is_due, breaker.begin_probe())


def test_pauses_double_up_to_a_bound(breaker: CircuitBreaker) -> None:
    """The circuit breaker doubles its pause after each failure, up to a maximum."""
    pauses = []
    for _ in range(50):
        breaker.fail()
        pauses.append(breaker.pause_s)

    assert [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S, MAX_PAUSE_S] == pauses[:4]
    assert MAX_PAUSE_S == pauses[-1]


def test_a_success_closes_it(breaker: CircuitBreaker) -> None:
    """Only the first success closes an open circuit breaker."""
    breaker.fail()

    assert [True, False] == [breaker.succeed(), breaker.succeed()]
    assert breaker.pause_s is None


def test_slow_attempts_block_others(breaker: CircuitBreaker, clock: Clock) -> None:
    """While many attempts hang, the circuit breaker allows no further attempt."""
    for _ in range(MAX_ATTEMPTS):
        breaker.begin()
    clock.now += SLOW_S

    pauses = breaker.pause_s, breaker.begin()
    for _ in range(MAX_ATTEMPTS):
        breaker.succeed()

    assert ((SLOW_S, SLOW_S), None) == (pauses, breaker.begin())
