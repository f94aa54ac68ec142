"""The wait queue decides which request runs next, and how long a request waits."""

import math
from types import SimpleNamespace

from tenantry.http.environ import MAX_WAIT
from tenantry.server.steps.wait_queue import (
    FEW,
    MAX_LONG_WAITING,
    MAX_WAITING,
    WAIT_S,
    WaitQueue,
)

NOW = 1000.0


def _queue(*items: str) -> WaitQueue[str]:
    """Return a queue with items that begin with the initial of their tenant."""
    queue = WaitQueue[str]()
    for item in items:
        assert queue.add(item[0], item, NOW)
    return queue


def _no_pause(_: str) -> float:
    return 0.0


class Room:
    """Room for a number of requests."""

    def __init__(self, count: int) -> None:
        self._left = count

    def __call__(self, _: str) -> bool:
        """Take room for one request, if any is left."""
        self._left -= 1
        return self._left >= 0


def test_requests_of_a_tenant_run_in_order() -> None:
    """The oldest waiting request of a tenant runs first, until none is left."""
    queue = _queue("a1", "a2", "a3")

    assert ["a1", "a2", "a3"] == list(queue.ready(lambda _: True))
    assert {} == queue.tenants


def test_waiting_tenants_take_turns() -> None:
    """Each tenant runs one request in rotation; each round continues where the last round ended."""
    queue = _queue("a1", "a2", "a3", "g1", "g2", "h1")

    rounds = [list(queue.ready(Room(count))) for count in (2, 1, 2, 5)]

    assert [["a1", "g1"], ["h1"], ["a2", "g2"], ["a3"]] == rounds


def test_a_tenant_that_may_not_run_holds_up_no_other() -> None:
    """A tenant above its share keeps its position, and the other tenants run."""
    queue = _queue("a1", "g1", "a2", "g2")

    ran = list(queue.ready(lambda item: item.startswith("g")))

    assert (["g1", "g2"], ["a"]) == (ran, list(queue.tenants))
    assert ["a1", "a2"] == list(queue.ready(lambda _: True))


def test_a_waiting_tenant_is_known() -> None:
    """The queue lists the tenants with waiting requests, so that no later request overtakes."""
    queue = _queue("a1")
    before = "a" in queue.tenants, "g" in queue.tenants
    list(queue.ready(lambda _: True))

    assert ((True, False), False) == (before, "a" in queue.tenants)


def test_a_request_expires_after_wait_s() -> None:
    """The queue says when the next request expires, and only expired requests are removed."""
    queue = _queue("a1")
    assert queue.add("g", "g1", NOW + 0.4)

    due_at = queue.due_at(NOW + 0.4, _no_pause)
    before = list(queue.expired(NOW + 0.9))
    after = list(queue.expired(NOW + WAIT_S))

    assert (NOW + WAIT_S, [], ["a1"]) == (due_at, before, after)
    assert NOW + 0.4 + WAIT_S == queue.due_at(NOW + WAIT_S, _no_pause)
    assert ["g1"] == list(queue.ready(lambda _: True))
    assert math.inf == queue.due_at(NOW, _no_pause)


def test_a_pausing_tenant_is_due_when_its_pause_ends() -> None:
    """If a waiting tenant pauses, the queue is due at the end of the pause."""
    queue = _queue("a1", "g1")

    due_at = queue.due_at(NOW, {"a": 0.2, "g": 0.0}.__getitem__)

    assert NOW + 0.2 == due_at


def test_the_queue_of_each_tenant_is_bounded() -> None:
    """If the queue of one tenant is full, another tenant can still add requests."""
    queue = WaitQueue[int]()

    added = [queue.add("a", number, NOW) for number in range(MAX_WAITING + 1)]

    assert ({True}, False) == (set(added[:-1]), added[-1])
    assert queue.add("g", 0, NOW)


def test_the_queue_keeps_no_record_of_idle_tenants() -> None:
    """After requests of 1,000 tenants have run or expired, the queue holds nothing."""
    queue = WaitQueue[int]()
    for number in range(1000):
        queue.add(str(number), number, NOW)
    list(queue.ready(lambda item: item % 2 == 0))
    list(queue.expired(NOW + WAIT_S))

    assert {} == queue.tenants


LONG = SimpleNamespace(environ={MAX_WAIT: 20.0})
"""A request that may wait for its tenant's instance."""

SHORT = SimpleNamespace(environ={})


def test_requests_wait_for_their_instance_together() -> None:
    """All requests of a tenant whose instance is built have the deadline of the first request."""
    queue = WaitQueue[SimpleNamespace]()
    added = [queue.add("a", LONG, NOW), queue.add("a", SHORT, NOW + 5), queue.add("g", SHORT, NOW)]

    expired = [len(list(queue.expired(NOW + seconds))) for seconds in (WAIT_S, 20.0, 21.0)]

    assert ([True] * 3, [1, 0, 2]) == (added, expired)


def test_a_tenant_whose_build_hangs_leaves_room() -> None:
    """Requests that wait for builds of two tenants use at most two thirds of `MAX_LONG_WAITING`."""
    queue = WaitQueue[SimpleNamespace]()

    added = {name: sum(queue.add(name, LONG, NOW) for _ in range(1000)) for name in "agh"}
    for number in range(100):
        queue.add(str(number), LONG, NOW)

    assert added["a"] == MAX_WAITING
    assert MAX_LONG_WAITING // 4 <= added["g"] <= MAX_LONG_WAITING // 2
    assert added["h"] >= FEW
    assert len(queue.tenants) == 103
