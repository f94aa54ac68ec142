"""Tenantry notices if a SQLite file is missing, replaced, damaged or read-only."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import text
from werkzeug.test import Client

from database_apps import PROBLEM, app_on, app_with_table, outcome
from tenantry.app.factory import close_app
from tenantry.database.budget import ConnectionBudget
from tenantry.database.errors import DatabaseDownError
from tenantry.database.session import db


@pytest.fixture(name="budget")
def _budget() -> ConnectionBudget:
    return ConnectionBudget(4, wait_s=0.1)


@pytest.fixture(name="file")
def _file(data_dir: Path) -> Path:
    return data_dir / "acme/acme.sqlite3"


@pytest.fixture(name="app")
def _app(file: Path, data_dir: Path, budget: ConnectionBudget) -> Iterator[Flask]:
    """Return acme's app with a SQLite table that has one row. The fixture closes the app."""
    app = app_with_table(f"sqlite:///{file}", data_dir, budget)
    Client(app).post("/rows")
    yield app
    close_app(app)


def _delete(file: Path) -> None:
    for path in file.parent.glob(f"{file.name}*"):
        if path.suffix != ".made":
            path.unlink()


def test_a_deleted_file_is_not_recreated(
    app: Flask, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After a SQLite file is deleted, requests get 503, and one log line says what to do."""
    _delete(file)

    answers = [
        outcome(Client(app).open(path="/rows", method=method)) for method in ("GET", "POST", "GET")
    ]

    assert [(503, "10", PROBLEM)] * 3 == answers
    assert not file.exists()
    assert [
        f"{file} is gone; restore it, or also delete acme.sqlite3.made to start with an empty one"
    ] == [record.__dict__["reason"] for record in caplog.records]


def test_a_new_instance_does_not_recreate_a_deleted_file(
    app: Flask, file: Path, data_dir: Path, budget: ConnectionBudget
) -> None:
    """If a SQLite file is deleted, a reloaded tenant does not create an empty one in its place."""
    _delete(file)
    new_app = app_on(f"sqlite:///{file}", data_dir, budget)
    with new_app.app_context(), pytest.raises(DatabaseDownError):
        db.session.execute(text("SELECT 1"))
    close_app(new_app)

    assert (503, False) == (Client(app).get("/rows").status_code, file.exists())


def test_deleting_the_marker_allows_an_empty_file(app: Flask, file: Path) -> None:
    """If an operator deletes both a SQLite file and its marker file, Tenantry creates a new one."""
    _delete(file)
    Client(app).get("/rows")
    file.with_name("acme.sqlite3.made").unlink()

    with app.app_context():
        db.session.execute(text("CREATE TABLE t (x INTEGER)"))
        db.session.commit()

    assert "0" == Client(app).get("/rows").text


def test_a_restored_file_is_served(app: Flask, file: Path) -> None:
    """If an operator replaces a SQLite file, later requests read the new file."""
    with app.app_context():
        db.session.execute(text(f"VACUUM INTO '{file}.copy'"))
    Client(app).post("/rows")
    file.with_name(f"{file.name}.copy").rename(file)
    for name in ("acme.sqlite3-wal", "acme.sqlite3-shm"):
        file.with_name(name).unlink(missing_ok=True)

    assert "1" == Client(app).get("/rows").text


def test_an_impossible_path_is_a_503(data_dir: Path, budget: ConnectionBudget) -> None:
    """If a SQLite path is too long for the file system, requests get 503, not 500."""
    app = app_on(f"sqlite:///{data_dir}/{'x' * 300}.sqlite3", data_dir, budget)

    answer = Client(app).get("/rows")
    close_app(app)

    assert (503, "1", PROBLEM) == outcome(answer)


def test_a_file_that_is_not_a_database_is_a_503(
    file: Path, data_dir: Path, budget: ConnectionBudget
) -> None:
    """If a SQLite file is not a database, requests get 503, and no connection stays open."""
    file.parent.mkdir(parents=True)
    file.write_bytes(b"garbage" * 1000)
    app = app_on(f"sqlite:///{file}", data_dir, budget)

    answers = [outcome(Client(app).get("/rows")) for _ in range(budget.limit + 1)]
    open_count = budget.open_count
    close_app(app)

    assert ([(503, "1", PROBLEM)] * 5, 0) == (answers, open_count)


@pytest.mark.parametrize(
    ("pragma", "status"), [("max_page_count = 1", 507), ("query_only = ON", 503)]
)
def test_a_database_that_cannot_be_written_can_be_read(
    app: Flask, pragma: str, status: int
) -> None:
    """A write gets 507 on a full disk and 503 on a read-only database, and reads still work."""
    with app.app_context():
        db.session.execute(text(f"PRAGMA {pragma}"))
    with app.app_context(), pytest.raises(DatabaseDownError) as refused:
        db.session.execute(text("INSERT INTO t SELECT zeroblob(100000)"))

    assert (status, "1") == (refused.value.code, Client(app).get("/rows").text)
