"""A tenant's database engine has safe driver options, and measures queries."""

from pathlib import Path

import pytest
from sqlalchemy import event, make_url, text
from sqlalchemy.exc import OperationalError, ProgrammingError
from werkzeug.test import Client

from database_apps import app_on, app_with_table
from tenantry.app.factory import close_app
from tenantry.database.budget import ConnectionBudget
from tenantry.database.engine import (
    SERVER_OPTIONS,
    close_engine,
    connect_arguments,
    make_engine,
)
from tenantry.database.session import db


@pytest.fixture(name="budget")
def _budget() -> ConnectionBudget:
    return ConnectionBudget(4, wait_s=0.1)


@pytest.fixture(name="url", params=["sqlite", "postgresql"])
def _url(request: pytest.FixtureRequest, postgres_url: str, tmp_path: Path) -> str:
    return postgres_url if request.param == "postgresql" else f"sqlite:///{tmp_path}/acme.sqlite3"


def test_the_urls_own_options_win() -> None:
    """A driver option in `DATABASE_URI` replaces one default, and keeps all other defaults."""
    url = make_url("postgresql+psycopg://a@h/x?connect_timeout=5&application_name=shop")

    options = connect_arguments("acme", url)

    expected = {key: SERVER_OPTIONS[key] for key in SERVER_OPTIONS if key != "connect_timeout"}
    assert expected == options


def test_the_server_gets_the_options(postgres_url: str, budget: ConnectionBudget) -> None:
    """PostgreSQL receives all connection options, and sees the name of the connected tenant."""
    engine = make_engine("acme", postgres_url, budget)
    with engine.connect() as connection:
        parameters = connection.connection.dbapi_connection.info.get_parameters()
        name = connection.execute(text("SHOW application_name")).scalar_one()
    close_engine(engine)

    expected = {key: str(value) for key, value in SERVER_OPTIONS.items()}
    assert expected.items() <= parameters.items()
    assert "tenantry acme" == name


def test_a_tenant_may_bound_its_statements(postgres_url: str, budget: ConnectionBudget) -> None:
    """A `statement_timeout` in `DATABASE_URI` ends a long query, and later queries succeed."""
    url = f"{postgres_url}?options=-cstatement_timeout%3D50"
    engine = make_engine("acme", url, budget)
    with engine.connect() as connection, pytest.raises(OperationalError, match="statement timeout"):
        connection.execute(text("SELECT pg_sleep(60)"))
    with engine.connect() as connection:
        answer = connection.execute(text("SELECT 1")).scalar_one()
    close_engine(engine)

    assert (1, 0) == (answer, budget.open_count)


def test_sqlite_is_set_up_for_many_threads(data_dir: Path, budget: ConnectionBudget) -> None:
    """A tenant's SQLite database uses WAL mode, checks foreign keys, and lets writers wait."""
    app = app_on(f"sqlite:///{data_dir}/acme/acme.sqlite3", data_dir, budget)
    names = ("journal_mode", "foreign_keys", "busy_timeout")
    with app.app_context():
        values = [db.session.execute(text(f"PRAGMA {name}")).scalar_one() for name in names]
    close_app(app)

    assert ["wal", 1, 5000] == values


def test_an_in_memory_database_keeps_its_data(data_dir: Path, budget: ConnectionBudget) -> None:
    """An in-memory database keeps its data, and its connection does not count toward the budget."""
    app = app_with_table("sqlite://", data_dir, budget)
    client = Client(app)

    texts = [client.post("/rows").text, client.get("/restful").text.strip()]
    open_count = budget.open_count
    close_app(app)

    assert (["1", "1"], 0) == (texts, open_count)


def test_each_query_is_timed(url: str, budget: ConnectionBudget) -> None:
    """The engine times every query, including failed ones, but not its own setup queries."""
    times_ns: list[int] = []
    engine = make_engine("acme", url, budget, times_ns.append)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    with engine.connect() as connection, pytest.raises((OperationalError, ProgrammingError)):
        connection.execute(text("SELECT nothing FROM nowhere"))
    close_engine(engine)

    assert [True, True] == [time_ns > 0 for time_ns in times_ns]


def test_an_endpoint_may_listen_to_queries_that_are_timed(
    url: str, budget: ConnectionBudget
) -> None:
    """An endpoint can listen to query events without replacing the engine's own listeners."""
    times_ns: list[int] = []
    heard: list[str] = []
    engine = make_engine("acme", url, budget, times_ns.append)
    for name in ("before_cursor_execute", "do_execute"):
        event.listen(engine, name, lambda *_, name=name: heard.append(name))
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    close_engine(engine)

    assert (1, ["before_cursor_execute", "do_execute"]) == (len(times_ns), heard[-2:])
