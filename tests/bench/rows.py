"""Helps database benchmarks create tenants that each have a database with one row."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import psycopg

from postgres import Postgres, running

__all__ = ["Postgres", "make_database", "make_site", "make_template", "running", "tenant_text"]

BLUEPRINT = """\
from flask import Blueprint
from sqlalchemy import text
from tenantry.database.session import db

rows_bp = Blueprint("rows", __name__)


@rows_bp.route("/")
def read():
    return db.session.execute(text("SELECT x FROM t")).scalar_one()
"""
"""A view that returns the value in the only row of the tenant's table."""

UNBOUNDED = """\
from flask import Blueprint, current_app
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

rows_bp = Blueprint("rows", __name__)
engines = []


@rows_bp.route("/")
def read():
    if not engines:
        engines.append(create_engine(current_app.config["DATABASE_URI"], pool_size=0))
    with Session(engines[0]) as session:
        return session.execute(text("SELECT x FROM t")).scalar_one()
"""
"""The same view, but with a separate unbounded connection pool for each tenant."""


def make_site(folder: Path, blueprint: str = BLUEPRINT) -> Path:
    """Create the endpoint package and an empty tenants folder. Return the tenants folder."""
    add_endpoint(folder, "rows", blueprint)
    (folder / "tenants").mkdir()
    return folder / "tenants"


def add_endpoint(folder: Path, name: str, blueprint: str) -> None:
    """Create the endpoint package `demo.NAME`."""
    package = folder / "demo" / name
    package.mkdir(parents=True)
    for init in (folder / "demo/__init__.py", package / "__init__.py"):
        init.write_text("")
    (package / "blueprint.py").write_text(blueprint.replace("rows_bp", f"{name}_bp"))


def tenant_text(name: str, url: str, endpoint: str = "rows") -> str:
    """Return the text of a tenant file with the given database."""
    return (
        f"SECRET_KEY = {name + '-' * 32!r}\nDATABASE_URI = {url!r}\n"
        f"BLUEPRINTS = ['demo.{endpoint}']\n"
    )


def make_template(server: Postgres) -> None:
    """Create the template database that `make_database` copies."""
    server.new_database("rows")
    with server.connect("rows") as connection:
        connection.execute("CREATE TABLE t (x TEXT)")
        connection.execute("INSERT INTO t VALUES ('good')")


def make_database(connection: "psycopg.Connection[tuple[object, ...]]", name: str) -> None:
    """Create a database with one row."""
    connection.execute(f'CREATE DATABASE "{name}" TEMPLATE rows STRATEGY file_copy')
