"""A tenant file can set engine and driver options in `DATABASE_OPTIONS`."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text
from werkzeug.test import Client

from conftest import KEY
from tenantry.database.budget import ConnectionBudget
from tenantry.database.engine import close_engine, make_engine
from tenantry.database.options import command_options, driver_options, engine_options, parse_options
from tenantry.database.probe import probe_database
from tenantry.database.url import parse_database_url
from tenantry.errors import TenantFileError
from tenantry.host import Host
from tenantry.migrations.version_table import read_versions
from tenantry.tenants.validation import parse_tenant

POSTGRES = "postgresql+psycopg://acme@db/acme"
SQLITE = "sqlite:////tmp/acme.sqlite3"


def problem(url: str, options: object) -> str:
    """Return the error text for a tenant's options."""
    keys = {"SECRET_KEY": KEY, "BLUEPRINTS": ["landing"], "DATABASE_URI": url}
    with pytest.raises(TenantFileError) as raised:
        parse_tenant("acme", keys | {"DATABASE_OPTIONS": options}, data_dir=Path("/tmp"))
    return str(raised.value)


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        (POSTGRES, ["prepare_threshold"], "expected a dict"),
        (POSTGRES, {7: None}, "found the name 7"),
        (POSTGRES, {"pool_size": 50}, "['pool_size']: all tenants of a process share one pool"),
        (POSTGRES, {"pool_recycle": 50}, "['pool_recycle']: all tenants of a process share one"),
        (POSTGRES, {"poolclass": "NullPool"}, "['poolclass']: all tenants of a process share one"),
        (POSTGRES, {"max_overflow": 5}, "['max_overflow']: all tenants of a process share one"),
        (POSTGRES, {"creator": "x"}, "['creator']: Tenantry sets this option"),
        (POSTGRES, {"dbname": "globex"}, "['dbname']: write this in 'DATABASE_URI'"),
        (POSTGRES, {"connect_args": {"host": "x"}}, "['host']: write this in 'DATABASE_URI'"),
        (POSTGRES, {"connect_args": 7}, "['connect_args']: expected a dict"),
        (POSTGRES, {"options": "-c search_path=globex"}, "write the search_path in 'DATABASE_URI'"),
        (POSTGRES, {"row_factory": "x"}, "['row_factory']: SQLAlchemy sets this option"),
        (POSTGRES, {"prepare_treshold": None}, "did you mean 'prepare_threshold'?"),
        (POSTGRES, {"isolation": "SERIALIZABLE"}, "unknown option of the driver"),
        (POSTGRES, {"sslmode": b"require"}, "['sslmode']: expected None, True, False, a number"),
        (POSTGRES, {"execution_options": "wrong"}, "SQLAlchemy rejects an option"),
        (POSTGRES, {"isolation_level": "STRICT"}, "['isolation_level']: found 'STRICT'; expected"),
        (SQLITE, {"prepare_threshold": None}, "['prepare_threshold']: unknown option"),
        (SQLITE, {"uri": True}, "['uri']: write this in 'DATABASE_URI'"),
        (SQLITE, {"check_same_thread": True}, "['check_same_thread']: unknown option"),
    ],
)
def test_an_option_that_cannot_work_is_rejected(url: str, options: object, expected: str) -> None:
    """An option is rejected if it is unknown, or if the URL or Tenantry determines it."""
    found = problem(url, options)

    assert "'DATABASE_OPTIONS'" in found
    assert expected in found


def test_an_option_goes_to_whatever_accepts_it() -> None:
    """Options of `create_engine` go to the engine, and all other options go to the driver."""
    given = {"echo": False, "isolation_level": "SERIALIZABLE", "sslmode": "require"}
    given |= {"prepare_threshold": None, "connect_args": {"sslrootcert": Path("/ca.pem")}}
    with pytest.raises(ValueError, match="connect_args"):
        parse_options(POSTGRES, given)
    given["connect_args"] = {"sslrootcert": "/ca.pem"}
    options, url = parse_options(POSTGRES, given), make_url(POSTGRES)

    assert {"echo": False, "isolation_level": "SERIALIZABLE"} == engine_options(url, options)
    driver = {"sslmode": "require", "prepare_threshold": None, "sslrootcert": "/ca.pem"}
    assert driver == driver_options(url, options)
    assert {"client_encoding": "utf8"} | driver == command_options(url, options)


def test_the_options_of_a_url_are_kept() -> None:
    """The option `options` is appended to the `options` of the URL, which can name the schema."""
    url = make_url(f"{POSTGRES}?options=-csearch_path%3Dacme")
    options = parse_options(str(url), {"options": "-c statement_timeout=5000"})

    assert {"options": "-csearch_path=acme -c statement_timeout=5000"} == driver_options(
        url, options
    )


@pytest.mark.parametrize("name", ["prepare_threshold", "autocommit", "row_factory"])
def test_a_url_cannot_express_an_option_of_the_driver(name: str) -> None:
    """A URL with `?prepare_threshold=0`, which psycopg reads as text, is rejected with a remedy."""
    with pytest.raises(ValueError, match=f"'{name}'.*write DATABASE_OPTIONS"):
        parse_database_url(f"{POSTGRES}?{name}=0")


def test_the_server_gets_the_options(postgres_url: str, budget: ConnectionBudget) -> None:
    """The connections of the app and of commands use the options of the tenant."""
    options = {
        "prepare_threshold": 2,
        "application_name": "shop",
        "isolation_level": "SERIALIZABLE",
    }
    options = parse_options(postgres_url, options)
    engine = make_engine("acme", postgres_url, budget, options=options)
    with engine.connect() as connection:
        threshold = connection.connection.driver_connection.prepare_threshold  # type: ignore[union-attr]
        names = "current_setting('application_name'), current_setting('transaction_isolation')"
        row = tuple(connection.execute(text(f"SELECT {names}")).one())
    close_engine(engine)

    assert (2, ("shop", "serializable")) == (threshold, row)
    with pytest.raises(Exception, match="sslmode"):
        read_versions(make_url(postgres_url), {"sslmode": "nonsense"})
    problem = str(probe_database("acme", postgres_url, {"sslmode": "nonsense"}).problem)
    assert "nonsense" in problem.lower()


@pytest.fixture(name="budget")
def _budget() -> ConnectionBudget:
    return ConnectionBudget(4, wait_s=5)


def test_sqlite_gets_the_options(
    write_tenant: Callable[..., Path], host: Host, client: Client
) -> None:
    """A SQLite tenant can set the `timeout` of its driver."""
    write_tenant("acme", DATABASE_OPTIONS={"timeout": 1.5})
    host.load()

    assert 201 == client.get("/acme/").status_code
    url = make_url(SQLITE)
    assert {"timeout": 1.5} == driver_options(url, parse_options(SQLITE, {"timeout": 1.5}))


def test_most_tenants_have_no_options() -> None:
    """An empty `DATABASE_OPTIONS` changes nothing, and does not import SQLAlchemy."""
    nothing: dict[str, Any] = {}
    url = make_url(SQLITE)

    assert (nothing, nothing, nothing) == (
        parse_options("not a url", {}), engine_options(url, {}), driver_options(url, {})
    )  # fmt: skip
    assert sqlite3.threadsafety > 0
