"""The budget of connections: one pool of idle ones over all tenants, exact whatever happens."""

import contextlib
import gc
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import get_ident
from typing import cast

import pytest
from sqlalchemy import Engine, event, make_url, text

import tenantry.database.budget
from postgres import Postgres
from servers import wait_until
from tenantry.database.budget import PATIENCE_S, ConnectionBudget
from tenantry.database.engine import close_engine, make_engine
from tenantry.database.errors import DatabaseDownError
from tenantry.database.permits import ConnectionsExhaustedError, Eviction, Held
from tenantry.database.pool import BudgetPool


class Holder:
    """A tenant's pool without a database: its connections are words."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.idle: list[object] = []
        self.hold_s = 1.0


@pytest.fixture(name="acme")
def _acme() -> Holder:
    return Holder("acme")


@pytest.fixture(name="globex")
def _globex() -> Holder:
    return Holder("globex")


@pytest.fixture(name="in_background")
def _in_background() -> Iterator[ThreadPoolExecutor]:
    """Return threads that take connections, which end with the test."""
    with ThreadPoolExecutor() as threads:
        yield threads


# -- who gets what ------------------------------------------------------------------------------


def test_the_newest_idle_connection_is_used_first(acme: Holder) -> None:
    """It is the one whose server and caches are warm; the others may go."""
    budget = ConnectionBudget(2)
    budget.take(acme)
    budget.take(acme)
    budget.give_back(acme, "old")
    budget.give_back(acme, "new")

    assert ["new", "old"] == [budget.take(acme), budget.take(acme)]
    assert {"acme": Held(2, 0)} == budget.held()


def test_the_longest_idle_connection_of_any_tenant_goes_first(acme: Holder, globex: Holder) -> None:
    """With the budget spent, a tenant that needs one gets the permit of the idlest, to close it."""
    budget = ConnectionBudget(3)
    for holder, connection in ((acme, "a1"), (globex, "g1"), (acme, "a2")):
        budget.take(holder, is_to_open=True)
        budget.give_back(holder, connection)
    initech = Holder("initech")

    grants = [budget.take(initech), budget.take(initech)]

    assert [("acme", "a1"), ("globex", "g1")] == [
        (grant.holder.owner, grant.connection) for grant in grants if isinstance(grant, Eviction)
    ]
    assert {"initech": Held(2, 0), "acme": Held(0, 1)} == budget.held()
    assert (3, ["a2"], []) == (budget.open, acme.idle, globex.idle)


def test_who_waited_too_long_is_told_who_holds_what(acme: Holder, globex: Holder) -> None:
    """The error names the tenant that waited, how long, and every tenant's share."""
    now = [0.0]
    budget = ConnectionBudget(3, wait_s=0, clock=lambda: now.__setitem__(0, now[0] + 1.5) or now[0])
    for holder in (globex, acme, globex):
        budget.take(holder)

    with pytest.raises(ConnectionsExhaustedError) as refused:
        budget.take(acme)

    assert (
        "tenant 'acme' waited 1.5 s for a database connection; the 3 of this process are taken: "
        "globex 2 in use, 0 idle, acme 1 in use, 0 idle. Raise TENANTRY_DB_CONNECTIONS, or find "
        "out who keeps connections."
    ) == str(refused.value)
    assert 3 == budget.open


def test_who_waits_is_served_in_order(
    acme: Holder, globex: Holder, in_background: ThreadPoolExecutor
) -> None:
    """First come, first served: the very connection where it is its own, else the permit of it."""
    budget = ConnectionBudget(1, wait_s=60)
    budget.take(acme)
    waiting = []
    for number, holder in enumerate((acme, globex, acme)):
        waiting.append(in_background.submit(budget.take, holder))
        wait_until(lambda number=number: len(budget._waiters) > number)

    budget.give_back(acme, "a1")
    first = waiting[0].result()
    budget.give_back(acme, first)
    second = waiting[1].result()
    budget.free(globex)

    assert "a1" == first
    assert isinstance(second, Eviction)
    assert ("acme", "a1") == (second.holder.owner, second.connection)
    assert (None, 1) == (waiting[2].result(), budget.open)


def test_a_busy_tenant_waits_for_its_own_first(
    acme: Holder,
    globex: Holder,
    in_background: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one in use, it waits for that a moment before another tenant's is closed for it."""
    budget = ConnectionBudget(2)
    budget.take(globex)
    budget.give_back(globex, "g1")
    budget.take(acme)
    monkeypatch.setattr(tenantry.database.budget, "PATIENCE_S", 10)

    waiting = in_background.submit(budget.take, acme)
    wait_until(lambda: bool(budget._waiters))
    budget.give_back(acme, "a1")
    first = waiting.result()
    monkeypatch.setattr(tenantry.database.budget, "PATIENCE_S", 0)
    second = budget.take(acme)

    assert ("a1", [], {"acme": Held(2, 0)}) == (first, budget._waiters, budget.held())
    assert isinstance(second, Eviction)


@pytest.mark.parametrize(("hold_s", "patience_s"), [(0.004, 0.04), (3.0, PATIENCE_S)])
def test_it_waits_for_its_own_as_long_as_one_is_usually_kept(
    acme: Holder, globex: Holder, monkeypatch: pytest.MonkeyPatch, hold_s: float, patience_s: float
) -> None:
    """Some times that long, and never for long: then another tenant's idle one is closed."""
    waits: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", lambda _, seconds: waits.append(seconds))
    budget = ConnectionBudget(2, wait_s=5.0)
    budget.take(globex)
    budget.give_back(globex, "g1")
    budget.take(acme)
    acme.hold_s = hold_s

    grant = budget.take(acme)

    assert isinstance(grant, Eviction)
    assert [patience_s, 5.0 - patience_s] == waits


def test_whoever_waits_for_its_own_takes_a_permit_that_becomes_free(
    acme: Holder,
    globex: Holder,
    in_background: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To open one with it is as good: another tenant's is left as it is."""
    monkeypatch.setattr(tenantry.database.budget, "PATIENCE_S", 10)
    budget = ConnectionBudget(3, wait_s=60)
    for holder in (globex, globex, acme):
        budget.take(holder)
    budget.give_back(globex, "g1")

    waiting = in_background.submit(budget.take, acme)
    wait_until(lambda: bool(budget._waiters))
    budget.free(globex)

    assert waiting.result() is None
    assert {"acme": Held(2, 0), "globex": Held(0, 1)} == budget.held()


def test_nobody_waits_for_its_own_when_none_is_left(
    acme: Holder,
    globex: Holder,
    in_background: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own was closed, and the permit went to who came first: it has another's closed."""
    monkeypatch.setattr(tenantry.database.budget, "PATIENCE_S", 10)
    budget = ConnectionBudget(3, wait_s=60)
    initech = Holder("initech")
    for holder in (globex, initech, acme):
        budget.take(holder)
    budget.give_back(globex, "g1")
    waiting = []
    for number, holder in enumerate((initech, acme)):
        waiting.append(in_background.submit(budget.take, holder))
        wait_until(lambda number=number: len(budget._waiters) > number)

    budget.free(acme)

    assert waiting[0].result() is None
    assert isinstance(waiting[1].result(), Eviction)
    assert {"initech": Held(2, 0), "acme": Held(1, 0)} == budget.held()


def test_a_new_instance_waits_for_no_connection_of_the_old_one(
    acme: Holder, globex: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a tenant is swapped it has two pools: what is in use at one never comes to the other.

    Both count as the tenant's.
    """
    budget = ConnectionBudget(2)
    for holder in (globex, acme):
        budget.take(holder)
    budget.give_back(globex, "g1")
    monkeypatch.setattr(threading.Event, "wait", lambda *_: pytest.fail("it waited"))

    grant = budget.take(Holder("acme"))

    assert isinstance(grant, Eviction)
    assert {"acme": Held(2, 0)} == budget.held()


def test_who_needs_a_new_connection_gets_no_old_one(acme: Holder) -> None:
    """A connection that is opened anew needs a permit, not another connection."""
    budget = ConnectionBudget(1)
    budget.take(acme)
    budget.give_back(acme, "a1")

    grant = budget.take(acme, is_to_open=True)

    assert isinstance(grant, Eviction)
    assert ("a1", 1) == (grant.connection, budget.open)


@pytest.mark.parametrize("is_own", [True, False])
def test_an_interrupted_wait_leaves_the_queue(
    acme: Holder, globex: Holder, monkeypatch: pytest.MonkeyPatch, is_own: bool
) -> None:
    """What a signal handler raises while somebody waits costs no permit, also one just granted."""
    budget = ConnectionBudget(1)
    budget.take(acme)

    def interrupt(_: threading.Event, __: float) -> None:
        budget.give_back(acme, "a1")
        raise SystemExit

    monkeypatch.setattr(threading.Event, "wait", interrupt)
    with pytest.raises(SystemExit):
        budget.take(acme if is_own else globex)

    assert ({"acme": Held(0, 1)}, ["a1"]) == (budget.held(), acme.idle)


def test_a_connection_may_come_back_inside_the_lock(acme: Holder) -> None:
    """The garbage collector may give one back on a thread that holds the lock: nobody hangs."""
    budget = ConnectionBudget(1)
    budget.take(acme)
    with budget._lock:
        budget.give_back(acme, "a1")

    assert "a1" == budget.take(acme)


# -- with engines -------------------------------------------------------------------------------


@pytest.fixture(name="budget")
def _budget() -> ConnectionBudget:
    return ConnectionBudget(3, wait_s=30)


@pytest.fixture(name="engine_of", params=["sqlite", "postgresql"])
def _engine_of(
    request: pytest.FixtureRequest,
    postgres_server: Postgres,
    tmp_path: Path,
    budget: ConnectionBudget,
) -> Iterator[Callable[[str], Engine]]:
    """Return a function that makes a tenant's engine; all are closed after the test."""
    engines: list[Engine] = []
    is_file = request.param == "sqlite"
    user = f"limited-{tmp_path.name}-{os.getpid()}"
    with contextlib.closing(postgres_server.connect()) as connection:
        connection.execute(f'CREATE ROLE "{user}" LOGIN CONNECTION LIMIT {budget.limit}')
    url = make_url(postgres_server.url()).set(username=user).render_as_string()

    def make(owner: str) -> Engine:
        own_url = f"sqlite:///{tmp_path}/{owner}.db" if is_file else url
        engines.append(make_engine(owner, own_url, budget))
        return engines[-1]

    yield make
    for engine in engines:
        close_engine(engine)
    with contextlib.closing(postgres_server.connect()) as connection:
        connection.execute(f'DROP ROLE "{user}"')


EngineOf = Callable[[str], Engine]


def test_an_idle_tenant_makes_room(engine_of: EngineOf, budget: ConnectionBudget) -> None:
    """Four tenants with a budget of three: each is served, and the idlest has let go."""
    engines = {owner: engine_of(owner) for owner in ("acme", "globex", "initech", "hooli")}
    for engine in engines.values():
        with engine.connect() as connection:
            assert 1 == connection.execute(text("SELECT 1")).scalar_one()

    held = budget.held()

    assert dict.fromkeys(("globex", "initech", "hooli"), Held(0, 1)) == held


def test_a_detached_connection_counts_until_it_is_closed(
    engine_of: EngineOf, budget: ConnectionBudget
) -> None:
    """Detached from its pool it is open all the same; closed or dropped, it is not."""
    engine = engine_of("acme")
    counts = []
    for is_closed in (True, False):
        connection = engine.raw_connection()
        connection.detach()
        counts.append(budget.open)
        if is_closed:
            connection.close()
        else:
            connection.dbapi_connection.close()  # behind the pool's back
        del connection
        gc.collect()
        counts.append(budget.open)

    assert [1, 0, 1, 0] == counts


def test_a_pool_knows_how_long_it_keeps_a_connection(
    engine_of: EngineOf, budget: ConnectionBudget
) -> None:
    """Each use counts an eighth, a failed one too; nothing is kept of those that ended."""
    engine = engine_of("acme")
    pool = cast("BudgetPool", engine.pool)
    pool.hold_s = 8.0
    engine.connect().close()
    first = pool.hold_s
    with engine.connect() as connection:
        connection.invalidate()

    left = pool._uses.of(get_ident())

    assert (7, 6, [], 0) == (round(first), round(pool.hold_s), left, budget.open)


def test_what_is_detached_from_a_later_pool_counts_as_its(
    engine_of: EngineOf, budget: ConnectionBudget
) -> None:
    """After `dispose` an engine has another pool: a connection's permit is that one's."""
    engine = engine_of("acme")
    engine.dispose()
    with engine.connect():
        connection = engine.raw_connection()
        connection.detach()
        connection.dbapi_connection.close()
        del connection
        gc.collect()
        held = budget.held()

    assert ({"acme": Held(1, 0)}, {"acme": Held(0, 1)}) == (held, budget.held())


def test_a_pool_that_is_replaced_keeps_nothing(
    engine_of: EngineOf, budget: ConnectionBudget
) -> None:
    """What is idle at it would never be used again; also where SQLAlchemy is told to leave it."""
    engine = engine_of("acme")
    engine.connect().close()
    engine.dispose(close=False)

    assert 0 == budget.open


def test_a_closed_engine_keeps_nothing(engine_of: EngineOf, budget: ConnectionBudget) -> None:
    """A connection that is in use when its engine closes is closed when it comes back."""
    engine = engine_of("acme")
    with engine.connect(), engine.connect() as used:
        close_engine(engine)
        used.execute(text("SELECT 1"))
        counts = [budget.open]
    counts.append(budget.open)

    assert [2, 0] == counts


@pytest.mark.live
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what is dropped is dropped on purpose
def test_the_count_is_exact_whatever_happens(engine_of: EngineOf, budget: ConnectionBudget) -> None:
    """Eight threads at random fail, invalidate, detach, dispose: never over the limit.

    The server says so itself: it lets its user have as many connections as the budget.
    """
    engines = [engine_of(f"tenant{number}") for number in range(5)]
    chance = random.Random(4)
    for engine in engines:
        event.listen(engine, "do_connect", _failing_at_times(random.Random(chance.random())))
    counts: list[int] = []
    errors: list[str] = []

    with ThreadPoolExecutor() as threads:
        for _ in range(8):
            threads.submit(_spoil, engines, chance.random(), budget, counts, errors)
    for engine in engines:
        close_engine(engine)
    gc.collect()
    wait_until(lambda: budget.open == 0)  # a probe may be under way

    assert {"", "no route"} >= set(errors)
    assert 3 == max(counts)
    assert len(counts) > 50


def _failing_at_times(chance: random.Random) -> Callable[..., None]:
    def connect(*_: object) -> None:
        if chance.random() < 0.05:
            raise OSError("no route")

    return connect


def _spoil(
    engines: list[Engine], seed: float, budget: ConnectionBudget, counts: list[int],
    errors: list[str],
) -> None:  # fmt: skip
    """Use connections and spoil some; note how many are open at each, and why one was refused."""
    chance = random.Random(seed)
    for _ in range(40):
        engine = chance.choice(engines)
        try:
            connection = engine.connect()
        except (DatabaseDownError, OSError) as error:
            errors.append(str(error.__cause__ or ""))
            continue
        connection.execute(text("SELECT 1"))
        counts.append(budget.open)
        match chance.randrange(8):
            case 0:
                connection.invalidate()
            case 1:
                connection.detach()
            case 2:
                connection.connection.invalidate(soft=True)
            case 3:
                engine.dispose()
            case 4:
                del connection
                gc.collect()  # its finalizer gives it back
                continue
        connection.close()


FORK = """
import os, sys
from sqlalchemy import text
from tenantry.database.budget import ConnectionBudget
from tenantry.database.engine import make_engine

budget = ConnectionBudget(3)
engine = make_engine("acme", sys.argv[1], budget)
used, idle = engine.connect(), engine.connect()
for one in (used, idle):
    one.execute(text("SELECT 1"))
    one.rollback()
idle.close()
child = os.fork()
if not child:
    counts = [budget.open]
    used.close()
    counts.append(budget.open)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        counts.append(budget.open)
    engine.dispose()
    counts.append(budget.open)
    print(counts, flush=True)
    os._exit(0)
os.waitpid(child, 0)
with engine.connect() as again:
    rows = [one.execute(text("SELECT 1")).scalar_one() for one in (again, used)]
print(rows, budget.open)
used.close()
engine.dispose()
"""


@pytest.mark.live
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_forked_process_counts_from_nothing(
    kind: str, postgres_server: Postgres, tmp_path: Path
) -> None:
    """It neither uses nor closes what it inherited, so the parent's connections go on working."""
    url = postgres_server.url() if kind == "postgresql" else f"sqlite:///{tmp_path}/acme.db"

    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK, url],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ("[0, 0, 1, 0]\n[1, 1] 2\n", "") == (run.stdout, run.stderr)
