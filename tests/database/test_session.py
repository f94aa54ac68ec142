"""An app's own database: lazy, confined to its app, closed with it; what it answers when down."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from flask import Flask
from flask_restful import Api, Resource
from sqlalchemy import event, make_url, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session
from werkzeug.test import Client, TestResponse

import postgres
from conftest import KEY
from postgres import Postgres
from servers import wait_until
from tenantry.app.factory import close_app, create_app
from tenantry.database import frozen_server as silence
from tenantry.database import guards
from tenantry.database.budget import ConnectionBudget
from tenantry.database.engine import close_engine, make_engine
from tenantry.database.guards import ServerGuard
from tenantry.database.session import DatabaseDownError, db


@pytest.fixture(name="budget")
def _budget() -> ConnectionBudget:
    return ConnectionBudget(4, wait_s=0.1)


class Counter(Resource):  # type: ignore[misc]
    """Counts what is in the tenant's table."""

    def get(self) -> int:
        """Return how many rows there are."""
        return int(db.session.execute(text("SELECT count(*) FROM t")).scalar_one())

    def post(self) -> int:
        """Add a row."""
        db.session.execute(text("INSERT INTO t VALUES (1)"))
        db.session.commit()
        return 1


def counting(app: Flask) -> Flask:
    """Give the app a table and two ways to its rows: a resource, and plain views."""
    Api(app).add_resource(Counter, "/restful")
    app.add_url_rule("/rows", "get", lambda: str(Counter().get()))
    app.add_url_rule("/rows", "post", lambda: str(Counter().post()), methods=["POST"])
    with app.app_context():
        db.session.execute(text("CREATE TABLE IF NOT EXISTS t (x INTEGER)"))
        db.session.commit()
    return app


@pytest.fixture(name="url", params=["sqlite", "postgresql"])
def _url(request: pytest.FixtureRequest, postgres_url: str, tmp_path: Path) -> str:
    return postgres_url if request.param == "postgresql" else f"sqlite:///{tmp_path}/acme.sqlite3"


@pytest.fixture(name="app")
def _app(url: str, data_dir: Path, budget: ConnectionBudget) -> Iterator[Flask]:
    """Return acme's app, on SQLite and on PostgreSQL; closed after the test."""
    app = _app_on(url, data_dir, budget)
    yield app
    close_app(app)


def _app_on(url: str, data_dir: Path, budget: ConnectionBudget) -> Flask:
    config = {"APP_NAME": "acme", "SECRET_KEY": KEY, "BLUEPRINTS": ["landing"]}
    return create_app({**config, "DATABASE_URI": url}, data_dir=data_dir, budget=budget)


def _said(answer: TestResponse) -> tuple[int, str | None, str | None]:
    return answer.status_code, answer.headers.get("Retry-After"), answer.mimetype


PROBLEM = "application/problem+json"


# -- engine and session ---------------------------------------------------------------------------


@pytest.mark.live
def test_nothing_of_sqlalchemy_is_imported_before_it_is_used() -> None:
    """A host whose tenants have no tables starts without it."""
    code = "import tenantry.app.factory, sys; print('sqlalchemy' in sys.modules)"

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "False\n" == run.stdout


def test_an_unused_database_connects_to_nothing(data_dir: Path, budget: ConnectionBudget) -> None:
    """A tenant whose database does not exist serves what needs none."""
    app = _app_on(f"sqlite:///{data_dir}/nowhere/acme.db", data_dir, budget)

    status = Client(app).get("/").status_code
    close_app(app)

    assert (201, 0) == (status, budget.open)


def test_a_session_ends_with_its_context(app: Flask, budget: ConnectionBudget) -> None:
    """One session per context; whatever was left undone is rolled back, and its connection idle."""
    counting(app)
    with app.app_context():
        first = db.session
        assert first is db.session
        first.execute(text("INSERT INTO t VALUES (1)"))
    with app.app_context():
        assert first is not db.session
        found = db.session.execute(text("SELECT count(*) FROM t")).scalar_one()

    assert (0, 1) == (found, budget.idle)


def test_a_failing_request_gives_its_connection_back(app: Flask, budget: ConnectionBudget) -> None:
    """Whatever a view does, the connection is idle when its context ends."""

    @app.get("/boom")
    def boom() -> str:
        db.session.execute(text("SELECT 1"))
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        Client(app).get("/boom")

    assert (1, 1) == (budget.open, budget.idle)


def test_a_closed_database_is_not_used(app: Flask, budget: ConnectionBudget) -> None:
    """Its connections go with its app; who kept it is told."""
    counting(app)
    database = app.extensions["tenantry.database"]
    close_app(app)

    with pytest.raises(RuntimeError, match="the database of tenant 'acme' is closed"):
        _ = database.engine
    assert 0 == budget.open


def test_sqlite_is_set_up_for_many_threads(data_dir: Path, budget: ConnectionBudget) -> None:
    """WAL, foreign keys on, and writers wait for each other."""
    app = _app_on(f"sqlite:///{data_dir}/acme/acme.sqlite3", data_dir, budget)
    asked = ("journal_mode", "foreign_keys", "busy_timeout")
    with app.app_context():
        found = [db.session.execute(text(f"PRAGMA {name}")).scalar_one() for name in asked]
    close_app(app)

    assert ["wal", 1, 5000] == found


def test_a_database_in_memory_is_kept_and_not_counted(
    data_dir: Path, budget: ConnectionBudget
) -> None:
    """It has one connection, which the budget never closes: what is in it would be lost."""
    app = counting(_app_on("sqlite://", data_dir, budget))
    client = Client(app)

    texts = [client.post("/rows").text, client.get("/restful").text.strip()]
    opened = budget.open
    close_app(app)

    assert (["1", "1"], 0) == (texts, opened)


def test_connections_of_all_tenants_in_use_are_a_503(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """The request is refused, and the log says who holds what."""
    counting(app)
    engine = app.extensions["tenantry.database"].engine
    held = [engine.connect() for _ in range(4)]

    answer = Client(app).get("/restful")
    for connection in held:
        connection.close()

    assert (503, "1", PROBLEM) == _said(answer)
    assert "acme 4 in use, 0 idle" in caplog.records[-1].__dict__["reason"]


# -- a server that is down ------------------------------------------------------------------------


@pytest.fixture(name="own_server", scope="module")
def _own_server() -> Iterator[Postgres]:
    """Return a PostgreSQL server that a test may stop, if it starts it again."""
    with postgres.running() as server:
        yield server


def test_a_database_that_is_down_is_a_503_until_it_is_back(
    own_server: Postgres, data_dir: Path, budget: ConnectionBudget, caplog: pytest.LogCaptureFixture
) -> None:
    """Views and resources answer 503 at once while it is down, and serve again when it is back."""
    app = counting(_app_on(own_server.new_database(), data_dir, budget))
    client = Client(app)
    own_server.stop()

    down = [_said(client.get(path)) for path in ("/rows", "/restful", "/rows")]
    own_server.start_again()
    wait_until(lambda: client.get("/rows").status_code == 200)
    events = [
        record.getMessage()
        for record in caplog.records
        if record.name == "tenantry.database.guards"
    ]
    close_app(app)
    wait_until(lambda: budget.open == 0)

    assert [(503, "1", PROBLEM)] * 3 == down
    assert ["database.down", "database.back"] == events


def test_a_probe_that_cannot_start_is_followed_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a thread left the database is refused once more, and not for ever."""

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    guard = ServerGuard("acme")
    guard.probe = lambda: guard.open(object)
    with pytest.raises(DatabaseDownError):
        guard.open(lambda: 1 / 0)
    guard._breaker._retry_at = 0.0
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(DatabaseDownError):
            guard.check()

    with pytest.raises(DatabaseDownError):
        guard.check()
    wait_until(lambda: guard._breaker.pause_s is None)

    guard.check()


def test_a_probe_opens_a_connection_though_one_is_idle(
    postgres_url: str, budget: ConnectionBudget
) -> None:
    """An old connection that still works does not say whether a new one can be opened."""
    engine = make_engine("acme", postgres_url, budget)
    guard = cast("ServerGuard", cast("Any", engine.pool)._guard)
    engine.connect().close()
    tried: list[object] = []
    event.listen(engine, "do_connect", lambda *_: tried.append("connect"))

    guard.probe()

    assert (["connect"], 2) == (tried, budget.open)
    close_engine(engine)


def test_without_a_file_descriptor_left_a_connection_is_closed_all_the_same(
    postgres_server: Postgres, postgres_url: str, budget: ConnectionBudget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Waiting for the end of its server process takes one more; then it is not waited for."""

    def fail(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    engine = make_engine("acme", postgres_url, budget)
    engine.connect().close()
    monkeypatch.setattr(os, "dup", fail)

    close_engine(engine)

    assert 0 == budget.open
    wait_until(lambda: not postgres_server.connections(str(make_url(postgres_url).database)))


def test_a_connection_that_dies_in_use_is_a_503(
    app: Flask, postgres_server: Postgres, budget: ConnectionBudget
) -> None:
    """What the server does to a connection is not the endpoint's error, and the next one works."""
    if app.extensions["tenantry.database"].engine.dialect.name != "postgresql":
        pytest.skip("a file has no server")
    counting(app)
    with app.app_context():
        pid = db.session.execute(text("SELECT pg_backend_pid()")).scalar_one()
        connection = postgres_server.connect()
        connection.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))
        connection.close()
        with pytest.raises(DatabaseDownError) as down:
            db.session.execute(text("SELECT 1"))

    assert (503, 1) == (down.value.code, down.value.retry_after_s)
    assert (200, 1) == (Client(app).get("/rows").status_code, budget.open)


@pytest.mark.parametrize(("fresh_s", "answers"), [(0.0, [200, 200]), (60.0, [503, 200])])
def test_an_idle_connection_that_died_is_replaced(  # noqa: PLR0917 - fixtures and cases
    app: Flask, postgres_server: Postgres, budget: ConnectionBudget, fresh_s: float,
    answers: list[int], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A restart between two requests costs no request; of a connection used just now, one."""
    if app.extensions["tenantry.database"].engine.dialect.name != "postgresql":
        pytest.skip("a file has no server")
    monkeypatch.setattr(guards, "FRESH_S", fresh_s)
    counting(app)
    name = make_url(app.config["DATABASE_URI"]).database
    with postgres_server.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s",
            (name,),
        )

    found = [Client(app).get("/rows").status_code for _ in range(2)]

    assert (answers, 1) == (found, budget.open)


def test_no_message_shows_the_password(
    postgres_server: Postgres, data_dir: Path, budget: ConnectionBudget,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The log says why a database cannot be reached, and nothing of the password."""
    url = make_url(postgres_server.url("nowhere")).set(password="opensesame")
    app = _app_on(url.render_as_string(hide_password=False), data_dir, budget)
    app.add_url_rule("/rows", view_func=lambda: str(Counter().get()))

    answer = Client(app).get("/rows")
    close_app(app)

    assert 503 == answer.status_code
    assert 'database "nowhere" does not exist' in caplog.records[0].__dict__["reason"]
    assert "opensesame" not in f"{answer.text}{[one.__dict__ for one in caplog.records]}"


@contextlib.contextmanager
def _frozen(server: Postgres) -> Iterator[None]:
    """Stop every process of a server, as `docker pause` does, until the end of the block."""
    with contextlib.closing(server.connect()) as connection:
        rows = connection.execute("SELECT pid FROM pg_stat_activity").fetchall()
    pids = [server.pid, *(int(str(pid)) for (pid,) in rows)]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # that which was asked
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.mark.live
def test_a_frozen_server_lets_go_of_who_waits_for_it(
    own_server: Postgres, data_dir: Path, budget: ConnectionBudget, caplog: pytest.LogCaptureFixture
) -> None:
    """Idle connections and one in the middle of a query: all are given up, none for ever."""
    app = counting(_app_on(own_server.new_database(), data_dir, budget))
    engine = app.extensions["tenantry.database"].engine
    for connection in [engine.connect() for _ in range(3)]:
        connection.close()
    with ThreadPoolExecutor() as threads, engine.connect() as used:
        used.execute(text("SELECT 1"))
        with _frozen(own_server):
            waiting = threads.submit(used.execute, text("SELECT 1"))
            answers = [_said(Client(app).get("/rows")) for _ in range(20)]
            error = waiting.exception()
    wait_until(lambda: Client(app).get("/rows").status_code == 200)
    reasons = [
        one.__dict__.get("reason")
        for one in caplog.records
        if one.name == "tenantry.database.guards"
    ]
    close_app(app)
    wait_until(lambda: budget.open == 0)

    assert ([(503, "1", PROBLEM)] * 20, DatabaseDownError) == (answers, type(error))
    assert ["it answers neither a query nor a new connection", None] == reasons


def test_a_long_query_is_left_alone(
    app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its server says that it is there, whatever else it is at."""
    if app.extensions["tenantry.database"].engine.dialect.name != "postgresql":
        pytest.skip("a file has no server")
    answers: list[bool] = []
    ask = silence.is_answering
    monkeypatch.setattr(silence, "ASK_AFTER_S", 0.0)
    monkeypatch.setattr(silence, "is_answering", lambda one: answers.append(ask(one)) or answers[0])

    with app.app_context():
        db.session.execute(text("SELECT pg_sleep(0.35)"))

    assert ([True], []) == (answers, caplog.records)


def test_a_session_that_ends_asks_its_server_once(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy rolls back twice; a failed statement is rolled back once, too."""
    if app.extensions["tenantry.database"].engine.dialect.name != "postgresql":
        pytest.skip("a file has no server")
    waits: list[str] = []
    wait = silence.WatchedConnection.wait

    def counted(connection: silence.WatchedConnection, gen: Any) -> Any:
        waits.append(connection.info.transaction_status.name)
        return wait(connection, gen)

    with app.app_context():
        db.session.execute(text("SELECT 1"))
        monkeypatch.setattr(silence.WatchedConnection, "wait", counted)
    of_good, waits[:] = waits[:], []
    with pytest.raises(ProgrammingError), app.app_context():
        db.session.execute(text("SELECT nothing"))

    assert (["INTRANS"], ["IDLE", "INERROR"]) == (of_good, waits)


def test_what_a_pipeline_has_begun_is_rolled_back(app: Flask) -> None:
    """A pipeline's results tell nothing of its transaction until it is synchronized."""
    engine = app.extensions["tenantry.database"].engine
    if engine.dialect.name != "postgresql":
        pytest.skip("a file has no server")
    with engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert isinstance(raw, silence.WatchedConnection)
        raw.autocommit = True
        with raw.pipeline():
            raw.execute("BEGIN")
            raw.execute("SELECT 1").fetchone()
            engine.dialect.do_rollback(raw)
            left = raw.info.transaction_status.name
        raw.autocommit = False

    assert "IDLE" == left


def test_who_says_nothing_is_silent_and_who_refuses_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever accepts and waits may be frozen; a closed port is a word."""
    monkeypatch.setattr(silence, "ANSWER_S", 0.05)
    found = []
    server = socket.create_server(("127.0.0.1", 0))
    with socket.create_connection(server.getsockname()) as ours:
        found.append(silence.is_answering(ours.fileno()))
        server.close()
        found.append(silence.is_answering(ours.fileno()))

    assert [False, True] == found


@pytest.mark.live
def test_a_silent_server_costs_one_time_out(
    own_server: Postgres, data_dir: Path, budget: ConnectionBudget
) -> None:
    """A server that accepts and says nothing: one request waits, the next ones do not."""
    app = counting(_app_on(own_server.new_database(), data_dir, budget))
    app.extensions["tenantry.database"].engine.dispose()
    os.kill(own_server.pid, signal.SIGSTOP)
    try:
        answers = [_said(Client(app).get("/rows")) for _ in range(20)]
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
    wait_until(lambda: Client(app).get("/rows").status_code == 200)
    close_app(app)
    wait_until(lambda: budget.open == 0)

    assert [(503, "1", PROBLEM)] * 20 == answers


# -- a file that is not what it was ---------------------------------------------------------------


@pytest.fixture(name="file")
def _file(data_dir: Path) -> Path:
    return data_dir / "acme/acme.sqlite3"


@pytest.fixture(name="file_app")
def _file_app(file: Path, data_dir: Path, budget: ConnectionBudget) -> Iterator[Flask]:
    """Return acme's app on a SQLite file with one row; closed after the test."""
    app = counting(_app_on(f"sqlite:///{file}", data_dir, budget))
    Client(app).post("/rows")
    yield app
    close_app(app)


def _delete(file: Path) -> None:
    for path in file.parent.glob(f"{file.name}*"):
        if path.suffix != ".made":
            path.unlink()


def test_a_deleted_file_is_not_made_again(
    file_app: Flask, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its data are gone: 503, and one line of the log says so; no empty file takes its place."""
    _delete(file)

    answers = [
        _said(Client(file_app).open(path="/rows", method=how)) for how in ("GET", "POST", "GET")
    ]

    assert [(503, "10", PROBLEM)] * 3 == answers
    assert not file.exists()
    assert [
        f"{file} is gone; restore it, or delete acme.sqlite3.made too to begin with an empty one"
    ] == [record.__dict__["reason"] for record in caplog.records]


def test_nor_by_another_process(
    file_app: Flask, file: Path, data_dir: Path, budget: ConnectionBudget
) -> None:
    """A new instance, of a new process too, knows that there was one."""
    _delete(file)
    app = _app_on(f"sqlite:///{file}", data_dir, budget)
    with app.app_context(), pytest.raises(DatabaseDownError):
        db.session.execute(text("SELECT 1"))
    close_app(app)

    assert (503, False) == (Client(file_app).get("/rows").status_code, file.exists())


def test_a_file_that_cannot_be_looked_at_is_a_503(data_dir: Path, budget: ConnectionBudget) -> None:
    """Whatever the system says to its path, it is the database's trouble, not the endpoint's."""
    app = _app_on(f"sqlite:///{data_dir}/{'x' * 300}.sqlite3", data_dir, budget)
    app.add_url_rule("/rows", view_func=lambda: str(Counter().get()))

    answer = Client(app).get("/rows")
    close_app(app)

    assert (503, "1", PROBLEM) == _said(answer)


def test_a_file_that_is_no_database_is_a_503(
    file: Path, data_dir: Path, budget: ConnectionBudget
) -> None:
    """What cannot be set up is closed: no other tenant waits for its permit, also after many."""
    file.parent.mkdir(parents=True)
    file.write_bytes(b"garbage" * 1000)
    app = _app_on(f"sqlite:///{file}", data_dir, budget)
    app.add_url_rule("/rows", view_func=lambda: str(Counter().get()))

    answers = [_said(Client(app).get("/rows")) for _ in range(budget.limit + 1)]
    opened = budget.open
    close_app(app)

    assert ([(503, "1", PROBLEM)] * 5, 0) == (answers, opened)


def test_who_deletes_the_marker_too_begins_anew(file_app: Flask, file: Path) -> None:
    """Then an empty file is what was asked for."""
    _delete(file)
    Client(file_app).get("/rows")
    file.with_name("acme.sqlite3.made").unlink()

    counting_again = Client(file_app)
    with file_app.app_context():
        db.session.execute(text("CREATE TABLE t (x INTEGER)"))
        db.session.commit()

    assert "0" == counting_again.get("/rows").text


def test_a_restored_file_is_served(file_app: Flask, file: Path) -> None:
    """Another file at the same path is the database from then on: no connection to the old one."""
    with file_app.app_context():
        db.session.execute(text(f"VACUUM INTO '{file}.copy'"))
    Client(file_app).post("/rows")
    file.with_name(f"{file.name}.copy").rename(file)
    for name in ("acme.sqlite3-wal", "acme.sqlite3-shm"):
        file.with_name(name).unlink(missing_ok=True)

    assert "1" == Client(file_app).get("/rows").text


@pytest.mark.parametrize(
    ("pragma", "status"), [("max_page_count = 1", 507), ("query_only = ON", 503)]
)
def test_what_cannot_be_written_can_be_read(file_app: Flask, pragma: str, status: int) -> None:
    """A full disk is a 507, a file that is read only a 503; reads go on."""

    def spoil(connection: Session) -> None:
        connection.execute(text(f"PRAGMA {pragma}"))

    with file_app.app_context():
        spoil(db.session)
    client = Client(file_app)
    with file_app.app_context():
        big = text("INSERT INTO t SELECT zeroblob(100000)")
        with pytest.raises(DatabaseDownError) as refused:
            db.session.execute(big)

    assert (status, "1") == (refused.value.code, client.get("/rows").text)


def test_an_endpoints_own_listeners_hear_queries_that_are_timed(
    url: str, budget: ConnectionBudget
) -> None:
    """Whatever they listen for; and what the engine asks by itself is not noted."""
    noted: list[int] = []
    heard: list[str] = []
    engine = make_engine("acme", url, budget, note_query=noted.append)
    for name in ("before_cursor_execute", "do_execute"):
        event.listen(engine, name, lambda *_, name=name: heard.append(name))
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    close_engine(engine)

    assert (1, ["before_cursor_execute", "do_execute"]) == (len(noted), heard[-2:])
