"""Requests in flight: each request enters when it may run, and leaves exactly once."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import create_environ

from conftest import KEY
from servers import DEADLINE_S
from tenantry.http.environ import REQUEST_ID, REQUEST_RECORD, TARGET, TENANT
from tenantry.http.request_record import RequestRecord
from tenantry.middleware.accounting import Accounting
from tenantry.middleware.fair_share import FairShare
from tenantry.middleware.in_flight import LONG_NS, RequestLimits, RequestsInFlight
from tenantry.observability.scoreboard import Row, Scoreboard
from tenantry.observability.usage_counters import UsageCounters
from tenantry.settings import HostSettings
from tenantry.tenants.validation import parse_tenant

ACME, GLOBEX = "acme", "globex"
UNLIMITED = RequestLimits(None, 30.0, is_answering=False)


def _row(scoreboard: Scoreboard) -> Row:
    row = scoreboard.claim_row()
    assert row is not None
    return row


def _in_flight(threads: int | None = 8, row: Row | None = None) -> RequestsInFlight:
    return RequestsInFlight(FairShare(threads), row)


def _entered(in_flight: RequestsInFlight, tenant: str = ACME) -> RequestRecord:
    record = in_flight.enter(tenant, UNLIMITED)
    assert record is not None
    return record


def _at_most(count: int) -> RequestLimits:
    return UNLIMITED._replace(max_requests=count)


# -- in and out ------------------------------------------------------------------------------------


def good(_: object, start_response: Any) -> Iterable[bytes]:
    """Answer 200."""
    start_response("200 OK", [])
    return [b"good"]


def failing(*_: object) -> Iterable[bytes]:
    """Raise `SystemExit`, which is not an `Exception`, instead of answering."""
    raise SystemExit(3)


def streaming(_: object, start_response: Any) -> Iterator[bytes]:
    """Answer in two parts."""
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


def _call(app: Any, in_flight: RequestsInFlight, tenant: str = ACME) -> Any:
    accounting = Accounting(in_flight, UsageCounters())
    environ = create_environ() | {TARGET: app, TENANT: tenant, REQUEST_ID: "id-1"}
    environ[REQUEST_RECORD] = _entered(in_flight, tenant)
    return accounting(environ, lambda *_: lambda _: None)


def _begin(record: RequestRecord) -> None:
    """Let a request begin on the calling thread, as accounting does."""
    record.thread = threading.get_ident()
    record.begun_ns = time.monotonic_ns()
    record.processor_begun_ns = time.thread_time_ns()


def _read_all(body: Any) -> None:
    assert [b"good"] == list(body)
    body.close()


def _close_unread(body: Any) -> None:
    body.close()


def _close_twice(body: Any) -> None:
    body.close()
    body.close()


@pytest.mark.parametrize("end", [_read_all, _close_unread, _close_twice])
def test_a_request_is_in_flight_until_its_body_is_closed(end: Callable[[Any], None]) -> None:
    """A request leaves on close, whether the body is read or not, and closed once or twice."""
    row = _row(Scoreboard())
    in_flight = _in_flight(row=row)

    body = _call(good, in_flight)
    during = in_flight.counts(), [one.tenant for one in row.in_flight()]
    end(body)

    assert ({"acme": 1}, ["acme"]) == during
    assert ({}, [], []) == (in_flight.counts(), row.in_flight(), in_flight.records())


def test_a_cut_stream_leaves() -> None:
    """A stream is in flight until `close`, even if the server has not read the whole stream."""
    in_flight = _in_flight()

    body = _call(streaming, in_flight)
    parts = next(iter(body)), in_flight.counts()
    body.close()

    assert ((b"one", {"acme": 1}), {}) == (parts, in_flight.counts())


def test_a_request_leaves_although_its_app_raises() -> None:
    """A request leaves although the app raises `SystemExit`."""
    in_flight = _in_flight()

    with pytest.raises(SystemExit):
        _call(failing, in_flight)

    assert {} == in_flight.counts()


def test_a_request_leaves_although_its_body_raises() -> None:
    """A request leaves although the iteration and the `close()` of the body raise."""
    in_flight = _in_flight()
    body = _call(lambda *_: FailingBody(), in_flight)

    with pytest.raises(ValueError, match="read"):
        list(body)
    with pytest.raises(OSError, match="closed"):
        body.close()

    assert {} == in_flight.counts()


def test_concurrent_requests_all_leave() -> None:
    """After many requests on eight threads, some failing or closed twice, none is in flight."""
    row = _row(Scoreboard())
    in_flight = _in_flight(None, row)

    def work() -> None:
        for turn in range(200):
            try:
                body = _call((good, failing)[turn % 2], in_flight, "ab"[turn // 2 % 2])
            except SystemExit:
                continue
            body.close()
            if turn % 3:
                body.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert ({}, [], 0, []) == (
        in_flight.counts(), row.in_flight(), in_flight._total, in_flight.records(),
    )  # fmt: skip


def test_two_threads_end_a_request_once() -> None:
    """If two threads end a request at the same moment, the request ends once."""
    in_flight = _in_flight()
    for _ in range(200):
        record, start = _entered(in_flight), threading.Barrier(2)

        def leave(record: RequestRecord = record, start: threading.Barrier = start) -> None:
            start.wait(DEADLINE_S)
            in_flight.leave(record)

        threads = [threading.Thread(target=leave) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert ({}, 0) == (in_flight.counts(), in_flight._total)


# -- the share -------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [2, 4, 8])
def test_a_first_request_finds_room_beside_all_busy_tenants_but_one(threads: int) -> None:
    """On N threads, a new tenant is admitted even if N - 1 tenants have requests in flight."""
    in_flight = _in_flight(threads)
    noisy = [f"noisy-{number}" for number in range(threads - 1)]
    for tenant in noisy * threads:
        in_flight.enter(tenant, UNLIMITED)

    assert set(noisy) == set(in_flight.counts())
    assert in_flight.enter("quiet", UNLIMITED) is not None
    assert in_flight.enter("late", UNLIMITED) is None


@pytest.mark.parametrize(
    ("threads", "bound"), [(1, 1), (2, 3), (4, 6), (8, 12), (12, 18), (16, 31), (64, 127)]
)
def test_requests_in_flight_are_bounded(threads: int, bound: int) -> None:
    """On N threads, at most 1.5 N requests are in flight if N ≤ 12, and fewer than 2 N otherwise.

    Each tenant of the first wave takes all it gets; then many tenants take one request each.
    """
    most = 0
    for first_wave in range(threads + 1):
        in_flight = _in_flight(threads)
        for tenant in [f"early-{number}" for number in range(first_wave)] * threads:
            in_flight.enter(tenant, UNLIMITED)
        for tenant in [f"late-{number}" for number in range(2 * threads)] * 2:
            in_flight.enter(tenant, UNLIMITED)
        most = max(most, sum(in_flight.counts().values()))

    assert threads <= most <= bound


def test_a_refused_request_leaves_no_trace() -> None:
    """A request that may not run is neither in flight nor on the scoreboard."""
    row = _row(Scoreboard())
    in_flight = _in_flight(1, row)
    _entered(in_flight)

    refused = [in_flight.enter(ACME, UNLIMITED), in_flight.enter(GLOBEX, UNLIMITED)]

    assert ([None, None], {"acme": 1}) == (refused, in_flight.counts())
    assert (1, 1) == (len(row.in_flight()), len(in_flight.records()))


def test_a_bound_holds_over_all_processes() -> None:
    """With a bound of three, a process admits one request beside two of another process."""
    scoreboard = Scoreboard()
    mine, other = (_in_flight(None, _row(scoreboard)) for _ in range(2))
    held = [other.enter(ACME, _at_most(3)), other.enter(ACME, _at_most(3))]

    taken = [mine.enter(ACME, _at_most(3)), mine.enter(ACME, _at_most(3))]

    assert [False, True] == [record is not None and record.is_over for record in taken]
    assert 3 == scoreboard.count_requests(ACME)
    assert mine.enter(GLOBEX, _at_most(3)) is not None
    assert all(held)


def test_a_bound_holds_without_a_scoreboard_row() -> None:
    """A process without a scoreboard row applies the bound to requests of that process alone."""
    in_flight = _in_flight(None)

    taken = [in_flight.enter(ACME, _at_most(2)) for _ in range(3)]

    assert [False, False, True] == [record is not None and record.is_over for record in taken]
    assert {"acme": 2} == in_flight.counts()


def test_a_bound_and_the_share_both_hold() -> None:
    """Both `MAX_CONCURRENT_REQUESTS` and the fair share limit a tenant."""
    in_flight = _in_flight(8, _row(Scoreboard()))

    taken = [in_flight.enter(ACME, _at_most(1)) for _ in range(2)]
    shared = [in_flight.enter(GLOBEX, _at_most(100)) for _ in range(8)]

    assert [False, True] == [record is not None and record.is_over for record in taken]
    assert 4 == sum(record is not None for record in shared)


# -- the record ------------------------------------------------------------------------------------


def test_the_scoreboard_names_the_thread_that_runs_a_request() -> None:
    """A request that one thread admits and another thread runs belongs to the second thread."""
    row = _row(Scoreboard())
    in_flight = _in_flight(row=row)
    record = _entered(in_flight)
    admitted = [one.thread_id for one in row.in_flight()]
    ran: list[int] = []

    def run() -> None:
        in_flight.move_to_thread(record)
        ran.append(threading.get_native_id())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

    assert ([threading.get_native_id()], ran) == (
        admitted, [one.thread_id for one in row.in_flight()],
    )  # fmt: skip
    in_flight.leave(record)


def test_a_tenant_is_quick_until_its_requests_are_often_long() -> None:
    """One long request changes little; after several, the next request is likely to be long."""
    in_flight = _in_flight()

    def request(took_ns: int) -> bool:
        record = _entered(in_flight)
        _begin(record)
        record.wall_ns = took_ns
        in_flight.leave(record)
        return record.is_quick

    first = [request(LONG_NS) for _ in range(2)]
    often = [request(LONG_NS) for _ in range(100)]
    again = [request(0) for _ in range(100)]

    assert ([True, True], False, True) == (first, often[-1], again[-1])
    assert _entered(in_flight, GLOBEX).is_quick


def test_a_request_that_never_ran_changes_no_average() -> None:
    """A request that leaves before it runs counts neither as quick nor as CPU time."""
    in_flight = _in_flight()

    in_flight.leave(_entered(in_flight))

    assert ({}, {}) == (in_flight._long_share, in_flight.share._use)


def test_processor_time_counts_for_the_tenant() -> None:
    """The processor time of a request's thread counts in the tenant's share."""
    in_flight = _in_flight()
    body = _call(lambda *_: [str(sum(range(200_000))).encode()], in_flight)
    [record] = in_flight.records()
    body.close()

    assert 0 < record.processor_ns / 1e9 == in_flight.share._use["acme"][0]


def test_processor_time_counts_while_a_request_runs() -> None:
    """`note_running` counts the time so far; waiting adds nothing, and nothing counts twice."""
    in_flight = _in_flight()
    share = in_flight.share
    has_computed, go_on = threading.Event(), threading.Event()
    used_times_s: list[float] = []

    def run() -> None:
        record = _entered(in_flight)
        _begin(record)
        sum(range(1_000_000))
        used_times_s.append(time.thread_time() - record.processor_begun_ns / 1e9)
        has_computed.set()
        go_on.wait(DEADLINE_S)
        record.processor_ns = time.thread_time_ns() - record.processor_begun_ns
        in_flight.leave(record)
        used_times_s.append(time.thread_time() - record.processor_begun_ns / 1e9)

    thread = threading.Thread(target=run)
    thread.start()
    assert has_computed.wait(DEADLINE_S)
    in_flight.note_running()
    first = share._use["acme"]
    in_flight.note_running()
    go_on.set()
    thread.join()
    in_flight.note_running()

    assert used_times_s[0] <= first[0]
    assert 0 == first[1]
    assert share._use["acme"][0] <= used_times_s[1]
    assert [] == in_flight.records()


def test_a_waiting_request_uses_no_processor_time() -> None:
    """`note_running` skips requests that no thread runs yet."""
    in_flight = _in_flight()
    _entered(in_flight)

    in_flight.note_running()

    assert {} == in_flight.share._use


# -- the limits ------------------------------------------------------------------------------------


def test_a_tenants_keys_replace_the_hosts_settings() -> None:
    """The tenant file's keys override the settings, which apply until the file is read."""
    settings = HostSettings(max_concurrent_requests=5, deadline_s=7.0, deadline_action="answer")
    keys = {"SECRET_KEY": KEY, "BLUEPRINTS": ["landing"]}
    own = {"MAX_CONCURRENT_REQUESTS": 2, "DEADLINE_S": 3.0, "DEADLINE_ACTION": "report"}
    default, changed = (
        parse_tenant("acme", keys | more, data_dir=Path("instance")) for more in ({}, own)
    )

    assert [(5, 7.0, True)] * 2 == [RequestLimits.of(one, settings) for one in (None, default)]
    assert (2, 3.0, False) == RequestLimits.of(changed, settings)
