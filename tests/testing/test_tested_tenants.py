"""The apps of the test kit have folders, databases and limits of their own."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

import postgres
from conftest import tenant_text
from shops import first, write_shop_fixture
from tenantry import db
from tenantry.errors import TenantFileError, TenantryError, UnknownTenantError
from tenantry.testing.apps import TestedTenants

__all__ = ["write_shop_fixture"]

COUNTER = """\
from flask import Blueprint, session
counter_bp = Blueprint("counter", __name__)
@counter_bp.get("/count")
def count():
    session["count"] = session.get("count", 0) + 1
    return str(session["count"])
"""

Build = Callable[..., list[Flask]]


@contextmanager
def building(folder: Path, server: str | None = None) -> Iterator[Build]:
    """Yield a function that builds tested apps from the keys of a marker or from tenant files."""
    templates = folder / "templates"
    templates.mkdir()
    with closing(TestedTenants(templates, server)) as tenants:

        def build(*names: str, count: int = 1, **keys: Any) -> list[Flask]:
            given = keys if keys or not names else None
            number = len(tenants._apps)
            return tenants.build(names, given, count=count, data_dir=folder / f"data{number}")

        yield build


@pytest.fixture(name="build")
def _build(tenants_dir: Path, tmp_path: Path) -> Iterator[Build]:
    """Return the function that `building` yields."""
    del tenants_dir
    with building(tmp_path) as build:
        yield build


def _rows(app: Flask) -> int:
    with app.app_context():
        return int(db.session.execute(text("SELECT count(*) FROM goods")).scalar_one())


def _add_row(app: Flask) -> None:
    with app.app_context():
        db.session.execute(text("INSERT INTO goods DEFAULT VALUES"))
        db.session.commit()


def test_each_app_has_a_migrated_database_of_its_own(
    build: Build, write_shop: Callable[..., str]
) -> None:
    """Apps of one tenant, and of two tenants, have the tables of the endpoint and no other rows."""
    name = write_shop(first())
    before = build(BLUEPRINTS=[name])
    _add_row(before[0])

    later = build(BLUEPRINTS=[name], count=2)

    assert [1, 0, 0] == [_rows(app) for app in (*before, *later)]
    assert "0" == later[0].test_client().get("/shop").text.strip()


def test_a_commit_does_not_wait_for_the_disk(build: Build, write_shop: Callable[..., str]) -> None:
    """The SQLite database of a test is not synchronous."""
    (app,) = build(BLUEPRINTS=[write_shop(first())])

    with app.app_context():
        synchronous = db.session.execute(text("PRAGMA synchronous")).scalar()

    assert 0 == synchronous


@pytest.mark.usefixtures("data_dir")
def test_a_tenant_file_never_gives_its_database_to_a_test(
    build: Build, write_tenant: Callable[..., Path], tmp_path: Path
) -> None:
    """A tested app ignores the SQLite file that the tenant file names."""
    own = tmp_path / "own.sqlite3"
    write_tenant("acme", DATABASE_URI=f"sqlite:///{own}", GREETING="hello")

    (app,) = build("acme")
    with app.app_context():
        db.session.execute(text("SELECT 1"))

    assert ("hello", True, False) == (app.config["GREETING"], app.testing, own.exists())


@pytest.mark.usefixtures("data_dir")
def test_a_missing_secret_is_no_problem(build: Build, write_tenant: Callable[..., Path]) -> None:
    """A tenant file whose secrets exist only in production can be tested."""
    write_tenant(
        "acme",
        "from tenantry import secret\nBLUEPRINTS = ['landing']\n"
        "SECRET_KEY = secret('ACME_KEY')\nDATABASE_URI = secret('ACME_DATABASE')\n",
    )

    (app,) = build("acme")

    assert 64 == len(str(app.secret_key))


def test_keys_of_a_marker_replace_keys_of_the_file(
    build: Build, write_tenant: Callable[..., Path]
) -> None:
    """A marker with a name and keys builds the tenant file with the marker's keys."""
    write_tenant("acme", GREETING="hello", APP_NAME="Acme Ltd")

    (app,) = build("acme", GREETING="goodbye")

    assert ("goodbye", "Acme Ltd") == (app.config["GREETING"], app.config["APP_NAME"])


def test_sessions_belong_to_one_tenant(build: Build, write_endpoint: Callable[..., str]) -> None:
    """A test client keeps the session of its tenant, and a test can read and change it."""
    acme, _ = build(BLUEPRINTS=[write_endpoint("counter", COUNTER)], count=2)
    client = acme.test_client()

    client.get("/count")
    with client.session_transaction() as session:
        session["count"] += 10

    assert "12" == client.get("/count").text


def test_a_client_needs_its_key(build: Build) -> None:
    """`CLIENTS` applies to requests of a test client."""
    digest = hashlib.sha256(b"a key for tests").hexdigest()
    (app,) = build(CLIENTS={"shop": f"sha256:{digest}"})
    client = app.test_client()

    answers = [client.get("/"), client.get("/", headers={"X-API-Key": "a key for tests"})]

    assert [401, 201] == [answer.status_code for answer in answers]


def test_each_app_counts_its_own_rate(build: Build) -> None:
    """`RATE_LIMIT` applies, and begins anew with each app."""
    statuses = []
    for _ in range(2):
        (app,) = build(RATE_LIMIT="1/hour")
        statuses += [app.test_client().get("/").status_code for _ in range(2)]

    assert [201, 429, 201, 429] == statuses


def test_an_exception_leaves_the_client(build: Build, write_endpoint: Callable[..., str]) -> None:
    """An exception of a view is raised in the test, so that the test shows its traceback."""
    view = COUNTER.replace('return str(session["count"])', "raise LookupError")
    (app,) = build(BLUEPRINTS=[write_endpoint("counter", view)])

    with pytest.raises(LookupError):
        app.test_client().get("/count")


@pytest.mark.parametrize(
    ("names", "keys", "error", "message"),
    [
        (("initech",), {}, UnknownTenantError, "no tenant named 'initech'"),
        (("acme",), {"SECRET_KEY": "short"}, TenantFileError, "'SECRET_KEY': has 5 characters"),
        ((), {"BLUEPRINT": ["x"]}, TenantFileError, "@pytest.mark.tenant: 'BLUEPRINT': "),
        ((), {"DATABASE_URI": "mysql://h/x"}, TenantryError, "needs the driver"),
        (("acme",), {"count": 2}, TenantryError, "there is only 'acme'"),
    ],
)
def test_a_mistake_is_explained(
    build: Build,
    write_tenant: Callable[..., Path],
    *,
    names: tuple[str, ...],
    keys: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    """A marker that cannot be built raises an error that says what to do."""
    write_tenant("acme")

    with pytest.raises(error) as raised:
        build(*names, **keys)

    assert message in str(raised.value)


def test_postgresql_needs_a_server_for_tests(build: Build) -> None:
    """Without a server for tests, a tenant with PostgreSQL is an error that names the option."""
    with pytest.raises(TenantryError, match="pytest --tenantry-postgres postgresql"):
        build(DATABASE_URI="postgresql+psycopg://db.example.org/acme")


@pytest.mark.usefixtures("tenants_dir")
def test_postgresql_databases_are_copied_and_dropped(
    tmp_path: Path, postgres_server: postgres.Postgres, write_shop: Callable[..., str]
) -> None:
    """On a server for tests, each app has a migrated database, and none remains."""
    keys = {"BLUEPRINTS": [write_shop(first())], "DATABASE_URI": "postgresql+psycopg://db/acme"}

    with building(tmp_path, postgres_server.url()) as build:
        (one,) = build(**keys)
        _add_row(one)
        (other,) = build(**keys)
        found = [_rows(one), _rows(other)]

    with closing(postgres_server.connect()) as connection:
        names = connection.execute(
            "SELECT datname FROM pg_database WHERE datname LIKE 'tenantry_test_%'"
        ).fetchall()
    assert ([1, 0], []) == (found, names)


def test_the_text_of_a_tenant_file_can_be_wrong(
    build: Build, write_tenant: Callable[..., Path]
) -> None:
    """A value that is not plain data is reported as by `tenantry check`."""
    write_tenant("acme", tenant_text() + "VALUE = object()\n")

    with pytest.raises(TenantFileError, match="'VALUE'"):
        build("acme")


def test_a_marker_can_name_an_existing_application(build: Build, tmp_path: Path) -> None:
    """A marker with `APP` tests an existing application, without a default endpoint."""
    (tmp_path / "shop.py").write_text("from flask import Flask\napp = Flask(__name__)\n")

    (app,) = build(APP="shop", APP_DIR=str(tmp_path))

    assert ["shop@acme"] == [app.name, *app.blueprints]
