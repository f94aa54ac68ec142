"""The wait queue decides which request runs, which waits, and for how long."""

from tenantry.middleware.fair_share import FairShare
from tenantry.server.wait_queue import MAX_WAITING, WAIT_S, WaitQueue


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time that the test has set on the clock."""
        return self.now


def test_a_tenant_over_its_share_waits() -> None:
    """Of four threads, a busy tenant gets two, and another tenant is still admitted."""
    queue = WaitQueue[str](FairShare(4))

    noisy = [queue.arrive("noisy", str(number)) for number in range(3)]

    assert [True, True, False] == noisy
    assert queue.arrive("quiet", "q")


def test_requests_of_a_tenant_run_in_order() -> None:
    """When a request ends, the oldest waiting request of the same tenant runs."""
    queue = WaitQueue[str](FairShare(4))
    for number in range(5):
        queue.arrive("acme", str(number))

    assert [["2"], ["3"], ["4"], [], []] == [queue.end("acme") for _ in range(5)]


def test_a_new_request_does_not_overtake_a_waiting_one() -> None:
    """A new request waits behind an earlier waiting request, even with free threads."""
    share = FairShare(2)
    queue = WaitQueue[str](share)
    queue.arrive("acme", "runs")
    queue.arrive("acme", "first")
    share.threads = 8

    assert not queue.arrive("acme", "second")
    assert ["first", "second"] == queue.end("acme")


def test_waiting_tenants_take_turns() -> None:
    """When threads become free, waiting tenants run one request each in turn."""
    queue = WaitQueue[str](FairShare(2))
    queue.arrive(None, "x")
    queue.arrive(None, "y")
    for tenant in ("acme", "globex"):
        for number in range(2):
            queue.arrive(tenant, f"{tenant}{number}")

    turns = [queue.end(None), queue.end(None), queue.end("acme"), queue.end("globex")]

    assert [["acme0"], ["globex0"], ["acme1"], ["globex1"]] == turns


def test_a_request_expires_after_wait_s() -> None:
    """The queue says when the next request expires, and only expired requests are removed."""
    clock = Clock()
    queue = WaitQueue[str](FairShare(1), clock=clock)
    queue.arrive("acme", "runs")
    queue.arrive("acme", "early")
    clock.now += 0.4
    queue.arrive("globex", "late")

    left_s = queue.left_s()
    before = queue.expired()
    clock.now += 0.6
    after = queue.expired()

    assert (WAIT_S, []) == (round((left_s or 0) + 0.4, 6), before)
    assert [("acme", "early")] == after
    assert ["late"] == queue.end("acme")
    assert queue.left_s() is None


def test_a_pausing_tenant_runs_when_its_pause_ends() -> None:
    """The queue says when the pause ends, and then releases the request."""
    clock = Clock()
    share = FairShare(8, clock=clock)
    queue = WaitQueue[str](share, clock=clock)
    share.note_used("globex", 0.5)
    share.note_used("acme", 0.5, took_s=0.2)
    is_admitted = queue.arrive("acme", "next")

    left_s, before = queue.left_s(), queue.ready()
    clock.now += 0.2
    after = queue.ready()

    assert (False, 0.2, []) == (is_admitted, round(left_s or 0, 6), before)
    assert ["next"] == after


def test_the_queue_of_each_tenant_is_bounded() -> None:
    """One tenant's full queue does not fill another tenant's."""
    queue = WaitQueue[int](FairShare(1))
    for number in range(MAX_WAITING + 1):
        queue.arrive("acme", number)

    assert (True, False) == (queue.is_full("acme"), queue.is_full("globex"))


def test_the_queue_keeps_no_record_of_idle_tenants() -> None:
    """After requests of 1,000 tenants have ended, the queue holds nothing."""
    queue = WaitQueue[int](FairShare(8))
    for number in range(1000):
        queue.arrive(str(number), number)
        queue.end(str(number))

    assert ({}, {}, 0) == (queue._running, queue._waiting, queue._in_flight)
