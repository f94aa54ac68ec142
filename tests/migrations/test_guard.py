"""The migration guard answers 503 while a tenant's tables are older than the code."""

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from flask import Blueprint, Flask
from pydantic import SecretStr
from sqlalchemy import event, text
from werkzeug.test import Client

from commands import Tenantry
from postgres import Postgres
from servers import wait_until
from shops import WriteShop, first, second, write_shop_fixture
from tenantry.app.factory import close_app, create_app
from tenantry.cli.list import describe_state, serving_rows
from tenantry.database.budget import ConnectionBudget
from tenantry.database.errors import DatabaseDownError
from tenantry.database.session import Database, add_database, database_of, db
from tenantry.host import Host
from tenantry.migrations.fleet_run import FleetLimits, downgrade, upgrade
from tenantry.migrations.guard import MigrationGuard
from tenantry.migrations.revisions import read_branches
from tenantry.migrations.runner import migration_target
from tenantry.migrations.version_table import VERSIONS_QUERY
from tenantry.observability.control_socket import WorkerStatus
from tenantry.settings import HostSettings
from tenantry.tenants.model import Tenant

__all__ = ["write_shop_fixture"]

WriteTenant = Callable[..., Path]

BOTH = ["landing", "corp.shop"]


def listed_states(host: Host) -> list[str]:
    """Return the state of each tenant, as in `tenantry list`."""
    worker = WorkerStatus(1, 1, is_ready=True, mounts=tuple(host.report.listing()["mounts"]))
    return [describe_state(row) for row in serving_rows([worker])]


@pytest.mark.live
def test_a_database_behind_the_code_stops_only_endpoints_with_tables(
    write_shop: WriteShop, write_tenant: WriteTenant, host: Host, client: Client, postgres_url: str
) -> None:
    """If a database is behind the code, endpoints with tables get 503 until an upgrade.

    `tenantry list` gives the reason, and endpoints without tables still serve.
    """
    write_shop(first())
    write_tenant("acme", BLUEPRINTS=BOTH, DATABASE_URI=postgres_url)
    host.load()

    behind = client.get("/acme/shop")
    states = listed_states(host)
    rest = client.get("/acme/").status_code
    tenants = [mount.tenant for mount in host.router.mounts if mount.tenant is not None]
    upgrade(tenants, host.settings.data_dir, FleetLimits(jobs=1))
    wait_until(lambda: client.get("/acme/shop").status_code == 200)

    assert (503, "application/problem+json", "5") == (
        behind.status_code, behind.mimetype, behind.headers["Retry-After"]
    )  # fmt: skip
    assert "shop_1" not in behind.text
    assert behind.json is not None
    assert behind.headers["X-Request-ID"] == behind.json["request_id"]
    assert (["serving, database behind"], 201) == (states, rest)
    assert ["serving"] == listed_states(host)


@pytest.mark.live
def test_a_build_upgrades_the_default_database(
    write_shop: WriteShop, write_tenant: WriteTenant, settings: HostSettings
) -> None:
    """If two workers build an app for a new tenant at the same time, both can use its tables."""
    write_shop(first(), second("time.sleep(0.2)"))
    write_tenant("acme", BLUEPRINTS=BOTH)
    hosts = [Host(settings), Host(settings)]
    codes: list[int] = []

    def load_and_get(host: Host) -> None:
        host.load()
        codes.append(Client(host).get("/acme/shop").status_code)

    threads = [threading.Thread(target=load_and_get, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for host in hosts:
        host.close()

    assert [200, 200] == codes


@pytest.mark.live
def test_a_failed_upgrade_of_the_default_database_stops_only_endpoints_with_tables(
    write_shop: WriteShop, write_tenant: WriteTenant, host: Host, client: Client
) -> None:
    """If a migration fails, operators see the error, and endpoints without tables still serve."""
    write_shop(first(), second("1 / 0"))
    write_tenant("acme", BLUEPRINTS=BOTH)
    host.load()

    codes = [client.get(path).status_code for path in ("/acme/shop", "/acme/")]

    assert [503, 201] == codes
    assert (
        "behind: ZeroDivisionError: division by zero; the database was left as it was."
    ) == host.status()[0].database


@pytest.mark.live
def test_the_reason_of_a_failed_upgrade_is_forgotten_at_head(
    write_shop: WriteShop, write_tenant: WriteTenant, host: Host, client: Client
) -> None:
    """Once a database is up to date, operators no longer see an old migration error."""
    write_shop(first(), second("1 / 0"))
    write_tenant("acme", BLUEPRINTS=BOTH)
    host.load()
    failed = client.get("/acme/shop").status_code
    file = host.settings.data_dir / "acme/acme.sqlite3"
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE goods (id INTEGER)")
        connection.execute("CREATE TABLE alembic_version AS SELECT 'shop_2' version_num")
        wait_until(lambda: client.get("/acme/shop").status_code == 200)
        connection.execute("DROP TABLE goods")
        connection.execute("DELETE FROM alembic_version")
    wait_until(lambda: client.get("/acme/shop").status_code == 503)

    assert 503 == failed
    assert host.status()[0].database.startswith(
        "behind: the database is at nothing, but the code needs shop_2;"
    )


def test_a_database_that_is_down_stops_only_endpoints_with_tables(
    write_shop: WriteShop, write_tenant: WriteTenant, host: Host, client: Client,
    postgres_server: Postgres,
) -> None:  # fmt: skip
    """While a database is down, endpoints with tables get 503, and operators see the reason."""
    write_shop(first())
    write_tenant("acme", BLUEPRINTS=BOTH, DATABASE_URI=postgres_server.url("nowhere"))
    host.load()

    down = client.get("/acme/shop")

    assert (503, "application/problem+json") == (down.status_code, down.mimetype)
    assert 201 == client.get("/acme/").status_code
    assert ["serving, database down"] == listed_states(host)
    assert 'database "nowhere" does not exist' in host.status()[0].database


def test_a_tenant_without_tables_has_no_guard(data_dir: Path) -> None:
    """An app without tables has no migration guard."""
    app = create_app({"SECRET_KEY": "k3y-" * 10, "BLUEPRINTS": ["landing"]}, data_dir=data_dir)

    assert "tenantry.migration_guard" not in app.extensions

    close_app(app)


@pytest.fixture(name="clock")
def _clock() -> list[float]:
    return [100.0]


@pytest.fixture(name="app")
def _app(tmp_path: Path) -> Flask:
    app = Flask("acme")
    url = f"sqlite:///{tmp_path}/acme.sqlite3"
    add_database(app, Database("acme", SecretStr(url), ConnectionBudget(2, wait_s=0.1)))
    return app


@pytest.fixture(name="guard")
def _guard(write_shop: WriteShop, app: Flask, tmp_path: Path, clock: list[float]) -> MigrationGuard:
    """Return the migration guard of a database, with a clock that the test sets."""
    branches = read_branches([write_shop(first())], None)
    target = migration_target("acme", f"sqlite:///{tmp_path}/acme.sqlite3", branches, tmp_path)
    return MigrationGuard(target, database_of(app), is_default=False, clock=lambda: clock[0])


def test_a_database_behind_the_code_is_read_once_a_second(
    guard: MigrationGuard, app: Flask, clock: list[float]
) -> None:
    """While a database is older than the code, its revisions are read once a second."""
    engine = database_of(app).engine
    reads: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: reads.append(args[2]))
    engine.connect().close()  # connecting creates the file
    counts = []
    for now in (100.0, 100.9, 101.1):
        clock[0] = now
        guard.check()
        counts.append(len(reads))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version AS SELECT 'shop_1' version_num")
    reads.clear()
    for now in (102.2, 110.0):
        clock[0] = now
        guard.check()
        counts.append(len(reads))
    database_of(app).close()

    assert ([1, 1, 2, 1, 1], True, "") == (counts, guard.is_open, guard.problem)


@pytest.mark.live
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_downgrade_while_serving_closes_the_guard(
    kind: str, write_shop: WriteShop, write_tenant: WriteTenant, host: Host, postgres_url: str
) -> None:
    """If a database is downgraded while it serves, requests get 503 until an upgrade."""
    file = host.settings.data_dir.parent / "acme.sqlite3"
    url = postgres_url if kind == "postgresql" else f"sqlite:///{file}"
    write_shop(first())
    write_tenant("acme", BLUEPRINTS=BOTH, DATABASE_URI=url)
    host.load()
    client = Client(host)
    tenants = [mount.tenant for mount in host.router.mounts if mount.tenant is not None]
    upgrade(tenants, host.settings.data_dir, FleetLimits(jobs=1))
    served = client.get("/acme/shop").status_code

    downgrade(tenants, host.settings.data_dir, None, FleetLimits(jobs=1))
    wait_until(lambda: client.get("/acme/shop").status_code == 503)
    behind, states = client.get("/acme/shop"), listed_states(host)
    rest = client.get("/acme/").status_code
    upgrade(tenants, host.settings.data_dir, FleetLimits(jobs=1))
    wait_until(lambda: client.get("/acme/shop").status_code == 200)

    assert (200, "application/problem+json", 201) == (served, behind.mimetype, rest)
    assert (["serving, database behind"], ["serving"]) == (states, listed_states(host))


def test_older_code_serves_a_newer_database(guard: MigrationGuard, app: Flask) -> None:
    """A database that is newer than the code causes no 503, so operators can roll code back."""
    with database_of(app).engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version AS SELECT 'shop_9' version_num")

    is_open = guard.check()
    database_of(app).close()

    assert is_open
    assert guard.problem.startswith("ahead: the database is at shop_9, which no endpoint here has")


def counting_client(guard: MigrationGuard, app: Flask) -> Client:
    """Return a client of an endpoint that counts the rows of the table named by the path."""
    blueprint = Blueprint("shop", __name__)

    @blueprint.get("/<table>")
    def _count(table: str) -> str:
        return str(db.session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())

    guard.install(app)
    guard.protect("corp.shop", blueprint)
    app.register_blueprint(blueprint)
    return Client(app)


@pytest.mark.parametrize("is_default", [False, True])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_first_request_that_misses_a_table_closes_the_guard(
    kind: str, write_shop: WriteShop, tmp_path: Path, postgres_url: str, *, is_default: bool
) -> None:
    """After a downgrade, the first request that misses a table gets 503."""
    url = postgres_url if kind == "postgresql" else f"sqlite:///{tmp_path}/acme.sqlite3"
    app, now = Flask("acme"), [100.0]
    database = Database("acme", SecretStr(url), ConnectionBudget(1, wait_s=0.1))
    add_database(app, database)
    target = migration_target("acme", url, read_branches([write_shop(first())], None), tmp_path)
    guard = MigrationGuard(target, database, is_default=is_default, clock=lambda: now[0])
    client = counting_client(guard, app)
    with database.engine.begin() as connection:
        for statement in (
            "CREATE TABLE alembic_version AS SELECT 'shop_1' version_num",
            "CREATE TABLE goods (id INTEGER)",
        ):
            connection.exec_driver_sql(statement)

    served = client.get("/goods").status_code
    with database.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE goods")
        connection.exec_driver_sql("DELETE FROM alembic_version")
    now[0] = 200.0
    codes = [client.get(path).status_code for path in ("/goods", "/alembic_version")]
    database.close()

    assert (200, [503, 503]) == (served, codes)
    assert guard.problem.startswith("behind: the database is at nothing, but the code needs shop_1")


def test_a_query_of_a_wrong_table_is_an_error_of_the_endpoint(
    guard: MigrationGuard, app: Flask, clock: list[float]
) -> None:
    """If an endpoint queries a table that no migration creates, the request gets 500."""
    client, engine = counting_client(guard, app), database_of(app).engine
    reads: list[str] = []
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version AS SELECT 'shop_1' version_num")
    event.listen(engine, "before_cursor_execute", lambda *args: reads.append(args[2]))

    codes = []
    for now in (100.0, 100.5, 101.5, 102.0, 103.0):
        clock[0] = now
        codes += [client.get(path).status_code for path in ("/nowhere", "/alembic_version")]
    database_of(app).close()

    assert ([500, 200] * 5, 3, "") == (codes, reads.count(VERSIONS_QUERY), guard.problem)


def test_a_missing_table_of_a_newer_database_is_not_an_error_of_the_endpoint(
    guard: MigrationGuard, app: Flask
) -> None:
    """If newer code has dropped a table, requests that need the table get 503, not 500."""
    client = counting_client(guard, app)
    with database_of(app).engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version AS SELECT 'shop_9' version_num")

    codes = [client.get(path).status_code for path in ("/goods", "/alembic_version")]
    database_of(app).close()

    assert ([503, 200], True) == (codes, guard.is_open)


def test_revisions_of_a_former_endpoint_do_not_open_the_guard(
    guard: MigrationGuard, app: Flask
) -> None:
    """A revision of an endpoint that the tenant no longer uses does not make a database current."""
    with database_of(app).engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version AS SELECT 'old_7' version_num")

    status_code = counting_client(guard, app).get("/goods").status_code
    database_of(app).close()

    assert (503, False) == (status_code, guard.is_open)
    assert guard.problem.startswith("behind: the database is at nothing, but the code needs shop_1")


def test_a_file_that_is_not_a_database_is_down(
    guard: MigrationGuard, app: Flask, tmp_path: Path
) -> None:
    """If a SQLite file is not a database, operators see the driver's error."""
    (tmp_path / "acme.sqlite3").write_text("not a database, but as long as its header" * 9)

    with pytest.raises(DatabaseDownError):
        guard.check()
    database_of(app).close()

    assert guard.problem.startswith("down: DatabaseError: file is not a database")


@pytest.mark.live
def test_a_build_leaves_a_journal_for_a_downgrade(
    write_shop: WriteShop, write_tenant: WriteTenant, settings: HostSettings
) -> None:
    """`tenantry db downgrade` undoes the host's own upgrades of all tenants at once.

    After a downgrade, only `tenantry db upgrade` upgrades a database again, and not the next build.
    """

    def serve() -> tuple[list[int], list[Tenant], str]:
        host = Host(settings)
        host.load()
        client = Client(host)
        codes = [client.get(f"/{name}/shop").status_code for name in ("acme", "globex")]
        tenants = [mount.tenant for mount in host.router.mounts if mount.tenant is not None]
        problem = host.status()[0].database
        host.close()
        return codes, tenants, problem

    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=BOTH, SECRET_KEY=f"{name}-" * 12)
    write_shop(first())
    new = serve()[0]
    write_shop(first(), second())
    upgraded, tenants, _ = serve()
    down = downgrade(tenants, settings.data_dir, None, FleetLimits(jobs=1))
    behind, _, problem = serve()
    again = upgrade(tenants, settings.data_dir, FleetLimits(jobs=1))

    assert [[200, 200], [200, 200], [503, 503]] == [new, upgraded, behind]
    assert [(2, "downgraded", {"shop_1"})] * 2 == [
        (down.run, status.state, set(status.after)) for status in down.results
    ]
    assert problem.startswith("behind: the database is at shop_1, but the code needs shop_2; run:")
    assert ["upgraded", "upgraded"] == [status.state for status in again.results]
    assert [200, 200] == serve()[0]


@pytest.mark.live
def test_a_command_that_inspects_migrates_nothing(
    write_shop: WriteShop, write_tenant: WriteTenant, settings: HostSettings, tenantry: Tenantry
) -> None:
    """`tenantry get` and `audit` neither create nor upgrade a tenant's database."""
    write_shop(first())
    write_tenant("acme", BLUEPRINTS=BOTH)

    answer = tenantry("get", "/acme/shop")
    tenantry("audit", "acme")
    created = [path.name for path in (settings.data_dir / "acme").glob("*.sqlite3*")]
    host = Host(settings)
    host.load()
    served = Client(host).get("/acme/shop").status_code
    host.close()
    write_shop(first(), second())
    later = tenantry("get", "/acme/shop")
    with closing(sqlite3.connect(settings.data_dir / "acme/acme.sqlite3")) as connection:
        versions = connection.execute("SELECT version_num FROM alembic_version").fetchall()

    assert ("HTTP/1.1 503", 1) == (answer.out[:12], answer.code)
    assert "until its database is upgraded" in answer.out
    assert ([], 200) == (created, served)
    assert ("HTTP/1.1 503", [("shop_1",)]) == (later.out[:12], versions)


@pytest.mark.live
def test_list_shows_why_the_last_upgrade_failed(
    write_shop: WriteShop, write_tenant: WriteTenant, host: Host, client: Client, postgres_url: str
) -> None:
    """Until a failed database upgrade succeeds, `tenantry list` shows why the upgrade failed.

    The response to a client does not claim that an upgrade is running.
    """
    write_shop(first(), second("1 / 0"))
    write_tenant("acme", BLUEPRINTS=BOTH, DATABASE_URI=postgres_url)
    host.load()
    tenants = [mount.tenant for mount in host.router.mounts if mount.tenant is not None]
    upgrade(tenants, host.settings.data_dir, FleetLimits(jobs=1))

    answer = client.get("/acme/shop")
    reason = host.status()[0].database
    write_shop(first(), second())
    upgrade(tenants, host.settings.data_dir, FleetLimits(jobs=1))
    wait_until(lambda: client.get("/acme/shop").status_code == 200)

    assert (503, True) == (
        answer.status_code, "not available until its database is upgraded" in answer.text
    )  # fmt: skip
    assert reason.startswith("behind: the last upgrade failed: ZeroDivisionError: division by zero")
    assert "" == host.status()[0].database
