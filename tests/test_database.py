"""An app's own database: lazy, confined to its app, closed with it."""

from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import text

from core.connections import ConnectionBudget
from core.database import close_database, db, open_database


@pytest.fixture(name="budget")
def _budget() -> ConnectionBudget:
    return ConnectionBudget(4, wait_s=0.1)


@pytest.fixture(name="url", params=["sqlite", "postgresql"])
def _url(request: pytest.FixtureRequest, postgres_url: str, tmp_path: Path) -> str:
    return postgres_url if request.param == "postgresql" else f"sqlite:///{tmp_path}/acme.sqlite3"


def test_a_session_reads_and_writes(url: str, budget: ConnectionBudget) -> None:
    """A session works on both engines, and its connection goes back with its context."""
    app = Flask("acme")
    open_database(app, "acme", url, budget)
    with app.app_context():
        db.session.execute(text("CREATE TABLE t (x INTEGER)"))
        db.session.execute(text("INSERT INTO t VALUES (7)"))
        db.session.commit()
    with app.app_context():
        found = db.session.execute(text("SELECT x FROM t")).scalar_one()

    idle = budget.idle
    close_database(app)

    assert (7, 1, 0) == (found, idle, budget.open)
