"""Each app has its own copy of an endpoint's modules, except `models`, which all apps share."""

import gc
import importlib
import logging
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Flask
from werkzeug.test import Client

from servers import DEADLINE_S
from tenantry.app.factory import close_app, create_app
from tenantry.endpoints.finding import available_endpoints, find_endpoint
from tenantry.endpoints.loading import (
    LoadedEndpoint,
    load_endpoint,
)
from tenantry.errors import EndpointError

SHOP = {
    "__init__.py": "",
    "models.py": """
class ShopModel:
    pass
""",
    "resources.py": """
from flask_restful import Resource
from .models import ShopModel

seen = []

class Shop(Resource):
    def get(self):
        seen.append(1)
        return len(seen)
""",
    "blueprint.py": """
from flask import Blueprint
from flask_restful import Api
from .resources import Shop

shop_bp = Blueprint("shop", __name__)
shop_api = Api(shop_bp)
shop_api.add_resource(Shop, "/")
""",
}

WriteEndpoint = Callable[..., str]
Load = Callable[..., LoadedEndpoint]


@pytest.fixture(name="write_endpoint")
def _write_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WriteEndpoint]:
    """Return a function that writes the package `corp.shop` and returns the package name.

    A keyword argument such as `resources="…"` replaces the text of a file. If a value is None, the
    file is omitted.
    """
    monkeypatch.syspath_prepend(tmp_path)

    def write(**files: str | None) -> str:
        folder = tmp_path / "corp" / "shop"
        folder.mkdir(parents=True)
        (tmp_path / "corp" / "__init__.py").touch()
        for file, text in (SHOP | {f"{name}.py": text for name, text in files.items()}).items():
            if text is not None:
                (folder / file).write_text(text, encoding="utf-8")
        return "corp.shop"

    yield write
    for name in list(sys.modules):
        if name.partition(".")[0] == "corp":
            del sys.modules[name]


@pytest.fixture(name="load")
def _load() -> Iterator[Load]:
    """Return the function `load_endpoint`. The fixture unloads the loaded endpoints."""
    loaded: list[LoadedEndpoint] = []

    def load(name: str, tenant: str = "acme") -> LoadedEndpoint:
        loaded.append(load_endpoint(name, tenant))
        return loaded[-1]

    yield load
    for endpoint in loaded:
        endpoint.unload()


def module(endpoint: LoadedEndpoint, name: str) -> types.ModuleType:
    """Return a module of an endpoint, as loaded for one app."""
    return sys.modules[f"{endpoint.package}.{name}"]


def app_of(name: str, tenant: str, data_dir: Path) -> Flask:
    """Return a tenant's app that has one endpoint."""
    config = {"APP_NAME": tenant, "SECRET_KEY": tenant * 16, "BLUEPRINTS": [name]}
    return create_app(config, data_dir=data_dir)


# -- what is private and what is shared ---------------------------------------------------------


def test_two_apps_have_their_own_blueprint_and_resources(
    load: Load, write_endpoint: WriteEndpoint
) -> None:
    """Two apps share no module-level state of an endpoint's `blueprint.py` or `resources.py`."""
    name = write_endpoint()

    acme, globex = load(name, "acme"), load(name, "globex")

    assert acme.blueprint is not globex.blueprint
    for own in ("blueprint", "resources"):
        assert module(acme, own) is not module(globex, own)
    assert module(acme, "resources").seen is not module(globex, "resources").seen
    assert module(acme, "resources").Shop is not module(globex, "resources").Shop


def test_two_apps_share_the_models(load: Load, write_endpoint: WriteEndpoint) -> None:
    """All apps share an endpoint's `models.py`, even if it is imported by its full name."""
    name = write_endpoint()

    acme, globex = load(name, "acme"), load(name, "globex")

    shared = importlib.import_module("corp.shop.models")
    assert [shared, shared] == [module(acme, "models"), module(globex, "models")]
    assert module(acme, "resources").ShopModel is shared.ShopModel


def test_two_apps_do_not_share_a_counter(data_dir: Path, write_endpoint: WriteEndpoint) -> None:
    """A module-level counter of an endpoint counts the requests of one tenant only."""
    name = write_endpoint()
    acme, globex = app_of(name, "acme", data_dir), app_of(name, "globex", data_dir)

    answers = [Client(app).get("/").get_json() for app in (acme, acme, globex)]

    close_app(acme)
    close_app(globex)
    assert [1, 2, 1] == answers


@pytest.mark.parametrize(
    "line",
    [
        "from corp.shop.resources import seen",
        "from corp.shop import resources; seen = resources.seen",
        "from . import resources; seen = resources.seen",
        "from .resources import seen",
        "from ..shop.resources import seen",
        "import importlib; seen = importlib.import_module('.resources', __package__).seen",
    ],
)
def test_an_import_within_the_endpoint_is_private(
    load: Load, write_endpoint: WriteEndpoint, line: str
) -> None:
    """An endpoint gets the app's own copy of `resources.py`, whatever form of import it uses."""
    endpoint = load(write_endpoint(blueprint=f"{SHOP['blueprint.py']}\n{line}\n"))

    seen = module(endpoint, "blueprint").seen

    assert seen is module(endpoint, "resources").seen
    assert "corp.shop.resources" not in sys.modules


@pytest.mark.parametrize(
    "line", ["from corp.shop.models import ShopModel", "from .models import *"]
)
def test_an_import_of_the_models_is_shared(
    load: Load, write_endpoint: WriteEndpoint, line: str
) -> None:
    """An endpoint gets the shared module `models.py`, whatever form of import it uses."""
    endpoint = load(write_endpoint(blueprint=f"{SHOP['blueprint.py']}\n{line}\n"))

    model = module(endpoint, "blueprint").ShopModel

    assert model is importlib.import_module("corp.shop.models").ShopModel


def test_a_sub_package_of_an_endpoint_is_private(
    load: Load, write_endpoint: WriteEndpoint, tmp_path: Path
) -> None:
    """Modules in an endpoint's subpackage can import one another, the endpoint and its parents."""
    name = write_endpoint(blueprint=SHOP["blueprint.py"] + "from .parts import seen, outside\n")
    (tmp_path / "corp/outside.py").write_text("outside = 1\n")
    (tmp_path / "corp/shop/parts").mkdir()
    (tmp_path / "corp/shop/parts/__init__.py").write_text(
        "from .one import seen\nfrom ...outside import outside\n"
    )
    (tmp_path / "corp/shop/parts/one.py").write_text("from ..resources import seen\n")

    endpoint = load(name)

    assert module(endpoint, "blueprint").seen is module(endpoint, "resources").seen
    assert 1 == module(endpoint, "blueprint").outside


@pytest.mark.parametrize(
    "line",
    ["import corp.shop.resources", "import corp.shop.resources as r", "from corp import shop"],
)
def test_an_import_that_cannot_be_made_private_is_rejected(
    write_endpoint: WriteEndpoint, line: str
) -> None:
    """If an endpoint imports its own module by full name, the error says how to fix the import."""
    name = write_endpoint(resources=f"{SHOP['resources.py']}\n{line}\n")

    with pytest.raises(EndpointError) as refused:
        load_endpoint(name, "acme")

    assert "(resources.py, line 12)" in str(refused.value)
    assert "write `from . import …`" in str(refused.value)


def test_an_import_inside_a_view_is_private(data_dir: Path, write_endpoint: WriteEndpoint) -> None:
    """An import inside a view, during a request, gets the app's own copy of the module."""
    late = """
from flask_restful import Resource

class Shop(Resource):
    def get(self):
        from .late import seen
        from corp.shop import late
        seen.append(1)
        return len(late.seen)
"""
    name = write_endpoint(resources=late, late="seen = []\n")
    acme, globex = app_of(name, "acme", data_dir), app_of(name, "globex", data_dir)

    answers = [Client(app).get("/").get_json() for app in (acme, acme, globex)]

    close_app(acme)
    close_app(globex)
    assert [1, 2, 1] == answers


def test_a_changed_endpoint_is_read_again(
    load: Load, write_endpoint: WriteEndpoint, tmp_path: Path
) -> None:
    """An app that is built after an endpoint's file changed uses the new file, not a `.pyc`."""
    name = write_endpoint()
    load(name, "acme")
    path = tmp_path / "corp/shop/resources.py"
    path.write_text(path.read_text() + "NEW = 1\n")

    endpoint = load(name, "globex")

    assert 1 == module(endpoint, "resources").NEW


def test_an_endpoint_can_be_loaded_in_many_threads(
    write_endpoint: WriteEndpoint, load: Load
) -> None:
    """If eight threads load an endpoint at once, each gets a blueprint of its own."""
    name, together = write_endpoint(), threading.Barrier(8)

    def load_together(number: int) -> LoadedEndpoint:
        together.wait(DEADLINE_S)
        return load(name, f"acme-{number}")

    with ThreadPoolExecutor(8) as threads:
        endpoints = list(threads.map(load_together, range(8)))

    assert 8 == len({id(endpoint.blueprint) for endpoint in endpoints})
    assert 1 == len({id(module(endpoint, "models")) for endpoint in endpoints})


# -- the end of an app --------------------------------------------------------------------------


def test_a_closed_app_and_its_modules_are_freed(
    data_dir: Path, write_endpoint: WriteEndpoint
) -> None:
    """After `close_app`, no object refers to the app, its modules or their classes."""
    app = app_of(write_endpoint(), "acme", data_dir)
    assert 200 == Client(app).get("/").status_code
    private = [name for name in sys.modules if name.startswith("corp/shop@acme-")]
    own = [sys.modules[name] for name in private if not name.endswith("models")]
    references = [weakref.ref(thing) for thing in (app, *own, own[-1].__dict__["Shop"])]

    close_app(app)
    close_app(app)
    del app, own
    gc.collect()

    assert 4 == len(private)
    assert [None] * len(references) == [reference() for reference in references]
    assert not [name for name in sys.modules if "@" in name]


def test_the_loggers_of_a_private_package_are_removed(write_endpoint: WriteEndpoint) -> None:
    """Loggers named `__name__` in an endpoint are removed with the app, so none accumulate."""
    line = "import logging\nlogging.getLogger(__name__).info('hello')\n"
    name = write_endpoint(resources=SHOP["resources.py"] + line)
    before = set(logging.Logger.manager.loggerDict)
    endpoint = load_endpoint(name, "acme")
    during = set(logging.Logger.manager.loggerDict) - before

    endpoint.unload()

    assert {endpoint.package, f"{endpoint.package}.resources"} == during
    assert before == set(logging.Logger.manager.loggerDict)


def test_a_failed_load_leaves_no_module(write_endpoint: WriteEndpoint) -> None:
    """If an endpoint fails to load, modules that it imported before the failure are removed."""
    name = write_endpoint(blueprint=SHOP["blueprint.py"] + "raise ValueError('no')\n")

    with pytest.raises(EndpointError):
        load_endpoint(name, "acme")

    assert not [module for module in sys.modules if "@" in module]


# -- mistakes -----------------------------------------------------------------------------------


def test_a_short_name_means_an_endpoint_of_tenantry() -> None:
    """The short name `landing` means the package `tenantry.endpoints.landing`."""
    assert "landing" in available_endpoints()
    assert "tenantry.endpoints.landing" == find_endpoint("landing")


@pytest.mark.parametrize(
    "name",
    [
        *("lnding", "LANDING", "", ".", "..", ".landing", "landing.", "landing/../x", "a b"),
        *("@", "a@b", "json@x.decoder", "1.2"),
        *("os", "os.path", "nobody.shop", "corp.nobody", "json.decoder.x"),
    ],
)
def test_an_unknown_endpoint_is_rejected(write_endpoint: WriteEndpoint, name: str) -> None:
    """The error for an unknown endpoint lists the available endpoints."""
    write_endpoint()

    with pytest.raises(EndpointError) as refused:
        load_endpoint(name, "acme")

    assert str(refused.value).startswith(f"no endpoint named {name!r}; ")
    assert "landing" in str(refused.value)


def test_the_nearest_name_is_suggested() -> None:
    """The error for the unknown endpoint `lnading` suggests `landing`."""
    with pytest.raises(EndpointError) as refused:
        find_endpoint("lnading")

    assert "did you mean 'landing'? Endpoints: " in str(refused.value)


def test_a_package_without_a_blueprint_is_not_an_endpoint(write_endpoint: WriteEndpoint) -> None:
    """A package without `blueprint.py` is rejected without being imported."""
    name = write_endpoint(blueprint=None)

    with pytest.raises(EndpointError, match=r"'corp\.shop' has no blueprint\.py"):
        find_endpoint(name)

    assert "corp.shop" not in sys.modules


@pytest.mark.parametrize(
    "text",
    ["", "shop_bp = None\n", "from flask import Blueprint\nbp = Blueprint('shop', __name__)\n"],
)
def test_a_blueprint_with_another_name_is_rejected(
    write_endpoint: WriteEndpoint, text: str
) -> None:
    """If a blueprint has the wrong name, the error contains the line that the author must write."""
    name = write_endpoint(blueprint=text)

    with pytest.raises(EndpointError) as refused:
        load_endpoint(name, "acme")

    assert "shop_bp = Blueprint('shop', __name__)" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\nraise SystemExit(3)\n", "SystemExit: 3 (resources.py:2)"),
        ("\nraise KeyboardInterrupt\n", ": KeyboardInterrupt (resources.py:2)"),
        ("\n\n1 / 0\n", "ZeroDivisionError: division by zero (resources.py:3)"),
        ("import nobody\n", "ModuleNotFoundError: No module named 'nobody' (resources.py:1)"),
        ("\nx = = 1\n", "SyntaxError: invalid syntax (resources.py, line 2)"),
        ("from .models import Nobody\n", "(resources.py:1)"),
        ("class E(Exception):\n def __str__(self): 1 / 0\nraise E\n", ": E (resources.py:3)"),
        ("from .... import x\n", "ImportError: attempted relative import beyond"),
    ],
)
def test_an_endpoint_that_fails_to_import_is_named_with_its_line(
    write_endpoint: WriteEndpoint, text: str, expected: str
) -> None:
    """If an endpoint cannot be imported, the error names the endpoint, the file and the line."""
    name = write_endpoint(resources=text)

    with pytest.raises(EndpointError) as refused:
        load_endpoint(name, "acme")

    assert str(refused.value).startswith("endpoint 'corp.shop' fails to import: ")
    assert expected in str(refused.value)
    assert refused.value.__cause__ is not None


def test_a_failing_models_module_is_named_with_its_line(
    write_endpoint: WriteEndpoint,
) -> None:
    """If an endpoint's `models.py` cannot be imported, the error names the line in that file."""
    name = write_endpoint(models="\n\nraise ValueError('no')\n")

    with pytest.raises(EndpointError, match=r"ValueError: no \(models\.py:3\)"):
        load_endpoint(name, "acme")


@pytest.mark.parametrize("text", ["raise SystemExit(3)", "import nobody_at_all"])
def test_a_failing_parent_package_is_not_reported_as_missing(
    write_endpoint: WriteEndpoint, tmp_path: Path, text: str
) -> None:
    """If an endpoint's parent package raises, the endpoint counts as failing, not as missing."""
    name = write_endpoint()
    (tmp_path / "corp/__init__.py").write_text(text)

    with pytest.raises(EndpointError, match=r"endpoint 'corp\.shop' fails to import"):
        load_endpoint(name, "acme")


def test_finding_an_endpoint_runs_no_code(write_endpoint: WriteEndpoint, tmp_path: Path) -> None:
    """Code of an endpoint runs only when an app is built, not when a tenant file is validated."""
    name = write_endpoint()
    for package in ("corp", "corp/shop"):
        (tmp_path / package / "__init__.py").write_text("raise SystemExit(3)")

    assert name == find_endpoint(name)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("shop_bp.record(lambda state: 1 / 0)", "division by zero (blueprint.py:9)"),
        ("shop_bp.record(lambda state: exit(3))", "SystemExit: 3 (blueprint.py:9)"),
        ("shop_api.add_resource(Shop, 'x')", "must start with a slash"),
    ],
)
def test_an_endpoint_that_fails_to_register_is_named_with_its_line(
    data_dir: Path, write_endpoint: WriteEndpoint, line: str, expected: str
) -> None:
    """If an endpoint cannot be registered, the error names the endpoint and the failing line."""
    name = write_endpoint(blueprint=f"{SHOP['blueprint.py']}{line}\n")

    with pytest.raises(EndpointError) as refused:
        app_of(name, "acme", data_dir)

    assert str(refused.value).startswith("endpoint 'corp.shop' fails to register: ")
    assert expected in str(refused.value)
