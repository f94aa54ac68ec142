"""Requests, migrations and commands work behind PgBouncer in transaction mode."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import NullPool, create_engine, inspect, make_url, text

from pgbouncer import need_pgbouncer, running_pgbouncer
from postgres import Postgres
from servers import in_threads
from shops import WriteShop, first, second, write_shop_fixture
from tenantry.capsules.new_database import DatabaseError
from tenantry.capsules.postgres_database import NewPostgresDatabase
from tenantry.capsules.snapshot import Snapshot
from tenantry.database.budget import ConnectionBudget
from tenantry.database.engine import close_engine, make_engine
from tenantry.database.pooler import is_pooled
from tenantry.database.probe import probe_database
from tenantry.migrations.fleet_run import FleetLimits, downgrade, upgrade
from tenantry.migrations.locks import DatabaseLockedError, migration_lock
from tenantry.tenants.model import Tenant
from tenantry.tenants.validation import parse_tenant

__all__ = ["write_shop_fixture"]

CONCURRENTLY = """\
with op.get_context().autocommit_block():
    op.create_index("prices_id", "prices", ["id"], postgresql_concurrently=True)
"""


@pytest.fixture(name="pooler", scope="module")
def _pooler(postgres_server: Postgres) -> Iterator[int]:
    """Return the port of a PgBouncer in transaction mode."""
    need_pgbouncer()
    with running_pgbouncer(postgres_server) as port:
        yield port


@pytest.fixture(name="budget")
def _budget() -> ConnectionBudget:
    return ConnectionBudget(6, wait_s=20)


@pytest.fixture(name="url")
def _url(postgres_server: Postgres, postgres_url: str, pooler: int) -> str:
    """Return the URL of an empty database behind the pooler."""
    return postgres_server.url(make_url(postgres_url).database or "", port=pooler)


@pytest.fixture(name="tenant")
def _tenant(url: str, data_dir: Path) -> Callable[[str], Tenant]:
    """Return a function that makes the tenant acme with one endpoint and the pooled database."""

    def make(endpoint: str) -> Tenant:
        keys = {"SECRET_KEY": "acme-" * 12, "BLUEPRINTS": [endpoint], "DATABASE_URI": url}
        return parse_tenant("acme", keys, data_dir=data_dir)

    return make


@pytest.mark.parametrize("options", [{}, {"prepare_threshold": None}], ids=["noticed", "set"])
def test_no_request_fails_behind_a_pooler(
    url: str, budget: ConnectionBudget, options: dict[str, Any]
) -> None:
    """Statements that psycopg would prepare work through a pooler, with and without the option."""
    engine = make_engine("acme", url, budget, options=options)
    errors: list[Exception] = []

    def work(_: threading.Event) -> None:
        for number in range(50):
            try:
                with engine.begin() as connection:
                    connection.execute(text("SELECT CAST(:n AS INTEGER) + 1"), {"n": number})
            except Exception as error:  # noqa: BLE001 - the test shows all errors
                errors.append(error)

    with in_threads(*[work] * 6):
        pass
    close_engine(engine)

    assert [] == errors


def test_a_chosen_threshold_is_kept(url: str, budget: ConnectionBudget) -> None:
    """A tenant can set `prepare_threshold` for a pooler that supports prepared statements."""
    engine = make_engine("acme", url, budget, options={"prepare_threshold": 7})
    with engine.connect() as connection:
        threshold = connection.connection.driver_connection.prepare_threshold  # type: ignore[union-attr]
    close_engine(engine)

    assert 7 == threshold


def test_a_pooler_is_noticed(url: str, postgres_url: str) -> None:
    """A connection through a pooler is distinguished from a direct connection."""
    found = []
    for each in (url, postgres_url):
        with closing(psycopg.connect(each.replace("+psycopg", ""))) as connection:
            row = connection.execute("SELECT pg_backend_pid()").fetchone()
            found.append(is_pooled(connection, row and row[0]))

    assert [True, False] == found
    assert not is_pooled(object(), 7)


def test_check_accepts_a_pooled_database(url: str) -> None:
    """`tenantry check` connects through a pooler, and names a setting that the pooler refuses."""
    good = probe_database("acme", url)
    refused = probe_database("acme", f"{url}?options=-csearch_path%3Dacme")

    assert (None, True) == (good.problem, good.server_identity is not None)
    assert "unsupported startup parameter: options" in str(refused.problem)


@pytest.mark.live
def test_migrations_run_once_behind_a_pooler(
    write_shop: WriteShop, tenant: Callable[[str], Tenant], data_dir: Path, url: str
) -> None:
    """Two upgrades at the same time migrate a pooled database once, and leave no lock behind.

    A migration that creates an index concurrently does not wait for the lock.
    """
    shop = tenant(write_shop(first(), second(CONCURRENTLY)))
    states: list[str] = []

    def work(_: threading.Event) -> None:
        report = upgrade([shop], data_dir, FleetLimits(jobs=1))
        states.append(report.results[0].state + report.results[0].reason)

    with in_threads(work, work):
        pass
    down = downgrade([shop], data_dir, None, FleetLimits(jobs=1)).results[0]
    again = upgrade([shop], data_dir, FleetLimits(jobs=1)).results[0]
    with create_engine(url, poolclass=NullPool).connect() as connection:
        tables = {*inspect(connection).get_table_names()}
        locks = connection.exec_driver_sql(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())"
        ).scalar()

    assert ["at head", "upgraded"] == sorted(states)
    assert ("downgraded", "upgraded", 0) == (down.state, again.state, locks)
    assert {"alembic_version", "goods", "prices"} == tables


def test_the_lock_of_a_pooled_database_names_its_holder(url: str, tmp_path: Path) -> None:
    """The error of a second process names the process that migrates a pooled database."""
    engine = create_engine(url, poolclass=NullPool, connect_args={"prepare_threshold": None})
    with (
        engine.connect() as one,
        engine.connect() as other,
        migration_lock(one, tmp_path / "lock", 1),
        pytest.raises(DatabaseLockedError, match=r"tenantry db, process \d+ \(\d+\) locks"),
        migration_lock(other, tmp_path / "lock", 0.1),
    ):
        pass
    with engine.connect() as other, migration_lock(other, tmp_path / "lock", 1):
        pass


def test_a_backup_reads_through_a_pooler(url: str) -> None:
    """A backup works through a pooler, because the backup's snapshot lasts one transaction."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE goods AS SELECT generate_series(1, 200) AS id")
    with closing(Snapshot(make_url(url))) as snapshot:
        snapshot.begin()
        (table,) = snapshot.tables()
        rows = list(snapshot.rows(table))

    assert [[number] for number in range(1, 201)] == rows


def test_a_restore_asks_for_a_direct_connection(url: str) -> None:
    """A restore, which locks a session, refuses a pooler, says why, and leaves nothing behind."""
    with (
        pytest.raises(DatabaseError, match=r"leads to a connection pooler.*with --database"),
        NewPostgresDatabase(make_url(url)),
    ):
        pass
    with create_engine(url, poolclass=NullPool).connect() as connection:
        assert [] == inspect(connection).get_table_names()
