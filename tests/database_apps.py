"""Helps database tests create apps that have one table."""

from pathlib import Path

from flask import Flask
from flask_restful import Api, Resource
from sqlalchemy import text
from werkzeug.test import TestResponse

from conftest import KEY
from tenantry.app.factory import create_app
from tenantry.database.budget import ConnectionBudget
from tenantry.database.session import db

PROBLEM = "application/problem+json"


class RowCount(Resource):  # type: ignore[misc]
    """A Flask-RESTful resource that counts the rows of the tenant's table."""

    def get(self) -> int:
        """Return the number of rows in the table."""
        return int(db.session.execute(text("SELECT count(*) FROM t")).scalar_one())

    def post(self) -> int:
        """Add a row."""
        db.session.execute(text("INSERT INTO t VALUES (1)"))
        db.session.commit()
        return 1


def app_on(url: str, data_dir: Path, budget: ConnectionBudget) -> Flask:
    """Return acme's app on a database that may not exist."""
    config = {"APP_NAME": "acme", "SECRET_KEY": KEY, "BLUEPRINTS": ["landing"]}
    app = create_app({**config, "DATABASE_URI": url}, data_dir=data_dir, budget=budget)
    Api(app).add_resource(RowCount, "/restful")
    app.add_url_rule("/rows", "get", lambda: str(RowCount().get()))
    app.add_url_rule("/rows", "post", lambda: str(RowCount().post()), methods=["POST"])
    return app


def app_with_table(url: str, data_dir: Path, budget: ConnectionBudget) -> Flask:
    """Return acme's app on a database with an empty table."""
    app = app_on(url, data_dir, budget)
    with app.app_context():
        db.session.execute(text("CREATE TABLE t (x INTEGER)"))
        db.session.commit()
    return app


def outcome(answer: TestResponse) -> tuple[int, str | None, str | None]:
    """Return the status, `Retry-After` and media type of a response."""
    return answer.status_code, answer.headers.get("Retry-After"), answer.mimetype
