"""Modules in `APP_DIR` are private to each tenant, and are found before those on `sys.path`."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import Client

from tenantry.app.factory import close_app, create_app
from tenantry.errors import TenantFileError

BLUEPRINT = """
from flask import Blueprint
from {imports}

shop_bp = Blueprint("shop", __name__)

@shop_bp.get("/")
def show():
    return str(VALUE)
"""

Build = Callable[..., Flask]


@pytest.fixture(name="project")
def _project(tmp_path: Path) -> Path:
    """Return an empty folder for modules."""
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture(name="build")
def _build(tmp_path: Path, project: Path) -> Iterator[Build]:
    """Return a function that builds the app of a tenant with the endpoint `shop`."""
    apps: list[Flask] = []

    def build(tenant: str = "acme", app_dir: Path = project, **keys: Any) -> Flask:
        config = {
            "APP_NAME": tenant,
            "SECRET_KEY": tenant * 16,
            "BLUEPRINTS": ["shop"],
            "APP_DIR": str(app_dir),
        }
        apps.append(create_app(config | keys, data_dir=tmp_path / "instance"))
        return apps[-1]

    yield build
    for app in apps:
        close_app(app)


def write_shop(folder: Path, imports: str, **modules: str) -> None:
    """Write the endpoint `shop`, which shows what it imports, and modules beside it."""
    (folder / "shop").mkdir()
    (folder / "shop/__init__.py").touch()
    (folder / "shop/blueprint.py").write_text(BLUEPRINT.format(imports=imports))
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


def shown(app: Flask) -> str:
    """Return what the endpoint shows."""
    return Client(app).get("/").get_data(as_text=True)


def test_each_tenant_has_its_own_copy_of_a_module(project: Path, build: Build) -> None:
    """A module beside the endpoint exists once for each tenant, and not outside of tenants."""
    write_shop(project, "prices import VALUE", prices="VALUE = []")

    acme, globex = build("acme"), build("globex")

    values = [sys.modules[f"prices@{name}"].VALUE for name in ("acme", "globex")]
    assert values[0] is not values[1]
    assert ["[]", "[]"] == [shown(acme), shown(globex)]
    assert "prices" not in sys.modules


def test_tenants_can_have_different_folders(tmp_path: Path, build: Build) -> None:
    """The same names mean different code in the folders of two tenants."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        write_shop(folder, "prices import VALUE", prices=f"VALUE = {folder.name!r}")

    apps = [build(name, folder) for name, folder in zip(("acme", "globex"), folders, strict=True)]

    assert ["one", "two"] == [shown(app) for app in apps]


@pytest.mark.parametrize("name", ["colorama", "json", "werkzeug"])
def test_a_module_of_the_folder_comes_before_a_library(
    project: Path, build: Build, name: str
) -> None:
    """Only tenants' code finds a module that has the name of a library."""
    write_shop(project, f"{name} import VALUE", **{name: "VALUE = 'ours'"})

    app = build()

    assert "ours" == shown(app)
    assert not hasattr(sys.modules.get(name), "VALUE")


def test_a_folder_without_code_gives_way_to_a_library(project: Path, build: Build) -> None:
    """A folder with the name of a library, such as for its data, does not hide the library."""
    (project / "json").mkdir()
    write_shop(project, "json import dumps as VALUE")

    assert "function dumps" in shown(build())


def test_a_folder_without_init_is_a_package(project: Path, build: Build) -> None:
    """A namespace package of the folder is private, too."""
    (project / "prices").mkdir()
    (project / "prices/today.py").write_text("VALUE = 7")
    write_shop(project, "prices.today import VALUE")

    assert "7" == shown(build())
    assert "prices@acme.today" in sys.modules


def test_no_module_replaces_tenantry(project: Path, build: Build) -> None:
    """A module `tenantry` in the folder is not found, because `tenantry` belongs to the host."""
    write_shop(project, "tenantry import db as VALUE", tenantry="db = 'ours'")

    assert "ours" != shown(build())


def test_a_missing_folder_is_an_error(tmp_path: Path, build: Build) -> None:
    """The message names the key."""
    with pytest.raises(TenantFileError, match=r"'APP_DIR': .*there is no such folder"):
        build(app_dir=tmp_path / "missing")


def test_the_shell_of_a_tenant_imports_private_modules(project: Path, build: Build) -> None:
    """`tenantry run NAME -- shell` finds the tenant's own modules by their plain names."""
    write_shop(project, "prices import VALUE", prices="VALUE = 7")
    names = build().make_shell_context()

    exec("import prices", names)

    assert "prices@acme" == names["prices"].__name__


def test_an_endpoint_of_tenantry_finds_nothing_in_the_folder(project: Path, build: Build) -> None:
    """A project's own `flask.py` does not change what `landing` imports."""
    (project / "flask.py").write_text("raise RuntimeError('the wrong module')")

    app = build(BLUEPRINTS=["landing"])

    assert 201 == Client(app).get("/").status_code
