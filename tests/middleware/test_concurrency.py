"""Slots: taken before the app is called, and released exactly once, however the request ends."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug.test import create_environ, run_wsgi_app

from servers import DEADLINE_S
from tenantry.middleware.concurrency import ConcurrencyLimit, Slots
from tenantry.middleware.fair_share import FairShare
from tenantry.observability.scoreboard import Row, Scoreboard

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ACME, GLOBEX = "acme", "globex"


def _row(scoreboard: Scoreboard) -> Row:
    row = scoreboard.claim_row()
    assert row is not None
    return row


def good(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Answer 200."""
    del environ
    start_response("200 OK", [])
    return [b"good"]


def failing(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Raise `SystemExit`, which is not an `Exception`, instead of answering."""
    del environ, start_response
    raise SystemExit(3)


def streaming(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterator[bytes]:
    """Answer in two parts."""
    del environ
    start_response("200 OK", [])
    yield b"one"
    yield b"two"


class FailingBody:
    """A response body that raises on iteration and on `close`."""

    def __iter__(self) -> Iterator[bytes]:
        """Raise after the first chunk."""
        yield b"one"
        raise ValueError("read")

    def close(self) -> None:
        """Raise."""
        raise OSError("closed")


def _call(app: "WSGIApplication") -> Any:
    return app(create_environ(), lambda *_: lambda _: None)


def _close(body: Any) -> None:
    getattr(body, "close", lambda: None)()


# -- taken and released ---------------------------------------------------------------------------


def _read_all(body: Any) -> None:
    assert [b"good"] == list(body)
    _close(body)


def _close_unread(body: Any) -> None:
    _close(body)


def _close_twice(body: Any) -> None:
    _close(body)
    _close(body)


@pytest.mark.parametrize("end", [_read_all, _close_unread, _close_twice])
def test_a_slot_is_held_until_the_body_is_closed(end: Callable[[Any], None]) -> None:
    """The slot is released on close, whether the body is read or not, and closed once or twice."""
    row = _row(Scoreboard())
    slots = Slots(FairShare(8), row)

    body = _call(ConcurrencyLimit(good, slots, "acme", None))
    during = slots.in_use(), [one.tenant for one in row.in_flight()]
    end(body)

    assert ({"acme": 1}, ["acme"]) == during
    assert ({}, []) == (slots.in_use(), row.in_flight())


def test_a_cut_stream_releases_its_slot() -> None:
    """A stream holds a slot until `close`, even if the server has not read the whole stream."""
    slots = Slots(FairShare(8))

    body = _call(ConcurrencyLimit(streaming, slots, "acme", None))
    parts = next(iter(body)), slots.in_use()
    _close(body)

    assert ((b"one", {"acme": 1}), {}) == (parts, slots.in_use())


def test_an_app_that_raises_releases_its_slot() -> None:
    """The slot is released although the app raises `SystemExit`."""
    slots = Slots(FairShare(8))

    with pytest.raises(SystemExit):
        _call(ConcurrencyLimit(failing, slots, "acme", None))

    assert {} == slots.in_use()


def test_a_body_that_raises_releases_its_slot() -> None:
    """A slot is released although the iteration and the `close()` of the body raise."""
    slots = Slots(FairShare(8))
    body = _call(ConcurrencyLimit(lambda *_: FailingBody(), slots, "acme", None))

    with pytest.raises(ValueError, match="read"):
        list(body)
    with pytest.raises(OSError, match="closed"):
        _close(body)

    assert {} == slots.in_use()


def test_concurrent_requests_release_every_slot() -> None:
    """After many requests on eight threads, some failing or closed twice, no slot is taken."""
    row = _row(Scoreboard())
    slots = Slots(FairShare(None), row)
    layers = [
        ConcurrencyLimit(app, slots, name, None) for app in (good, failing) for name in ("a", "b")
    ]

    def work() -> None:
        for turn in range(400):
            try:
                body = _call(layers[turn % 4])
            except SystemExit:
                continue
            _close(body)
            if turn % 2:
                _close(body)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert ({}, [], 0) == (slots.in_use(), row.in_flight(), slots._in_flight)


# -- refused ---------------------------------------------------------------------------------------


def test_a_tenant_over_its_share_gets_503() -> None:
    """A tenant over the share gets 503 without a call of the app, until a slot is released."""
    slots = Slots(FairShare(4))
    acme, globex = (ConcurrencyLimit(good, slots, name, None) for name in ("acme", "globex"))
    held = [_call(acme), _call(acme)]

    refused, status, headers = run_wsgi_app(acme, create_environ())
    other = run_wsgi_app(globex, create_environ(), buffered=True)[1]
    _close(held.pop())
    again = run_wsgi_app(acme, create_environ(), buffered=True)[1]

    assert ("503 SERVICE UNAVAILABLE", "200 OK", "200 OK") == (status.upper(), other, again)
    assert ("application/problem+json", "1") == (headers["Content-Type"], headers["Retry-After"])
    assert b"requests in progress" in b"".join(refused)


def test_an_admitted_request_is_not_checked_again() -> None:
    """A request that the server admitted gets a slot although the tenant's share is used up."""
    slots = Slots(FairShare(2), _row(Scoreboard()))
    assert slots.take(ACME, None) is not None
    assert slots.take(ACME, None) is None

    slots.let_in("acme")

    assert slots.take(GLOBEX, None) is not None
    assert slots.take(ACME, None) is not None


def test_an_admitted_request_must_still_fit_its_bound() -> None:
    """The server checks the share only, so `MAX_CONCURRENT_REQUESTS` still applies."""
    slots = Slots(FairShare(8), _row(Scoreboard()))
    slots.let_in("acme")
    assert slots.take(ACME, 1) is not None

    assert slots.take(ACME, 1) is None


def test_a_bound_holds_over_all_processes() -> None:
    """With a bound of three, a process admits one request beside two of another process."""
    scoreboard = Scoreboard()
    mine, other = (Slots(FairShare(None), _row(scoreboard)) for _ in range(2))
    held = [other.take(ACME, 3), other.take(ACME, 3)]

    taken = [mine.take(ACME, 3), mine.take(ACME, 3)]

    assert [True, False] == [slot is not None for slot in taken]
    assert 3 == scoreboard.count_requests(ACME)
    assert mine.take(GLOBEX, 3) is not None
    assert all(held)


def test_a_bound_holds_without_a_scoreboard_row() -> None:
    """A process without a scoreboard row applies the bound to requests of that process alone."""
    slots = Slots(FairShare(None))

    taken = [slots.take(ACME, 2) for _ in range(3)]

    assert [True, True, False] == [slot is not None for slot in taken]
    assert {"acme": 2} == slots.in_use()


def test_processor_time_counts_for_the_tenant() -> None:
    """The processor time of a request's thread counts in the tenant's share."""
    share = FairShare(8)
    slots = Slots(share)
    slot = slots.take(ACME, None)
    assert slot is not None
    sum(range(200_000))

    used_s = time.thread_time() - slot.processor_begun_s
    slots.release(slot)

    assert 0 < used_s <= share._use["acme"][0]


def test_processor_time_counts_while_a_request_runs() -> None:
    """`note_running` counts the time so far; waiting adds nothing, and nothing counts twice."""
    share = FairShare(8)
    slots = Slots(share)
    has_computed, go_on = threading.Event(), threading.Event()
    used_times_s: list[float] = []

    def run() -> None:
        slot = slots.take(ACME, None)
        assert slot is not None
        sum(range(1_000_000))
        used_times_s.append(time.thread_time() - slot.processor_begun_s)
        has_computed.set()
        go_on.wait(DEADLINE_S)
        slots.release(slot)
        used_times_s.append(time.thread_time() - slot.processor_begun_s)

    thread = threading.Thread(target=run)
    thread.start()
    assert has_computed.wait(DEADLINE_S)
    slots.note_running()
    first = share._use["acme"]
    slots.note_running()
    go_on.set()
    thread.join()
    slots.note_running()

    assert used_times_s[0] <= first[0]
    assert 0 == first[1]
    assert share._use["acme"][0] <= used_times_s[1]
    assert {} == slots._running


def test_a_refused_request_does_not_change_the_use() -> None:
    """Refused requests do not count in a tenant's use of processor time per request."""
    share = FairShare(8)
    slots = Slots(share)
    held = slots.take(ACME, 1)

    refused = [slots.take(ACME, 1) for _ in range(3)]

    assert [None] * 3 == refused
    assert {} == share._use
    assert held is not None
    slots.release(held)
    assert share._use["acme"][1] == 1
