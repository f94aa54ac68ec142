"""Slots: taken before the app is called, given back exactly once, however the request ends."""

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
    """Answer."""
    del environ
    start_response("200 OK", [])
    return [b"good"]


def failing(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Raise before an answer, something that is no Exception."""
    del environ, start_response
    raise SystemExit(3)


def streaming(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterator[bytes]:
    """Answer in two parts."""
    del environ
    start_response("200 OK", [])
    yield b"one"
    yield b"two"


class FailingBody:
    """A body that fails while it is read, and when it is closed."""

    def __iter__(self) -> Iterator[bytes]:
        """Fail after the first part."""
        yield b"one"
        raise ValueError("read")

    def close(self) -> None:
        """Fail."""
        raise OSError("closed")


def _ask(app: "WSGIApplication") -> Any:
    return app(create_environ(), lambda *_: lambda _: None)


def _close(body: Any) -> None:
    getattr(body, "close", lambda: None)()


# -- taken and given back ------------------------------------------------------------------------


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
    """Read to its end or cut by the client, closed once or twice."""
    row = _row(Scoreboard())
    slots = Slots(FairShare(8), row)

    body = _ask(ConcurrencyLimit(good, slots, "acme", None))
    during = slots.in_use(), [one.tenant for one in row.in_flight()]
    end(body)

    assert ({"acme": 1}, ["acme"]) == during
    assert ({}, []) == (slots.in_use(), row.in_flight())


def test_a_stream_that_the_client_cuts_gives_its_slot_back() -> None:
    """It is held while the body streams."""
    slots = Slots(FairShare(8))

    body = _ask(ConcurrencyLimit(streaming, slots, "acme", None))
    parts = next(iter(body)), slots.in_use()
    _close(body)

    assert ((b"one", {"acme": 1}), {}) == (parts, slots.in_use())


def test_an_app_that_raises_gives_its_slot_back() -> None:
    """Also what is no Exception."""
    slots = Slots(FairShare(8))

    with pytest.raises(SystemExit):
        _ask(ConcurrencyLimit(failing, slots, "acme", None))

    assert {} == slots.in_use()


def test_a_body_that_fails_gives_its_slot_back() -> None:
    """Its `close` may fail, too."""
    slots = Slots(FairShare(8))
    body = _ask(ConcurrencyLimit(lambda *_: FailingBody(), slots, "acme", None))

    with pytest.raises(ValueError, match="read"):
        list(body)
    with pytest.raises(OSError, match="closed"):
        _close(body)

    assert {} == slots.in_use()


def test_many_at_once_leave_no_slot_taken() -> None:
    """Eight threads, good and failing requests, and every second body closed twice."""
    row = _row(Scoreboard())
    slots = Slots(FairShare(None), row)
    gates = [
        ConcurrencyLimit(app, slots, name, None) for app in (good, failing) for name in ("a", "b")
    ]

    def work() -> None:
        for turn in range(400):
            try:
                body = _ask(gates[turn % 4])
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


def test_over_its_share_a_tenant_gets_503_at_once() -> None:
    """The app is not called; other tenants are admitted; with a slot given back it is, too."""
    slots = Slots(FairShare(4))
    acme, globex = (ConcurrencyLimit(good, slots, name, None) for name in ("acme", "globex"))
    held = [_ask(acme), _ask(acme)]

    refused, status, headers = run_wsgi_app(acme, create_environ())
    other = run_wsgi_app(globex, create_environ(), buffered=True)[1]
    _close(held.pop())
    again = run_wsgi_app(acme, create_environ(), buffered=True)[1]

    assert ("503 SERVICE UNAVAILABLE", "200 OK", "200 OK") == (status.upper(), other, again)
    assert ("application/problem+json", "1") == (headers["Content-Type"], headers["Retry-After"])
    assert b"requests in progress" in b"".join(refused)


def test_who_was_let_in_is_not_asked_again() -> None:
    """The server has asked for its tenant, and others have come to their threads meanwhile."""
    slots = Slots(FairShare(2), _row(Scoreboard()))
    assert slots.take(ACME, None) is not None
    assert slots.take(ACME, None) is None

    slots.let_in("acme")

    assert slots.take(GLOBEX, None) is not None
    assert slots.take(ACME, None) is not None


def test_who_was_let_in_may_not_have_more_than_its_bound() -> None:
    """Of the share alone the server has asked."""
    slots = Slots(FairShare(8), _row(Scoreboard()))
    slots.let_in("acme")
    assert slots.take(ACME, 1) is not None

    assert slots.take(ACME, 1) is None


def test_a_bound_holds_over_all_processes() -> None:
    """Of two processes that may have three together, the second gets one beside two."""
    scoreboard = Scoreboard()
    mine, other = (Slots(FairShare(None), _row(scoreboard)) for _ in range(2))
    held = [other.take(ACME, 3), other.take(ACME, 3)]

    taken = [mine.take(ACME, 3), mine.take(ACME, 3)]

    assert [True, False] == [slot is not None for slot in taken]
    assert 3 == scoreboard.count_requests(ACME)
    assert mine.take(GLOBEX, 3) is not None
    assert all(held)


def test_a_bound_holds_without_a_board() -> None:
    """More processes than the scoreboard has rows: each bounds its own."""
    slots = Slots(FairShare(None))

    taken = [slots.take(ACME, 2) for _ in range(3)]

    assert [True, True, False] == [slot is not None for slot in taken]
    assert {"acme": 2} == slots.in_use()


def test_what_requests_compute_counts() -> None:
    """Their thread's processor seconds go to the share of their tenant."""
    share = FairShare(8)
    slots = Slots(share)
    slot = slots.take(ACME, None)
    assert slot is not None
    sum(range(200_000))

    used_s = time.thread_time() - slot.processor_begun_s
    slots.release(slot)

    assert 0 < used_s <= share._use["acme"][0]


def test_what_requests_compute_counts_while_they_run() -> None:
    """Another thread notes it; one that waits adds nothing, and nothing counts twice."""
    share = FairShare(8)
    slots = Slots(share)
    has_computed, go_on = threading.Event(), threading.Event()
    told = []

    def run() -> None:
        slot = slots.take(ACME, None)
        assert slot is not None
        sum(range(1_000_000))
        told.append(time.thread_time() - slot.processor_begun_s)
        has_computed.set()
        go_on.wait(DEADLINE_S)
        slots.release(slot)
        told.append(time.thread_time() - slot.processor_begun_s)

    thread = threading.Thread(target=run)
    thread.start()
    assert has_computed.wait(DEADLINE_S)
    slots.note_running()
    first = share._use["acme"]
    slots.note_running()
    go_on.set()
    thread.join()
    slots.note_running()

    assert told[0] <= first[0]
    assert 0 == first[1]
    assert share._use["acme"][0] <= told[1]
    assert {} == slots._running


def test_a_refused_request_says_nothing_of_what_requests_compute() -> None:
    """Else a tenant that computes would seem to have many short requests."""
    share = FairShare(8)
    slots = Slots(share)
    held = slots.take(ACME, 1)

    refused = [slots.take(ACME, 1) for _ in range(3)]

    assert [None] * 3 == refused
    assert {} == share._use
    assert held is not None
    slots.release(held)
    assert share._use["acme"][1] == 1
