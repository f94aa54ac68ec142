"""Rates: in this process by a clock that does not jump, and in a real Redis that comes and goes."""

import logging
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from limits import parse_many
from werkzeug.test import create_environ, run_wsgi_app

import redis_server
from servers import wait_until
from tenantry.middleware.rate_limit import LOOK_AGAIN_S, RateLimit, RateLimiter
from tenantry.middleware.rate_storage import (
    LOG_INTERVAL_S,
    PRUNE_AT,
    REDIS_TIMEOUT_S,
    SharedStorage,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from werkzeug.datastructures import Headers


class Clock:
    """A clock that a test sets."""

    now = 6000.0

    def __call__(self) -> float:
        """Return its time."""
        return self.now


def good(environ: "WSGIEnvironment", start_response: "StartResponse") -> "Iterable[bytes]":
    """Answer."""
    del environ
    start_response("200 OK", [("X-App", "good")])
    return [b"good"]


def _ask(gate: RateLimit) -> tuple[int, "Headers"]:
    _, status, headers = run_wsgi_app(gate, create_environ(), buffered=True)
    return int(status[:3]), headers


def _statuses(gate: RateLimit, count: int) -> list[int]:
    return [_ask(gate)[0] for _ in range(count)]


def _hits(rates: RateLimiter, rate: str, count: int, tenant: str = "acme") -> int:
    """Return how many of `count` requests are admitted."""
    verdicts = [rates.hit(tenant, parse_many(rate)) for _ in range(count)]
    return sum(verdict is None or not verdict.is_over for verdict in verdicts)


# -- in this process -------------------------------------------------------------------------------


def test_over_its_rate_a_tenant_gets_429() -> None:
    """With `Retry-After` and the `RateLimit` headers; within it the app answers, with those too."""
    gate = RateLimit(good, RateLimiter("memory://", lambda: 1, clock=Clock()), "acme", "2/minute")

    first, second, third = _ask(gate), _ask(gate), _ask(gate)

    assert [200, 200, 429] == [first[0], second[0], third[0]]
    assert [("good", "2", "1", "60"), ("good", "2", "0", "60"), (None, "2", "0", "60")] == [
        (headers.get("X-App"), *(headers[f"RateLimit-{one}"] for one in NAMES))
        for headers in (first[1], second[1], third[1])
    ]
    assert ('"default";q=2;w=60', '"default";r=0;t=60', "60") == tuple(
        third[1][name] for name in ("RateLimit-Policy", "RateLimit", "Retry-After")
    )


NAMES = ("Limit", "Remaining", "Reset")


def test_tenants_are_counted_apart() -> None:
    """One over its rate costs another one nothing."""
    rates = RateLimiter("memory://", lambda: 1, clock=Clock())

    assert (3, 3) == (_hits(rates, "3/minute", 5), _hits(rates, "3/minute", 5, "globex"))


def test_requests_go_out_of_sight_by_and_by() -> None:
    """Half a window later half of the last window's requests count still."""
    clock = Clock()
    rates = RateLimiter("memory://", lambda: 1, clock=clock)
    full = _hits(rates, "10/minute", 20)
    clock.now += 59.9
    late = _hits(rates, "10/minute", 20)
    clock.now += 30.1
    half = _hits(rates, "10/minute", 20)
    clock.now += 180.0
    anew = _hits(rates, "10/minute", 20)

    assert (10, 0, 5, 10) == (full, late, half, anew)


def test_several_rates_hold_together() -> None:
    """Two per second, and three per minute: whichever is used up refuses."""
    clock = Clock()
    rates = RateLimiter("memory://", lambda: 1, clock=clock)
    per_second = _hits(rates, "2/second; 3/minute", 3)
    clock.now += 10.0

    assert (2, 1) == (per_second, _hits(rates, "2/second; 3/minute", 3))


@pytest.mark.parametrize(("processes", "part"), [(1, 10), (2, 5), (3, 3), (20, 1)])
def test_in_memory_each_process_counts_its_part(processes: int, part: int) -> None:
    """Together no more than the rate, but for one request each."""
    rates = RateLimiter("memory://", lambda: processes, clock=Clock())

    assert part == _hits(rates, "10/minute", 20)


def test_who_is_told_when_to_come_again_is_let_in_then() -> None:
    """Not before: until that moment every request is refused."""
    clock = Clock()
    rates = RateLimiter("memory://", lambda: 1, clock=clock)
    gate = RateLimit(good, rates, "acme", "3/minute")
    _statuses(gate, 3)
    clock.now += 80.0  # two thirds of that window are in sight
    admitted = _statuses(gate, 2)
    wait_s = int(_ask(gate)[1]["Retry-After"])
    clock.now += wait_s - 1.01
    before = _ask(gate)[0]
    clock.now += 1.02

    assert ([200, 429], 429, 200) == (admitted, before, _ask(gate)[0])


def test_a_clock_that_jumps_locks_nobody_and_lets_nobody_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An hour forth or back on the machine's clock: the same requests are admitted."""
    rates = RateLimiter("memory://", lambda: 1)
    before = _hits(rates, "3/hour", 5)
    now = time.time()
    jumped = []
    for jump_s in (3600.0, -7200.0):
        monkeypatch.setattr(time, "time", lambda jump_s=jump_s: now + jump_s)
        jumped.append((_hits(rates, "3/hour", 5), _hits(rates, "3/hour", 5, f"new{jump_s}")))

    assert (3, [(0, 3), (0, 3)]) == (before, jumped)


def test_rates_of_long_ago_are_forgotten() -> None:
    """What is remembered does not grow with all tenants that ever had a request."""
    clock = Clock()
    rates = RateLimiter("memory://", lambda: 1, clock=clock)
    for number in range(PRUNE_AT):
        _hits(rates, "1/second", 1, str(number))
    clock.now += 10.0

    _hits(rates, "1/second", 1)

    assert 1 == len(rates._storage._storage._counts)  # type: ignore[union-attr]


def test_who_is_over_is_known_without_counting() -> None:
    """For a second at most; then the next request is counted, for the rate may be another one."""
    clock = Clock()
    rates = RateLimiter("memory://", lambda: 1, clock=clock)
    unknown = rates.known_over("acme")
    _hits(rates, "1/minute", 2)
    problem, headers = rates.known_over("acme") or pytest.fail("not known")
    clock.now += 0.9
    later = rates.known_over("acme")
    clock.now += LOOK_AGAIN_S - 0.9

    assert (None, 429, 60, ("RateLimit-Reset", "60")) == (
        unknown, problem.status, problem.retry_after_s, headers[2],
    )  # fmt: skip
    assert later is not None
    assert ("RateLimit-Reset", "60") == later[1][2]
    assert (None, None) == (rates.known_over("acme"), rates.known_over("globex"))


# -- in Redis --------------------------------------------------------------------------------------


@pytest.fixture(name="redis", scope="module")
def _redis() -> Iterator[redis_server.Redis]:
    """Return a real Redis."""
    with redis_server.running() as server:
        yield server


@pytest.fixture(name="two")
def _two(
    redis: redis_server.Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RateLimiter, RateLimiter]]:
    """Return the limiters of two workers, on one empty Redis that may be slow."""
    monkeypatch.setattr("tenantry.middleware.rate_storage.REDIS_TIMEOUT_S", 5.0)
    redis.say(b"FLUSHALL\r\n")
    both = RateLimiter(redis.url, lambda: 2), RateLimiter(redis.url, lambda: 2)
    yield both
    for rates in both:
        rates.close()


def test_redis_counts_over_all_processes(two: tuple[RateLimiter, RateLimiter]) -> None:
    """Exactly the rate, however the requests fall to two workers."""
    admitted = sum(_hits(two[number % 2], "25/hour", 1) for number in range(40))

    assert 25 == admitted


def _ask_until_it_counts(rates: RateLimiter) -> None:
    wait_until(lambda: rates.hit("probe", parse_many("1/hour")) is not None)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_without_redis_requests_pass(
    redis: redis_server.Redis,
    two: tuple[RateLimiter, RateLimiter],
    caplog: pytest.LogCaptureFixture,
    *,
    is_frozen: bool,
) -> None:
    """Dead or silent: logged once, counted, and it counts again when Redis is back."""
    rates, _ = two
    noted: list[str] = []
    rates._note_uncounted = noted.append
    before = _hits(rates, "1/hour", 3)
    redis.send_signal(signal.SIGSTOP) if is_frozen else redis.stop()
    passed = _hits(rates, "1/hour", 50)
    unanswered = rates.unanswered_total
    uncounted = noted.copy()
    redis.send_signal(signal.SIGCONT) if is_frozen else redis.start_again()
    _ask_until_it_counts(rates)

    assert (1, 50, 50) == (before, passed, unanswered)
    assert ["acme"] * 50 == uncounted
    events = [one.message for one in caplog.records if one.levelno >= logging.WARNING]
    assert ["rates.storage_lost", "rates.storage_found"] == events


def test_a_slow_redis_is_lost_until_it_is_fast(
    redis: redis_server.Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would be lost again at the next request, four times a second."""
    monkeypatch.setattr("tenantry.middleware.rate_storage.FIRST_PAUSE_S", 0.01)
    storage = SharedStorage(redis.url)
    probed = []
    incr = storage._probe.incr

    def slow(key: str, expiry: int) -> int:
        if len(probed) < 4:
            time.sleep(REDIS_TIMEOUT_S)
        probed.append(key)
        return incr(key, expiry)

    storage._probe.incr = slow  # type: ignore[method-assign,assignment]
    storage._note_lost(TimeoutError())
    wait_until(lambda: not storage._is_lost)
    storage.close()

    assert len(probed) >= 6
    assert ["rates.storage_lost", "rates.storage_found"] == [one.message for one in caplog.records]


def test_who_is_lost_again_and_again_is_told_now_and_then(
    redis: redis_server.Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in ten seconds, with all that passed meanwhile."""
    monkeypatch.setattr("tenantry.middleware.rate_storage.FIRST_PAUSE_S", 0.01)
    clock = Clock()
    storage = SharedStorage(redis.url, clock=clock)
    for _ in range(3):
        storage.unanswered_total += 5
        storage._note_lost(TimeoutError())
        wait_until(lambda: not storage._is_lost)
    clock.now += LOG_INTERVAL_S
    storage._note_lost(TimeoutError())
    wait_until(lambda: not storage._is_lost)
    storage.close()

    told = [(one.message.rpartition("_")[2], vars(one).get("passed_requests"))
            for one in caplog.records]  # fmt: skip
    assert [("lost", None), ("found", 5), ("lost", None), ("found", 10)] == told


def test_nobody_asks_a_lost_redis(redis: redis_server.Redis) -> None:
    """The first request finds out; those behind it do not wait, not even a moment."""
    storage = SharedStorage(redis.url)
    redis.send_signal(signal.SIGSTOP)
    first = storage.acquire("x", 1, 60)
    storage._storage.storage = None  # type: ignore[assignment]
    others = [storage.acquire("x", 1, 60) for _ in range(100)]
    redis.send_signal(signal.SIGCONT)
    storage._storage.storage = storage._probe.storage
    storage.close()

    assert ([None] * 101, 101) == ([first, *others], storage.unanswered_total)


def test_a_clock_of_redis_that_was_set_back_locks_nobody(
    redis: redis_server.Redis, two: tuple[RateLimiter, RateLimiter]
) -> None:
    """What was counted in its future is forgotten: else a tenant would wait as long."""
    rates, _ = two
    _hits(rates, "2/minute", 3)
    key = b"tenantry:{LIMITER/acme/2/1/minute}"
    set_back = redis.say(b"PEXPIRE %s 7200000\r\n" % key)

    assert (b":1\r\n", 2) == (set_back, _hits(rates, "2/minute", 3))


def test_a_failed_command_is_no_failed_request(
    redis: redis_server.Redis, two: tuple[RateLimiter, RateLimiter]
) -> None:
    """A Redis that only reads, after a failover: requests pass, until it writes again."""
    rates, _ = two
    redis.say(b"REPLICAOF 127.0.0.1 1\r\n")
    passed = _hits(rates, "1/hour", 5)
    redis.say(b"REPLICAOF NO ONE\r\n")
    _ask_until_it_counts(rates)

    assert 5 == passed
