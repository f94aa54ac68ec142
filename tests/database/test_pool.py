"""Tenantry counts open database connections exactly, whatever happens to the connections."""

import contextlib
import gc
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import Engine, event, make_url, text

from postgres import Postgres
from servers import wait_until
from tenantry.database.budget import ConnectionBudget
from tenantry.database.engine import close_engine, make_engine
from tenantry.database.errors import ConnectionCounts, DatabaseDownError
from tenantry.database.pool import BudgetPool

EngineOf = Callable[[str], Engine]


@pytest.fixture(name="budget")
def _budget() -> ConnectionBudget:
    return ConnectionBudget(3, wait_s=30)


@pytest.fixture(name="engine_of", params=["sqlite", "postgresql"])
def _engine_of(
    request: pytest.FixtureRequest,
    postgres_server: Postgres,
    tmp_path: Path,
    budget: ConnectionBudget,
) -> Iterator[EngineOf]:
    """Return a function that makes a tenant's engine. The fixture closes all engines."""
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


def test_idle_connections_of_one_tenant_are_closed_for_another(
    engine_of: EngineOf, budget: ConnectionBudget
) -> None:
    """If four tenants share three connections, the tenant that has been idle longest has none."""
    engines = {owner: engine_of(owner) for owner in ("acme", "globex", "initech", "hooli")}
    for engine in engines.values():
        with engine.connect() as connection:
            assert 1 == connection.execute(text("SELECT 1")).scalar_one()

    counts = budget.counts()

    assert dict.fromkeys(("globex", "initech", "hooli"), ConnectionCounts(0, 1)) == counts


def test_a_detached_connection_counts_until_it_is_closed(
    engine_of: EngineOf, budget: ConnectionBudget
) -> None:
    """A connection detached from its pool counts until it is closed or garbage-collected."""
    engine = engine_of("acme")
    counts = []
    for is_closed in (True, False):
        connection = engine.raw_connection()
        connection.detach()
        counts.append(budget.open_count)
        if is_closed:
            connection.close()
        else:
            connection.dbapi_connection.close()  # close the connection without using the pool
        del connection
        gc.collect()
        counts.append(budget.open_count)

    assert [1, 0, 1, 0] == counts


def test_the_average_checkout_is_measured(engine_of: EngineOf, budget: ConnectionBudget) -> None:
    """The average checkout time is a moving average: each new checkout has a weight of 1/8."""
    engine = engine_of("acme")
    pool = cast("BudgetPool", engine.pool)
    pool.average_checkout_s = 8.0
    engine.connect().close()
    first = pool.average_checkout_s
    with engine.connect() as connection:
        connection.invalidate()

    assert (7, 6, 0) == (round(first), round(pool.average_checkout_s), budget.open_count)


def test_a_connection_detached_from_a_recreated_pool_counts_as_that_pools(
    engine_of: EngineOf, budget: ConnectionBudget
) -> None:
    """A connection detached from a disposed pool counts toward the tenant's new pool."""
    engine = engine_of("acme")
    engine.dispose()
    with engine.connect():
        connection = engine.raw_connection()
        connection.detach()
        connection.dbapi_connection.close()
        del connection
        gc.collect()
        counts = budget.counts()

    assert ({"acme": ConnectionCounts(1, 0)}, {"acme": ConnectionCounts(0, 1)}) == (
        counts,
        budget.counts(),
    )


def test_a_replaced_pool_keeps_no_connection(engine_of: EngineOf, budget: ConnectionBudget) -> None:
    """When a pool is replaced, its idle connections are closed, even by `dispose(close=False)`."""
    engine = engine_of("acme")
    engine.connect().close()
    engine.dispose(close=False)

    assert 0 == budget.open_count


def test_a_closed_engine_keeps_no_connection(engine_of: EngineOf, budget: ConnectionBudget) -> None:
    """If an engine is closed while a connection is in use, the connection closes on its return."""
    engine = engine_of("acme")
    with engine.connect(), engine.connect() as used:
        close_engine(engine)
        used.execute(text("SELECT 1"))
        counts = [budget.open_count]
    counts.append(budget.open_count)

    assert [2, 0] == counts


@pytest.mark.live
# The test drops connections on purpose, so ignore warnings about dropped connections.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_count_is_exact_under_random_faults(
    engine_of: EngineOf, budget: ConnectionBudget
) -> None:
    """Eight threads misuse connections at random, and the count never exceeds the limit.

    PostgreSQL enforces the same limit for the test's database user.
    """
    engines = [engine_of(f"tenant{number}") for number in range(5)]
    chance = random.Random(4)
    for engine in engines:
        event.listen(engine, "do_connect", _failing_at_times(random.Random(chance.random())))
    counts: list[int] = []
    errors: list[str] = []

    with ThreadPoolExecutor() as threads:
        for _ in range(8):
            threads.submit(_inject_faults, engines, chance.random(), budget, counts, errors)
    for engine in engines:
        close_engine(engine)
    gc.collect()
    wait_until(lambda: budget.open_count == 0)  # a probe may still be running in a thread

    assert {"", "no route"} >= set(errors)
    assert 3 == max(counts)
    assert len(counts) > 50


def _failing_at_times(chance: random.Random) -> Callable[..., None]:
    def connect(*_: object) -> None:
        if chance.random() < 0.05:
            raise OSError("no route")

    return connect


def _inject_faults(
    engines: list[Engine], seed: float, budget: ConnectionBudget, counts: list[int],
    errors: list[str],
) -> None:  # fmt: skip
    """Use and misuse database connections at random.

    Record the number of open connections, and the cause of each failed attempt.
    """
    chance = random.Random(seed)
    for _ in range(40):
        engine = chance.choice(engines)
        try:
            connection = engine.connect()
        except (DatabaseDownError, OSError) as error:
            errors.append(str(error.__cause__ or ""))
            continue
        connection.execute(text("SELECT 1"))
        counts.append(budget.open_count)
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
                gc.collect()  # the finalizer of a connection returns the connection
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
for connection in (used, idle):
    connection.execute(text("SELECT 1"))
    connection.rollback()
idle.close()
child = os.fork()
if not child:
    counts = [budget.open_count]
    used.close()
    counts.append(budget.open_count)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        counts.append(budget.open_count)
    engine.dispose()
    counts.append(budget.open_count)
    print(counts, flush=True)
    os._exit(0)
os.waitpid(child, 0)
with engine.connect() as again:
    rows = [connection.execute(text("SELECT 1")).scalar_one() for connection in (again, used)]
print(rows, budget.open_count)
used.close()
engine.dispose()
"""


@pytest.mark.live
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_forked_process_counts_from_zero(
    kind: str, postgres_server: Postgres, tmp_path: Path
) -> None:
    """A forked process neither uses nor closes the database connections of its parent."""
    url = postgres_server.url() if kind == "postgresql" else f"sqlite:///{tmp_path}/acme.db"

    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK, url],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ("[0, 0, 1, 0]\n[1, 1] 2\n", "") == (run.stdout, run.stderr)
