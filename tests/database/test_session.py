"""An app's `db` object is created on first use, and is closed with the app."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import text
from werkzeug.test import Client

from database_apps import PROBLEM, app_on, app_with_table, outcome
from tenantry.app.factory import close_app
from tenantry.database.budget import ConnectionBudget
from tenantry.database.session import database_of, db


@pytest.fixture(name="budget")
def _budget() -> ConnectionBudget:
    return ConnectionBudget(4, wait_s=0.1)


@pytest.fixture(name="app", params=["sqlite", "postgresql"])
def _app(
    request: pytest.FixtureRequest, postgres_url: str, data_dir: Path, budget: ConnectionBudget
) -> Iterator[Flask]:
    """Return acme's app with a table, on SQLite and on PostgreSQL. The fixture closes the app."""
    url = postgres_url if request.param == "postgresql" else f"sqlite:///{data_dir}/acme/a.db"
    app = app_with_table(url, data_dir, budget)
    yield app
    close_app(app)


@pytest.mark.live
def test_sqlalchemy_is_not_imported_before_it_is_used() -> None:
    """A host whose tenants have no tables starts without importing SQLAlchemy."""
    code = "import tenantry.app.factory, sys; print('sqlalchemy' in sys.modules)"

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "False\n" == run.stdout


def test_an_unused_database_is_not_connected(data_dir: Path, budget: ConnectionBudget) -> None:
    """If a tenant's database does not exist, requests that need no database still succeed."""
    app = app_on(f"sqlite:///{data_dir}/nowhere/acme.db", data_dir, budget)

    status = Client(app).get("/").status_code
    close_app(app)

    assert (201, 0) == (status, budget.open_count)


def test_a_session_ends_with_its_context(app: Flask, budget: ConnectionBudget) -> None:
    """Each app context has its own session.

    When the context ends, uncommitted work is rolled back.
    """
    with app.app_context():
        first = db.session
        assert first is db.session
        first.execute(text("INSERT INTO t VALUES (1)"))
    with app.app_context():
        assert first is not db.session
        rows = db.session.execute(text("SELECT count(*) FROM t")).scalar_one()

    assert (0, 1) == (rows, budget.idle_count)


def test_a_failing_request_checks_its_connection_in(app: Flask, budget: ConnectionBudget) -> None:
    """Whatever a view raises, the request returns its database connection."""

    @app.get("/boom")
    def boom() -> str:
        db.session.execute(text("SELECT 1"))
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        Client(app).get("/boom")

    assert (1, 1) == (budget.open_count, budget.idle_count)


def test_a_closed_database_cannot_be_used(app: Flask, budget: ConnectionBudget) -> None:
    """After an app is closed, its connections are closed, and using `db` raises an error."""
    database = database_of(app)
    close_app(app)

    with pytest.raises(RuntimeError, match="the database of tenant 'acme' is closed"):
        _ = database.engine
    assert 0 == budget.open_count


def test_connections_that_are_all_checked_out_are_a_503(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """If all connections are in use, requests get 503, and the log names the tenants."""
    engine = database_of(app).engine
    checked_out = [engine.connect() for _ in range(4)]

    answer = Client(app).get("/restful")
    for connection in checked_out:
        connection.close()

    assert (503, "1", PROBLEM) == outcome(answer)
    assert "acme 4 in use, 0 idle" in caplog.records[-1].__dict__["reason"]
