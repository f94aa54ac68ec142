"""The gate: no request reaches tables that are behind the code; the rest is served."""

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

from postgres import Postgres
from servers import wait_until
from shops import WriteShop, first, second, write_shop_fixture
from tenantry.app.factory import close_app, create_app
from tenantry.cli.list import describe_state, serving_rows
from tenantry.database.budget import ConnectionBudget
from tenantry.database.errors import DatabaseDownError
from tenantry.database.session import database_of, db, open_database
from tenantry.host import Host
from tenantry.migrations.fleet_run import FleetLimits, downgrade, upgrade
from tenantry.migrations.guard import MigrationGuard
from tenantry.migrations.revisions import QUERY, read_branches
from tenantry.migrations.runner import target_of
from tenantry.observability.control_socket import WorkerStatus
from tenantry.settings import HostSettings

__all__ = ["write_shop_fixture"]

WriteTenant = Callable[..., Path]

BOTH = ["landing", "corp.shop"]


def listed(host: Host) -> list[str]:
    """Return what `tenantry list` shows as the state of each tenant."""
    worker = WorkerStatus(1, 1, is_ready=True, mounts=tuple(host.report.listing()["mounts"]))
    return [describe_state(row) for row in serving_rows([worker])]


@pytest.mark.live
def test_a_database_that_is_behind_costs_the_endpoints_with_tables(
    write_shop: WriteShop, write_tenant: WriteTenant, host: Host, client: Client, postgres_url: str
) -> None:
    """503 there, 201 elsewhere, told in `list`; an upgrade takes effect without a restart."""
    write_shop(first())
    write_tenant("acme", BLUEPRINTS=BOTH, DATABASE_URI=postgres_url)
    host.load()

    behind = client.get("/acme/shop")
    states = listed(host)
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
    assert ["serving"] == listed(host)


@pytest.mark.live
def test_the_default_database_is_brought_to_head_by_its_build(
    write_shop: WriteShop, write_tenant: WriteTenant, settings: HostSettings
) -> None:
    """Two workers that build a new tenant at the same time both serve its tables at once."""
    write_shop(first(), second("time.sleep(0.2)"))
    write_tenant("acme", BLUEPRINTS=BOTH)
    hosts = [Host(settings), Host(settings)]
    codes: list[int] = []

    def ask(host: Host) -> None:
        host.load()
        codes.append(Client(host).get("/acme/shop").status_code)

    threads = [threading.Thread(target=ask, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for host in hosts:
        host.close()

    assert [200, 200] == codes


@pytest.mark.live
def test_a_default_database_that_cannot_be_brought_to_head_costs_its_endpoints(
    write_shop: WriteShop, write_tenant: WriteTenant, host: Host, client: Client
) -> None:
    """A first migration that fails is told to operators; the tenant serves what has no tables."""
    write_shop(first(), second("1 / 0"))
    write_tenant("acme", BLUEPRINTS=BOTH)
    host.load()

    codes = [client.get(path).status_code for path in ("/acme/shop", "/acme/")]

    assert [503, 201] == codes
    told = host.status()[0].database
    assert "behind: ZeroDivisionError: division by zero; the database was left as it was." == told


@pytest.mark.live
def test_why_a_default_database_was_behind_is_not_why_it_is_behind_again(
    write_shop: WriteShop, write_tenant: WriteTenant, host: Host, client: Client
) -> None:
    """Brought to head by hand and taken back, it says what it is at, not what failed once."""
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
    assert host.status()[0].database.startswith("behind: it is at nothing, the code wants shop_2;")


def test_a_database_that_is_down_is_told(
    write_shop: WriteShop, write_tenant: WriteTenant, host: Host, client: Client,
    postgres_server: Postgres,
) -> None:  # fmt: skip
    """503 there, 201 elsewhere, and operators see why."""
    write_shop(first())
    write_tenant("acme", BLUEPRINTS=BOTH, DATABASE_URI=postgres_server.url("nowhere"))
    host.load()

    down = client.get("/acme/shop")

    assert (503, "application/problem+json") == (down.status_code, down.mimetype)
    assert 201 == client.get("/acme/").status_code
    assert ["serving, database down"] == listed(host)
    assert 'database "nowhere" does not exist' in host.status()[0].database


def test_a_tenant_without_tables_has_no_gate(data_dir: Path) -> None:
    """Landing is not guarded, and its app looks at no database."""
    app = create_app({"SECRET_KEY": "k3y-" * 10, "BLUEPRINTS": ["landing"]}, data_dir=data_dir)

    assert "tenantry.gate" not in app.extensions

    close_app(app)


@pytest.fixture(name="clock")
def _clock() -> list[float]:
    return [100.0]


@pytest.fixture(name="app")
def _app(tmp_path: Path) -> Flask:
    app = Flask("acme")
    url = f"sqlite:///{tmp_path}/acme.sqlite3"
    open_database(app, "acme", SecretStr(url), ConnectionBudget(2, wait_s=0.1))
    return app


@pytest.fixture(name="gate")
def _gate(write_shop: WriteShop, app: Flask, tmp_path: Path, clock: list[float]) -> MigrationGuard:
    """Return the gate of a database that is no default one, with a clock that is set by hand."""
    branches = read_branches([write_shop(first())])
    target = target_of("acme", f"sqlite:///{tmp_path}/acme.sqlite3", branches, tmp_path)
    return MigrationGuard(target, database_of(app), is_embedded=False, clock=lambda: clock[0])


def test_what_is_behind_is_looked_at_once_a_second(
    gate: MigrationGuard, app: Flask, clock: list[float]
) -> None:
    """Requests in between cost the database nothing; once it is at head, none ever does."""
    engine = database_of(app).engine
    looks: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *words: looks.append(words[2]))
    counts = []
    for now in (100.0, 100.9, 101.1):
        clock[0] = now
        gate.look()
        counts.append(len(looks))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version AS SELECT 'shop_1' version_num")
    looks.clear()
    for now in (102.2, 110.0):
        clock[0] = now
        with app.test_request_context():
            gate.check()
        counts.append(len(looks))
    database_of(app).close()

    assert ([1, 1, 2, 1, 1], True, "") == (counts, gate.is_open, gate.told)


@pytest.mark.live
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_database_that_is_taken_back_while_it_serves_closes_its_gate(
    kind: str, write_shop: WriteShop, write_tenant: WriteTenant, host: Host, postgres_url: str
) -> None:
    """503 for what misses its table, told in `list`, until an upgrade: no restart in between."""
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
    behind, told, rest = client.get("/acme/shop"), listed(host), client.get("/acme/").status_code
    upgrade(tenants, host.settings.data_dir, FleetLimits(jobs=1))
    wait_until(lambda: client.get("/acme/shop").status_code == 200)

    assert (200, "application/problem+json", 201) == (served, behind.mimetype, rest)
    assert (["serving, database behind"], ["serving"]) == (told, listed(host))


def test_code_that_was_taken_back_still_serves(gate: MigrationGuard, app: Flask) -> None:
    """A database of newer code is told, not refused: to go back must not cost the tenant."""
    with database_of(app).engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version AS SELECT 'shop_9' version_num")

    with app.test_request_context():
        answer = gate.check()
    database_of(app).close()

    assert (None, True) == (answer, gate.told.startswith("ahead: it is at shop_9"))


def counting(gate: MigrationGuard, app: Flask) -> Client:
    """Return a client of an endpoint that counts the rows of whichever table the path names."""
    blueprint = Blueprint("shop", __name__)

    @blueprint.get("/<table>")
    def _count(table: str) -> str:
        return str(db.session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())

    gate.guard("corp.shop", blueprint)
    app.register_blueprint(blueprint)
    return Client(app)


@pytest.mark.parametrize("is_embedded", [False, True])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_first_request_that_misses_a_table_closes_the_gate(
    kind: str, write_shop: WriteShop, tmp_path: Path, postgres_url: str, *, is_embedded: bool
) -> None:
    """It gets 503, and the reason is told; what a database is at is left to who took it back."""
    url = postgres_url if kind == "postgresql" else f"sqlite:///{tmp_path}/acme.sqlite3"
    app, now = Flask("acme"), [100.0]
    database = open_database(app, "acme", SecretStr(url), ConnectionBudget(1, wait_s=0.1))
    target = target_of("acme", url, read_branches([write_shop(first())]), tmp_path)
    gate = MigrationGuard(target, database, is_embedded=is_embedded, clock=lambda: now[0])
    client = counting(gate, app)
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
    assert gate.told.startswith("behind: it is at nothing, the code wants shop_1")


def test_a_bug_in_an_endpoint_is_no_fault_of_the_database(
    gate: MigrationGuard, app: Flask, clock: list[float]
) -> None:
    """A table that no code makes is 500, and costs a look each second, not one per request."""
    client, engine, looks = counting(gate, app), database_of(app).engine, []
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version AS SELECT 'shop_1' version_num")
    event.listen(engine, "before_cursor_execute", lambda *words: looks.append(words[2]))

    codes = []
    for now in (100.0, 100.5, 101.5, 102.0, 103.0):
        clock[0] = now
        codes += [client.get(path).status_code for path in ("/nowhere", "/alembic_version")]
    database_of(app).close()

    assert ([500, 200] * 5, 3, "") == (codes, looks.count(QUERY), gate.told)


def test_missing_tables_cost_only_those_who_ask(gate: MigrationGuard, app: Flask) -> None:
    """A database that is ahead answers 503, not 500, for what is not there, and serves the rest."""
    client = counting(gate, app)
    with database_of(app).engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version AS SELECT 'shop_9' version_num")

    codes = [client.get(path).status_code for path in ("/goods", "/alembic_version")]
    database_of(app).close()

    assert ([503, 200], True) == (codes, gate.is_open)


def test_tables_that_are_not_there_yet_are_no_newer_ones(gate: MigrationGuard, app: Flask) -> None:
    """What an endpoint left that is not enabled any more opens no gate to another one's tables."""
    with database_of(app).engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version AS SELECT 'old_7' version_num")

    with app.test_request_context():
        answer = gate.check()
    database_of(app).close()

    assert (503, False) == (answer and answer.status_code, gate.is_open)
    assert gate.told.startswith("behind: it is at nothing, the code wants shop_1")


def test_a_file_that_is_not_a_database_is_down(
    gate: MigrationGuard, app: Flask, tmp_path: Path
) -> None:
    """Whatever the driver raises is 503 for the client and a reason for operators."""
    (tmp_path / "acme.sqlite3").write_text("no database, but long enough to be looked into" * 9)

    with app.test_request_context(), pytest.raises(DatabaseDownError):
        gate.check()
    database_of(app).close()

    assert gate.told.startswith("down: DatabaseError: file is not a database")
