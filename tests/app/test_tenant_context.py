"""`tenantry.tenant` pushes an app context of a tenant, and `current_tenant` names the tenant."""

import importlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from flask import Flask, current_app
from sqlalchemy import text
from sqlalchemy.exc import NoSuchColumnError

import tenantry
from conftest import tenant_text
from tenantry import current_tenant, db
from tenantry.app.tenant_context import context_apps
from tenantry.errors import EndpointError, TenantFileError, TenantryError, UnknownTenantError
from tenantry.host import Host

WriteTenant = Callable[..., Path]

COUNTING = """\
from flask import Blueprint
from threading import get_ident
counting_bp = Blueprint("counting", __name__)
"""


@pytest.fixture(autouse=True)
def _closed_apps() -> Iterator[None]:
    """Close the apps that `tenantry.tenant` has built."""
    yield
    context_apps(os.getpid()).close()


@pytest.mark.usefixtures("acme")
def test_the_block_has_the_context_of_the_tenant(data_dir: Path) -> None:
    """In the block, `current_app` is the tenant's app, and `current_tenant` names the tenant."""
    with tenantry.tenant("acme") as app:
        found = current_tenant.name, current_tenant.app_name, current_tenant.data_dir
        is_current = current_app._get_current_object() is app  # type: ignore[attr-defined]

    assert (("acme", "Acme Ltd", data_dir / "acme"), True) == (found, is_current)


@pytest.mark.parametrize("name", ["name", "app_name", "data_dir"])
def test_outside_of_a_context_there_is_no_tenant(name: str) -> None:
    """Without an app context, `current_tenant` raises an error that says where to use it."""
    with pytest.raises(RuntimeError, match=r'in a block: with tenantry.tenant\("NAME"\)'):
        getattr(current_tenant, name)


def test_an_app_of_another_origin_has_no_tenant() -> None:
    """In an app that Tenantry has not built, `current_tenant` raises an error that says so."""
    with (
        Flask("shop").app_context(),
        pytest.raises(RuntimeError, match="'shop', which Tenantry has not built, or has closed"),
    ):
        _ = current_tenant.data_dir


@pytest.mark.usefixtures("acme")
def test_one_content_is_built_once() -> None:
    """Eight threads that use a tenant at the same time get the same app."""
    begin = threading.Barrier(8)

    def use(_: int) -> Flask:
        begin.wait()
        with tenantry.tenant("acme") as app:
            return app

    with ThreadPoolExecutor(8) as pool:
        apps = list(pool.map(use, range(8)))

    assert 1 == len(set(map(id, apps)))


def test_nested_blocks_return_to_the_outer_tenant(
    write_tenant: WriteTenant, data_dir: Path
) -> None:
    """A block inside another block has its own tenant and its own database session."""
    del data_dir
    write_tenant("acme")
    write_tenant("globex")
    names = []

    with tenantry.tenant("acme"):
        outer = db.session
        with tenantry.tenant("globex"):
            names += [current_tenant.name, db.session is outer]
        names += [current_tenant.name, db.session is outer]

    assert ["globex", False, "acme", True] == names


def test_a_changed_file_is_built_again(write_tenant: WriteTenant, data_dir: Path) -> None:
    """The next use sees a change. The former app stays open until its last use ends."""
    del data_dir
    write_tenant("acme", GREETING="old")

    with tenantry.tenant("acme") as old:
        write_tenant("acme", GREETING="new")
        with tenantry.tenant("acme") as new:
            pass
        in_use = db.session.execute(text("SELECT 1")).scalar()
    with old.app_context(), pytest.raises(KeyError):
        _ = db.session

    assert ("old", "new", 1) == (old.config["GREETING"], new.config["GREETING"], in_use)


@pytest.mark.usefixtures("acme")
def test_the_block_releases_the_database() -> None:
    """After the block, also after an exception, every database connection is idle."""
    with pytest.raises(NoSuchColumnError), tenantry.tenant("acme"):
        db.session.execute(text("SELECT 1")).mappings().one()["missing"]

    budget = context_apps(os.getpid())._budget
    assert budget is not None
    assert (1, 1) == (budget.open_count, budget.idle_count)


def test_no_migration_runs(write_tenant: WriteTenant, data_dir: Path) -> None:
    """The block does not create the tables of the tenant's endpoints, even after a request."""
    write_tenant("acme", BLUEPRINTS=["images"])

    with tenantry.tenant("acme") as app:
        status = app.test_client().get("/images/").status_code
        db.session.execute(text("SELECT 1"))

    with closing(sqlite3.connect(data_dir / "acme/acme.sqlite3")) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    assert (503, []) == (status, tables)


@pytest.mark.usefixtures("data_dir")
def test_maintenance_concerns_only_requests(write_tenant: WriteTenant) -> None:
    """A tenant in maintenance can be used in a block."""
    write_tenant("acme", MAINTENANCE="Back at noon.")

    with tenantry.tenant("acme"):
        name = current_tenant.name

    assert "acme" == name


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (None, UnknownTenantError, "no tenant named 'acme'; did you mean 'acme2'?"),
        ("SECRET_KEY = 'short'", TenantFileError, "'SECRET_KEY': has 5 characters"),
        (tenant_text(ENABLED=False), TenantryError, "'acme' is disabled; set ENABLED = True"),
        (tenant_text(BLUEPRINTS=["extra.bad"]), EndpointError, "fails to import: ValueError: no"),
    ],
)
def test_an_unusable_tenant_is_explained(
    write_tenant: WriteTenant,
    write_endpoint: Callable[[str, str], str],
    source: str | None,
    error: type[Exception],
    message: str,
) -> None:
    """A missing, rejected, disabled or broken tenant raises an error that says what to do."""
    write_endpoint("bad", "raise ValueError('no')")
    write_tenant("acme2")
    if source is not None:
        write_tenant("acme", source)

    with pytest.raises(error) as raised, tenantry.tenant("acme"):
        pass

    assert message in str(raised.value)


@pytest.mark.parametrize("name", ["../acme", "", "acme/../acme", "acme.py"])
@pytest.mark.usefixtures("acme")
def test_a_name_is_no_path(name: str) -> None:
    """Only the exact name of a tenant file selects the tenant."""
    with pytest.raises(UnknownTenantError), tenantry.tenant(name):
        pass


@pytest.mark.usefixtures("acme")
def test_a_removed_file_closes_the_app(tenants_dir: Path) -> None:
    """After its file is removed, a tenant cannot be used, and its app is closed."""
    with tenantry.tenant("acme") as app:
        pass
    (tenants_dir / "acme.py").unlink()

    with pytest.raises(UnknownTenantError), tenantry.tenant("acme"):
        pass

    with app.app_context(), pytest.raises(KeyError):
        _ = db.session


def test_a_missing_secret_is_created(tenants_dir: Path, data_dir: Path) -> None:
    """A block creates secrets like a host, because the tenant's code is going to run."""
    (tenants_dir / "acme.py").write_text(
        "from tenantry import secret\n"
        'SECRET_KEY = secret("ACME_KEY", create=True)\nBLUEPRINTS = ["landing"]\n'
    )

    with tenantry.tenant("acme") as app:
        key = app.secret_key

    assert (data_dir / "secrets/ACME_KEY").read_text().strip() == key


def test_surplus_apps_are_closed(
    write_tenant: WriteTenant, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above `TENANTRY_MAX_ACTIVE`, the least recently used app that is not in use is closed."""
    del data_dir
    monkeypatch.setenv("TENANTRY_MAX_ACTIVE", "1")
    write_tenant("acme")
    write_tenant("globex")

    with tenantry.tenant("acme") as acme:
        with tenantry.tenant("globex") as globex:
            pass
        first = [_is_open(acme), _is_open(globex)]

    assert [True, False] == first


def test_a_plain_name_means_the_module_of_the_tenant(
    write_tenant: WriteTenant, write_endpoint: Callable[[str, str], str], data_dir: Path
) -> None:
    """In the block, `importlib.import_module` returns the module of the tenant."""
    del data_dir
    name = write_endpoint("counting", COUNTING)
    write_tenant("acme", BLUEPRINTS=[name])

    with tenantry.tenant("acme"):
        module = importlib.import_module("extra.counting.blueprint")

    assert "extra@acme.counting.blueprint" == module.__name__


@pytest.mark.usefixtures("acme")
def test_a_serving_process_lends_its_app(host: Host) -> None:
    """In a process that serves, the block uses the app that serves, even before any request."""
    host.start()

    with tenantry.tenant("acme") as app:
        instance = host.router.mounts[0].instance
        leases = None if instance is None else instance.leases

    assert instance is not None
    assert instance.app is not None
    assert (True, 1, 0) == (instance.app() is app, leases, instance.leases)


def _is_open(app: Flask) -> bool:
    return "tenantry.database" in app.extensions
