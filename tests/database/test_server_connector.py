"""If a database server is down or silent, only requests of that database's tenant get 503."""

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from flask import Flask
from sqlalchemy import NullPool, create_engine, event, make_url, text
from werkzeug.test import Client

import postgres
from database_apps import PROBLEM, app_on, app_with_table, outcome
from postgres import Postgres
from servers import wait_until
from tenantry.app.factory import close_app
from tenantry.database import server_connector
from tenantry.database.budget import ConnectionBudget
from tenantry.database.engine import close_engine, make_engine
from tenantry.database.errors import DatabaseDownError
from tenantry.database.server_connector import ServerConnector
from tenantry.database.session import database_of, db


@pytest.fixture(name="budget")
def _budget() -> ConnectionBudget:
    return ConnectionBudget(4, wait_s=0.1)


@pytest.fixture(name="app")
def _app(postgres_url: str, data_dir: Path, budget: ConnectionBudget) -> Iterator[Flask]:
    """Return acme's app with a PostgreSQL table. The fixture closes the app."""
    app = app_with_table(postgres_url, data_dir, budget)
    yield app
    close_app(app)


@pytest.fixture(name="own_server", scope="module")
def _own_server() -> Iterator[Postgres]:
    """Return a PostgreSQL server that the test may stop and must start again."""
    with postgres.running() as server:
        yield server


def test_a_database_that_is_down_is_a_503_until_it_is_back(
    own_server: Postgres, data_dir: Path, budget: ConnectionBudget, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests get 503 while the database server is down, and succeed when it is back."""
    app = app_with_table(own_server.new_database(), data_dir, budget)
    client = Client(app)
    own_server.stop()

    down = [outcome(client.get(path)) for path in ("/rows", "/restful", "/rows")]
    own_server.start_again()
    wait_until(lambda: client.get("/rows").status_code == 200)
    events = [
        record.getMessage() for record in caplog.records if record.name == server_connector.__name__
    ]
    close_app(app)
    wait_until(lambda: budget.open_count == 0)

    assert [(503, "1", PROBLEM)] * 3 == down
    assert ["database.down", "database.back"] == events


def test_a_connection_that_dies_after_the_last_query_changes_no_response(
    app: Flask, postgres_url: str
) -> None:
    """If the server ends a connection before the final rollback, the response is unchanged."""
    server = create_engine(postgres_url, poolclass=NullPool)

    def end_own_connection() -> str:
        pid = db.session.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with server.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        return "done"

    app.add_url_rule("/end", "end", end_own_connection)

    response = Client(app).get("/end")

    assert (200, "done") == (response.status_code, response.text)


def test_a_probe_that_cannot_start_does_not_prevent_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the thread that checks a database cannot start, a later request starts the check."""

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    connector = ServerConnector("acme")
    connector.probe = lambda: connector.connect(object)
    with pytest.raises(DatabaseDownError):
        connector.connect(lambda: 1 / 0)
    connector._breaker._retry_at = 0.0
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(DatabaseDownError):
            connector.check_available(must_open=True)

    with pytest.raises(DatabaseDownError):
        connector.check_available(must_open=True)
    wait_until(lambda: connector._breaker.pause_s is None)

    connector.check_available(must_open=True)


def test_a_probe_opens_a_connection_although_one_is_idle(
    postgres_url: str, budget: ConnectionBudget
) -> None:
    """A check of a database opens a new connection, because idle connections may be broken."""
    engine = make_engine("acme", postgres_url, budget)
    connector = cast("ServerConnector", cast("Any", engine.pool)._connector)
    engine.connect().close()
    attempts: list[object] = []
    event.listen(engine, "do_connect", lambda *_: attempts.append("connect"))

    connector.probe()

    assert (["connect"], 2) == (attempts, budget.open_count)
    close_engine(engine)


def test_a_server_that_refuses_connections_still_serves_the_open_ones(
    postgres_url: str, budget: ConnectionBudget
) -> None:
    """If a database server rejects new connections, requests use an idle connection or get 503."""
    engine = make_engine("acme", postgres_url, budget)
    engine.connect().close()

    def refuse(*_: object) -> None:
        raise OSError("too many connections")

    event.listen(engine, "do_connect", refuse)
    with engine.connect(), pytest.raises(DatabaseDownError):
        engine.connect()
    with engine.connect() as connection:
        answer = connection.execute(text("SELECT 1")).scalar_one()
    event.remove(engine, "do_connect", refuse)
    close_engine(engine)
    wait_until(lambda: budget.open_count == 0)  # a probe may still be running

    assert 1 == answer


def test_a_connection_is_closed_without_a_file_descriptor_left(
    postgres_server: Postgres, postgres_url: str, budget: ConnectionBudget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A database connection closes completely even if the process has no free file descriptor."""

    def fail(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    engine = make_engine("acme", postgres_url, budget)
    engine.connect().close()
    monkeypatch.setattr(os, "dup", fail)

    close_engine(engine)

    assert 0 == budget.open_count
    wait_until(lambda: not postgres_server.connections(str(make_url(postgres_url).database)))


def test_a_connection_that_dies_in_use_is_a_503(
    app: Flask, postgres_server: Postgres, budget: ConnectionBudget
) -> None:
    """If a database connection dies during a request, that request gets 503; the next succeeds."""
    with app.app_context():
        pid = db.session.execute(text("SELECT pg_backend_pid()")).scalar_one()
        connection = postgres_server.connect()
        connection.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))
        connection.close()
        with pytest.raises(DatabaseDownError) as down:
            db.session.execute(text("SELECT 1"))

    assert (503, 1) == (down.value.code, down.value.retry_after_s)
    assert (200, 1) == (Client(app).get("/rows").status_code, budget.open_count)


@pytest.mark.parametrize(("fresh_s", "answers"), [(0.0, [200, 200]), (60.0, [503, 200])])
def test_an_idle_connection_that_died_is_replaced(  # noqa: PLR0917 - pytest fixtures are parameters
    app: Flask, postgres_server: Postgres, budget: ConnectionBudget, fresh_s: float,
    answers: list[int], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A database restart breaks at most one request, because dead idle connections are replaced."""
    monkeypatch.setattr(server_connector, "FRESH_S", fresh_s)
    name = make_url(app.config["DATABASE_URI"]).database
    with postgres_server.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s",
            (name,),
        )

    statuses = [Client(app).get("/rows").status_code for _ in range(2)]

    assert (answers, 1) == (statuses, budget.open_count)


def test_no_message_shows_the_password(
    postgres_server: Postgres, data_dir: Path, budget: ConnectionBudget,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """If a database is unreachable, the log gives the reason without the password."""
    url = make_url(postgres_server.url("nowhere")).set(password="opensesame")
    app = app_on(url.render_as_string(hide_password=False), data_dir, budget)

    answer = Client(app).get("/rows")
    close_app(app)

    assert 503 == answer.status_code
    assert 'database "nowhere" does not exist' in caplog.records[0].__dict__["reason"]
    assert "opensesame" not in f"{answer.text}{[one.__dict__ for one in caplog.records]}"


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """Stop a server, so that its socket accepts connections but never replies."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.live
@pytest.mark.parametrize("idle", [0, 1])
def test_a_silent_server_costs_one_time_out(
    own_server: Postgres, data_dir: Path, budget: ConnectionBudget, idle: int
) -> None:
    """If a database server does not reply, only one request waits for `connect_timeout`.

    Later requests fail immediately, without using idle connections to the same server.
    """
    app = app_with_table(own_server.new_database(), data_dir, budget)
    engine = database_of(app).engine
    engine.dispose()
    checked_out = [engine.connect() for _ in range(idle)]
    with _stopped(own_server.pid):
        answers = [outcome(Client(app).get("/rows"))]
        for connection in checked_out:
            connection.close()
        answers += [outcome(Client(app).get("/rows")) for _ in range(20)]
    wait_until(lambda: Client(app).get("/rows").status_code == 200)
    close_app(app)
    wait_until(lambda: budget.open_count == 0)

    assert [(503, "1", PROBLEM)] * 21 == answers
