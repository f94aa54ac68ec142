"""Rate limits: counted in this process by a monotonic clock, or in a real Redis that fails."""

import logging
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from limits import parse, parse_many
from werkzeug.test import create_environ, run_wsgi_app

import redis_server
from servers import wait_until
from tenantry.middleware.body_limit import BodyLimit
from tenantry.middleware.head_checks import HeadChecks
from tenantry.middleware.rate_files import ENTRIES
from tenantry.middleware.rate_limit import LOOK_AGAIN_S, RateLimit, RateLimiter
from tenantry.middleware.rate_storage import (
    LOG_INTERVAL_S,
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
        """Return the time that the test has set on the clock."""
        return self.now


def good(environ: "WSGIEnvironment", start_response: "StartResponse") -> "Iterable[bytes]":
    """Answer 200."""
    del environ
    start_response("200 OK", [("X-App", "good")])
    return [b"good"]


def _limited(rates: RateLimiter, rate: str) -> HeadChecks:
    """Return `good` behind a rate limit."""
    return HeadChecks(good, "acme", [RateLimit(rates, "acme", rate)], BodyLimit(0))


def _request(layer: HeadChecks) -> tuple[int, "Headers"]:
    _, status, headers = run_wsgi_app(layer, create_environ(), buffered=True)
    return int(status[:3]), headers


def _statuses(layer: HeadChecks, count: int) -> list[int]:
    return [_request(layer)[0] for _ in range(count)]


def _hits(rates: RateLimiter, rate: str, count: int, tenant: str = "acme") -> int:
    """Return how many of `count` requests are admitted."""
    verdicts = [rates.hit(tenant, tuple(parse_many(rate))) for _ in range(count)]
    return sum(verdict is None or not verdict.is_over for verdict in verdicts)


# -- in this process -------------------------------------------------------------------------------


def test_a_tenant_over_its_rate_gets_429() -> None:
    """A request over the rate gets 429 with `Retry-After`.

    All responses have `RateLimit` headers.
    """
    layer = _limited(RateLimiter("memory://", clock=Clock()), "2/minute")

    first, second, third = _request(layer), _request(layer), _request(layer)

    assert [200, 200, 429] == [first[0], second[0], third[0]]
    assert [("good", "2", "1", "60"), ("good", "2", "0", "60"), (None, "2", "0", "60")] == [
        (headers.get("X-App"), *(headers[f"RateLimit-{one}"] for one in NAMES))
        for headers in (first[1], second[1], third[1])
    ]
    assert ('"default";q=2;w=60', '"default";r=0;t=60', "60") == tuple(
        third[1][name] for name in ("RateLimit-Policy", "RateLimit", "Retry-After")
    )


NAMES = ("Limit", "Remaining", "Reset")


def test_tenants_are_counted_separately() -> None:
    """One tenant's requests do not count against another tenant's rate."""
    rates = RateLimiter("memory://", clock=Clock())

    assert (3, 3) == (_hits(rates, "3/minute", 5), _hits(rates, "3/minute", 5, "globex"))


def test_the_window_slides() -> None:
    """A request counts for exactly the length of the window."""
    clock = Clock()
    rates = RateLimiter("memory://", clock=clock)
    admitted = [_hits(rates, "3/minute", 2)]
    for pause_s in (30.0, 29.9, 0.2, 29.8, 0.2, 60.1):
        clock.now += pause_s
        admitted.append(_hits(rates, "3/minute", 5))

    assert [2, 1, 0, 2, 0, 1, 3] == admitted


def test_a_high_rate_is_never_exceeded_in_a_window() -> None:
    """For rates above `ENTRIES`, no window exceeds the rate, and 0.4 % later all requests fit."""
    clock = Clock()
    rates = RateLimiter("memory://", clock=clock)
    admitted: list[float] = []
    for _ in range(3000):
        clock.now += 0.05
        if _hits(rates, "1000/minute", 1):
            admitted.append(clock.now)
    most = max(sum(at - 60.0 < one <= at for one in admitted) for at in admitted[::10])
    clock.now += 60.0 * (1 + 1 / (ENTRIES - 1))

    assert 990 < most <= 1000
    assert 1000 == _hits(rates, "1000/minute", 1500)


def test_a_request_that_one_rate_refuses_counts_in_no_other() -> None:
    """Requests over the rate per minute do not use up the rate per second."""
    clock = Clock()
    rates = RateLimiter("memory://", clock=clock)
    _hits(rates, "2/second; 3/minute", 2)
    clock.now += 1.1
    _hits(rates, "2/second; 3/minute", 1)
    clock.now += 58.8
    _hits(rates, "2/second; 3/minute", 9)
    clock.now += 0.2

    assert 2 == _hits(rates, "2/second; 3/minute", 9)


def test_every_one_of_several_rates_holds() -> None:
    """With `2/second; 3/minute`, a request is refused as soon as either rate is used up."""
    clock = Clock()
    rates = RateLimiter("memory://", clock=clock)
    per_second = _hits(rates, "2/second; 3/minute", 3)
    clock.now += 10.0

    assert (2, 1) == (per_second, _hits(rates, "2/second; 3/minute", 3))


def test_a_request_after_retry_after_is_admitted() -> None:
    """Requests are refused until the time in `Retry-After`, and admitted from then on."""
    clock = Clock()
    layer = _limited(RateLimiter("memory://", clock=clock), "3/minute")
    _statuses(layer, 1)
    clock.now += 20.0
    admitted = _statuses(layer, 3)
    wait_s = int(_request(layer)[1]["Retry-After"])
    clock.now += wait_s - 0.01
    before = _request(layer)[0]
    clock.now += 0.02

    assert ([200, 200, 429], 40, 429, 200) == (admitted, wait_s, before, _request(layer)[0])


def test_a_jump_of_the_system_clock_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the system clock jumps by hours, the same requests are admitted and refused."""
    rates = RateLimiter("memory://")
    before = _hits(rates, "3/hour", 5)
    now = time.time()
    jumped = []
    for jump_s in (3600.0, -7200.0):
        monkeypatch.setattr(time, "time", lambda jump_s=jump_s: now + jump_s)
        jumped.append((_hits(rates, "3/hour", 5), _hits(rates, "3/hour", 5, f"new{jump_s}")))

    assert (3, [(0, 3), (0, 3)]) == (before, jumped)


def test_a_tenant_over_its_rate_is_known_without_counting() -> None:
    """For up to `LOOK_AGAIN_S`, `known_over` returns the refusal without counting requests."""
    clock = Clock()
    rates = RateLimiter("memory://", clock=clock)
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
    """Return a real Redis server."""
    with redis_server.running() as server:
        yield server


@pytest.fixture(name="two")
def _two(
    redis: redis_server.Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RateLimiter, RateLimiter]]:
    """Return the limiters of two workers that share an empty Redis, with a long timeout."""
    monkeypatch.setattr("tenantry.middleware.rate_storage.REDIS_TIMEOUT_S", 5.0)
    redis.say(b"FLUSHALL\r\n")
    both = RateLimiter(redis.url), RateLimiter(redis.url)
    yield both
    for rates in both:
        rates.close()


def test_redis_counts_over_all_processes(two: tuple[RateLimiter, RateLimiter]) -> None:
    """Two workers that share a Redis together admit exactly the rate."""
    admitted = sum(_hits(two[number % 2], "25/hour", 1) for number in range(40))

    assert 25 == admitted


def _wait_until_it_counts(rates: RateLimiter) -> None:
    wait_until(lambda: rates.hit("probe", (parse("1/hour"),)) is not None)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_without_redis_requests_pass(
    redis: redis_server.Redis,
    two: tuple[RateLimiter, RateLimiter],
    caplog: pytest.LogCaptureFixture,
    *,
    is_frozen: bool,
) -> None:
    """While Redis is dead or frozen, requests are admitted uncounted, and one line is logged."""
    rates, _ = two
    noted: list[str] = []
    rates._note_uncounted = noted.append
    before = _hits(rates, "1/hour", 3)
    redis.send_signal(signal.SIGSTOP) if is_frozen else redis.stop()
    passed = _hits(rates, "1/hour", 50)
    unanswered = rates.unanswered_total
    uncounted = noted.copy()
    redis.send_signal(signal.SIGCONT) if is_frozen else redis.start_again()
    _wait_until_it_counts(rates)

    assert (1, 50, 50) == (before, passed, unanswered)
    assert ["acme"] * 50 == uncounted
    events = [one.message for one in caplog.records if one.levelno >= logging.WARNING]
    assert ["rates.storage_lost", "rates.storage_found"] == events


def test_a_slow_redis_stays_lost_until_it_is_fast(
    redis: redis_server.Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis counts as lost until probes are faster than `REDIS_TIMEOUT_S`."""
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


def test_repeated_losses_are_logged_once_per_interval(
    redis: redis_server.Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Redis fails repeatedly, one line per `LOG_INTERVAL_S` counts all uncounted requests."""
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

    logged = [(one.message.rpartition("_")[2], vars(one).get("passed_requests"))
            for one in caplog.records]  # fmt: skip
    assert [("lost", None), ("found", 5), ("lost", None), ("found", 10)] == logged


def test_requests_do_not_wait_for_a_lost_redis(redis: redis_server.Redis) -> None:
    """Only the first request waits for a frozen Redis; the next 100 requests never call Redis."""
    storage = SharedStorage(redis.url)
    redis.send_signal(signal.SIGSTOP)
    first = storage.acquire("x", 1, 60)
    storage._storage.storage = None  # type: ignore[assignment]
    others = [storage.acquire("x", 1, 60) for _ in range(100)]
    redis.send_signal(signal.SIGCONT)
    storage._storage.storage = storage._probe.storage
    storage.close()

    assert ([None] * 101, 101) == ([first, *others], storage.unanswered_total)


def test_a_redis_clock_set_back_does_not_lock_a_tenant_out(
    redis: redis_server.Redis, two: tuple[RateLimiter, RateLimiter]
) -> None:
    """A count that expires too late, because the clock of Redis was set back, is dropped."""
    rates, _ = two
    _hits(rates, "2/minute", 3)
    key = b"tenantry:{LIMITER/acme/2/1/minute}"
    set_back = redis.say(b"PEXPIRE %s 7200000\r\n" % key)

    assert (b":1\r\n", 2) == (set_back, _hits(rates, "2/minute", 3))


def test_requests_pass_while_redis_is_read_only(
    redis: redis_server.Redis, two: tuple[RateLimiter, RateLimiter]
) -> None:
    """While Redis is a read-only replica, as after a failover, requests are admitted."""
    rates, _ = two
    redis.say(b"REPLICAOF 127.0.0.1 1\r\n")
    passed = _hits(rates, "1/hour", 5)
    redis.say(b"REPLICAOF NO ONE\r\n")
    _wait_until_it_counts(rates)

    assert 5 == passed
