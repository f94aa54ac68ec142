"""The connection budget limits how many database connections all tenants open together."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import tenantry.database.budget
from servers import wait_until
from tenantry.database.budget import MAX_OWN_WAIT_S, ConnectionBudget, EvictedConnection
from tenantry.database.errors import ConnectionCounts, ConnectionsExhaustedError


class FakePool:
    """A connection pool without a database. Strings take the place of its connections."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.idle: list[object] = []
        self.average_checkout_s = 1.0


@pytest.fixture(name="acme")
def _acme() -> FakePool:
    return FakePool("acme")


@pytest.fixture(name="globex")
def _globex() -> FakePool:
    return FakePool("globex")


@pytest.fixture(name="in_background")
def _in_background() -> Iterator[ThreadPoolExecutor]:
    """Return a thread pool in which tests wait for connections. The fixture closes the pool."""
    with ThreadPoolExecutor() as threads:
        yield threads


def test_the_newest_idle_connection_is_used_first(acme: FakePool) -> None:
    """A connection pool reuses the connection that was returned last."""
    budget = ConnectionBudget(2)
    budget.acquire(acme)
    budget.acquire(acme)
    budget.checkin(acme, "old")
    budget.checkin(acme, "new")

    assert ["new", "old"] == [budget.acquire(acme), budget.acquire(acme)]
    assert {"acme": ConnectionCounts(2, 0)} == budget.counts()


def test_the_oldest_idle_connection_of_any_tenant_is_evicted_first(
    acme: FakePool, globex: FakePool
) -> None:
    """At the limit, the connection that has been idle longest is closed for another tenant."""
    budget = ConnectionBudget(3)
    for pool, connection in ((acme, "a1"), (globex, "g1"), (acme, "a2")):
        budget.acquire(pool, must_open=True)
        budget.checkin(pool, connection)
    initech = FakePool("initech")

    grants = [budget.acquire(initech), budget.acquire(initech)]

    assert [("acme", "a1"), ("globex", "g1")] == [
        (grant.pool.owner, grant.connection)
        for grant in grants
        if isinstance(grant, EvictedConnection)
    ]
    assert {"initech": ConnectionCounts(2, 0), "acme": ConnectionCounts(0, 1)} == budget.counts()
    assert (3, ["a2"], []) == (budget.open_count, acme.idle, globex.idle)


def test_the_error_after_a_time_out_names_every_tenants_connections(
    acme: FakePool, globex: FakePool
) -> None:
    """The error after a timeout names the wait, and the connections of every tenant."""
    now = [0.0]
    budget = ConnectionBudget(3, wait_s=0, clock=lambda: now.__setitem__(0, now[0] + 1.5) or now[0])
    for pool in (globex, acme, globex):
        budget.acquire(pool)

    with pytest.raises(ConnectionsExhaustedError) as refused:
        budget.acquire(acme)

    assert (
        "tenant 'acme' waited 1.5 s for a database connection, but all 3 connections are taken: "
        "globex 2 in use, 0 idle, acme 1 in use, 0 idle. Raise TENANTRY_DB_CONNECTIONS, or "
        "find out which endpoint keeps connections."
    ) == str(refused.value)
    assert 3 == budget.open_count


def test_waiters_are_served_in_order(
    acme: FakePool, globex: FakePool, in_background: ThreadPoolExecutor
) -> None:
    """Requests that wait for a database connection are served in order, whatever their tenants."""
    budget = ConnectionBudget(1, wait_s=60)
    budget.acquire(acme)
    waiting = []
    for number, pool in enumerate((acme, globex, acme)):
        waiting.append(in_background.submit(budget.acquire, pool))
        wait_until(lambda number=number: len(budget._waiters) > number)

    budget.checkin(acme, "a1")
    first = waiting[0].result()
    budget.checkin(acme, first)
    second = waiting[1].result()
    budget.release(globex)

    assert "a1" == first
    assert isinstance(second, EvictedConnection)
    assert ("acme", "a1") == (second.pool.owner, second.connection)
    assert (None, 1) == (waiting[2].result(), budget.open_count)


def test_a_pool_waits_for_its_own_connection_before_it_evicts_anothers(
    acme: FakePool, globex: FakePool, in_background: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A tenant first waits for its own connection, even if another tenant has an idle one."""
    budget = ConnectionBudget(2)
    budget.acquire(globex)
    budget.checkin(globex, "g1")
    budget.acquire(acme)
    monkeypatch.setattr(tenantry.database.budget, "MAX_OWN_WAIT_S", 10)

    waiting = in_background.submit(budget.acquire, acme)
    wait_until(lambda: bool(budget._waiters))
    budget.checkin(acme, "a1")
    first = waiting.result()
    monkeypatch.setattr(tenantry.database.budget, "MAX_OWN_WAIT_S", 0)
    second = budget.acquire(acme)

    assert ("a1", [], {"acme": ConnectionCounts(2, 0)}) == (
        first,
        budget._waiters,
        budget.counts(),
    )
    assert isinstance(second, EvictedConnection)


@pytest.mark.parametrize(
    ("average_checkout_s", "own_wait_s"), [(0.004, 0.04), (3.0, MAX_OWN_WAIT_S)]
)
def test_the_wait_for_an_own_connection_follows_the_average_checkout(
    acme: FakePool, globex: FakePool, monkeypatch: pytest.MonkeyPatch, average_checkout_s: float,
    own_wait_s: float,
) -> None:  # fmt: skip
    """A tenant waits for its own connection for up to ten times the average checkout time."""
    waits: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", lambda _, seconds: waits.append(seconds))
    budget = ConnectionBudget(2, wait_s=5.0)
    budget.acquire(globex)
    budget.checkin(globex, "g1")
    budget.acquire(acme)
    acme.average_checkout_s = average_checkout_s

    grant = budget.acquire(acme)

    assert isinstance(grant, EvictedConnection)
    assert [own_wait_s, 5.0 - own_wait_s] == waits


def test_a_released_permit_ends_the_wait_for_an_own_connection(
    acme: FakePool, globex: FakePool, in_background: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A tenant that waits for its own connection opens a new one as soon as the limit allows it."""
    monkeypatch.setattr(tenantry.database.budget, "MAX_OWN_WAIT_S", 10)
    budget = ConnectionBudget(3, wait_s=60)
    for pool in (globex, globex, acme):
        budget.acquire(pool)
    budget.checkin(globex, "g1")

    waiting = in_background.submit(budget.acquire, acme)
    wait_until(lambda: bool(budget._waiters))
    budget.release(globex)

    assert waiting.result() is None
    assert {"acme": ConnectionCounts(2, 0), "globex": ConnectionCounts(0, 1)} == budget.counts()


def test_a_pool_that_lost_its_last_connection_stops_waiting_for_it(
    acme: FakePool, globex: FakePool, in_background: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Once a tenant has lost all its connections, it stops waiting for one of them."""
    monkeypatch.setattr(tenantry.database.budget, "MAX_OWN_WAIT_S", 10)
    budget = ConnectionBudget(3, wait_s=60)
    initech = FakePool("initech")
    for pool in (globex, initech, acme):
        budget.acquire(pool)
    budget.checkin(globex, "g1")
    waiting = []
    for number, pool in enumerate((initech, acme)):
        waiting.append(in_background.submit(budget.acquire, pool))
        wait_until(lambda number=number: len(budget._waiters) > number)

    budget.release(acme)

    assert waiting[0].result() is None
    assert isinstance(waiting[1].result(), EvictedConnection)
    assert {"initech": ConnectionCounts(2, 0), "acme": ConnectionCounts(1, 0)} == budget.counts()


def test_a_new_instance_does_not_wait_for_the_old_ones_connections(
    acme: FakePool, globex: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a tenant is reloaded, it does not wait for connections of its old connection pool."""
    budget = ConnectionBudget(2)
    for pool in (globex, acme):
        budget.acquire(pool)
    budget.checkin(globex, "g1")
    monkeypatch.setattr(threading.Event, "wait", lambda *_: pytest.fail("it waited"))

    grant = budget.acquire(FakePool("acme"))

    assert isinstance(grant, EvictedConnection)
    assert {"acme": ConnectionCounts(2, 0)} == budget.counts()


def test_must_open_grants_a_permit_instead_of_an_idle_connection(acme: FakePool) -> None:
    """With `must_open`, a tenant opens a new database connection, even if it has an idle one."""
    budget = ConnectionBudget(1)
    budget.acquire(acme)
    budget.checkin(acme, "a1")

    grant = budget.acquire(acme, must_open=True)

    assert isinstance(grant, EvictedConnection)
    assert ("a1", 1) == (grant.connection, budget.open_count)


@pytest.mark.parametrize("is_own", [True, False])
def test_an_exception_during_the_wait_costs_no_permit(
    acme: FakePool, globex: FakePool, monkeypatch: pytest.MonkeyPatch, is_own: bool
) -> None:
    """An exception during the wait for a connection does not change the number of permits."""
    budget = ConnectionBudget(1)
    budget.acquire(acme)

    def interrupt(_: threading.Event, __: float) -> None:
        budget.checkin(acme, "a1")
        raise SystemExit

    monkeypatch.setattr(threading.Event, "wait", interrupt)
    with pytest.raises(SystemExit):
        budget.acquire(acme if is_own else globex)

    assert ({"acme": ConnectionCounts(0, 1)}, ["a1"]) == (budget.counts(), acme.idle)


def test_a_connection_may_come_back_while_its_thread_holds_the_lock(acme: FakePool) -> None:
    """A thread that holds the lock of the connection budget can return a connection.

    The garbage collector can return a connection at any point, so this must not cause a deadlock.
    """
    budget = ConnectionBudget(1)
    budget.acquire(acme)
    with budget._lock:
        budget.checkin(acme, "a1")

    assert "a1" == budget.acquire(acme)
