"""Flask-SQLAlchemy and Flask-SQLAlchemy-Lite use the tenant's database, budget and usage counts."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text
from werkzeug.test import Client

import leaks
from conftest import KEY
from tenantry.app.factory import close_app, create_app
from tenantry.database.budget import ConnectionBudget
from tenantry.database.pool import BudgetPool
from tenantry.database.session import db as own_db

EXTENSION = """
from flask_sqlalchemy{lite} import SQLAlchemy
from sqlalchemy import text

db = SQLAlchemy({options})
shop_bp.record_once(lambda state: db.init_app(state.app))

@shop_bp.post("/notes/<note>")
def add(note):
    db.session.execute(text("INSERT INTO notes VALUES (:note)"), {{"note": note}})
    db.session.commit()
    return "", 201

@shop_bp.get("/notes")
def notes():
    return list(db.session.scalars(text("SELECT note FROM notes")))

@shop_bp.get("/wrong")
def wrong():
    db.session.execute(text("SELECT * FROM nowhere"))
"""

FLAVORS = {"Flask-SQLAlchemy": "", "Flask-SQLAlchemy-Lite": "_lite"}

Build = Callable[..., Flask]


@pytest.fixture(name="budget")
def _budget() -> ConnectionBudget:
    return ConnectionBudget(4, wait_s=0.1)


@pytest.fixture(name="queries")
def _queries() -> list[str]:
    """Return a list of tenants, to which each counted query adds one."""
    return []


@pytest.fixture(name="build", params=FLAVORS)
def _build(
    request: pytest.FixtureRequest,
    corp: Path,
    data_dir: Path,
    budget: ConnectionBudget,
    queries: list[str],
) -> Iterator[Build]:
    """Return a function that builds a tenant with a table `notes` and the extension."""
    apps: list[Flask] = []
    lite = FLAVORS[request.param]

    def build(name: str = "acme", *, options: str = "", **keys: object) -> Flask:
        code = EXTENSION.format(lite=lite, options=options)
        if not (corp / "corp/shop").exists():
            leaks.write_endpoint(corp, "shop", blueprint=code)
        values: dict[str, Any] = {"APP_NAME": name, "SECRET_KEY": f"{name}-{KEY}"}
        app = create_app(
            values | {"BLUEPRINTS": ["corp.shop"]} | keys,
            data_dir=data_dir,
            budget=budget,
            note_query=lambda tenant, _: queries.append(tenant),
        )
        apps.append(app)
        with app.app_context():
            own_db.session.execute(text("CREATE TABLE IF NOT EXISTS notes (note TEXT)"))
            own_db.session.commit()
        queries.clear()
        return app

    yield build
    for app in apps:
        close_app(app)


def _engine(app: Flask) -> Any:
    with app.app_context():
        return app.extensions["sqlalchemy"].engine


def test_each_tenant_has_its_own_rows(build: Build) -> None:
    """Without a configured database, the extension uses the tenant's database."""
    acme, globex = build("acme"), build("globex")
    Client(acme).post("/notes/tea").close()

    assert [["tea"], []] == [Client(app).get("/notes").json for app in (acme, globex)]


def test_queries_are_counted(build: Build, queries: list[str]) -> None:
    """A query of the extension counts for its tenant."""
    Client(build("globex")).get("/notes").close()

    assert ["globex"] == queries


def test_connections_belong_to_the_budget(build: Build, budget: ConnectionBudget) -> None:
    """The extension's connections are part of the budget, and are closed with the app."""
    app = build()
    Client(app).get("/notes").close()
    during = budget.counts()["acme"]
    close_app(app)

    assert ((0, 2), 0) == (during, budget.open_count)  # one of `tenantry.db`, one of the extension


def test_a_closed_app_closes_the_connections_in_use(build: Build, budget: ConnectionBudget) -> None:
    """A connection that is in use when its app is closed is closed as soon as it is returned."""
    app = build()
    connection = _engine(app).connect()
    close_app(app)
    during = budget.open_count
    connection.close()

    assert (1, 0) == (during, budget.open_count)


def test_engine_options_of_the_app_apply_except_those_of_the_pool(build: Build) -> None:
    """The app's engine options apply, but the pool belongs to the host."""
    app = build(
        options='engine_options={"pool_size": 50, "pool_pre_ping": True, "echo": None, '
        '"isolation_level": "SERIALIZABLE", "connect_args": {"detect_types": 1}}'
    )
    engine = _engine(app)

    with engine.connect() as connection:
        level = connection.get_isolation_level()
    assert ("SERIALIZABLE", BudgetPool) == (level, type(engine.pool))


def test_the_configuration_has_the_tenants_database(build: Build, data_dir: Path) -> None:
    """The extension's keys contain the tenant's URL, and its engine has that URL."""
    app = build()
    uri = f"sqlite:///{data_dir}/acme/acme.sqlite3"

    assert [uri, {"default": uri}, uri] == [
        app.config["SQLALCHEMY_DATABASE_URI"],
        app.config["SQLALCHEMY_ENGINES"],
        str(_engine(app).url),
    ]


def test_other_engines_of_the_app_are_kept(corp: Path, data_dir: Path) -> None:
    """The app can add engines, which are its own, to the tenant's default engine."""
    code = EXTENSION.format(lite="_lite", options="").replace(
        "db.init_app(state.app)",
        '(state.app.config["SQLALCHEMY_ENGINES"].update(logs="sqlite://"), db.init_app(state.app))',
    )
    values = {"APP_NAME": "acme", "SECRET_KEY": KEY}
    shop = leaks.write_endpoint(corp, "shop", blueprint=code)
    app = create_app(values | {"BLUEPRINTS": [shop]}, data_dir=data_dir)
    with app.app_context():
        engines = app.extensions["sqlalchemy"].engines
    close_app(app)

    assert [BudgetPool, False] == [
        type(engines["default"].pool),
        isinstance(engines["logs"].pool, BudgetPool),
    ]


def test_a_database_in_memory_is_the_same_for_tenantry_and_the_extension(build: Build) -> None:
    """A database in memory has one connection, which `tenantry.db` and the extension share."""
    app = build(DATABASE_URI="sqlite://")
    Client(app).post("/notes/tea").close()

    with app.app_context():
        assert ["tea"] == list(own_db.session.scalars(text("SELECT note FROM notes")))


def test_the_extension_works_on_postgresql(build: Build, postgres_url: str) -> None:
    """On PostgreSQL, the extension has the same database, and reports errors as usual."""
    app = build(DATABASE_URI=postgres_url)
    client = Client(app)
    client.post("/notes/tea").close()

    assert (["tea"], 500) == (client.get("/notes").json, client.get("/wrong").status_code)


def test_a_database_that_is_down_is_answered_by_the_host(build: Build, data_dir: Path) -> None:
    """An error of the extension's engine becomes 503, as for the engine of `tenantry.db`."""
    app = build()
    for path in data_dir.glob("acme/acme.sqlite3*"):
        path.unlink()
    (data_dir / "acme/acme.sqlite3").write_bytes(b"not a database" * 100)

    assert 503 == Client(app).get("/notes").status_code


def test_a_database_that_the_tenant_file_names_is_left_alone(
    build: Build, data_dir: Path, budget: ConnectionBudget
) -> None:
    """If the tenant file itself sets the extension's key, the extension uses that database."""
    uri = f"sqlite:///{data_dir}/acme/other.sqlite3"
    engines = {"default": uri}
    app = build(SQLALCHEMY_DATABASE_URI=uri, SQLALCHEMY_ENGINES=engines)
    before = budget.open_count
    with _engine(app).connect():
        during = budget.open_count
    _engine(app).dispose()

    assert (uri, before) == (str(_engine(app).url), during)
