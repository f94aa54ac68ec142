"""Each build of an app has its own copy of an endpoint's modules, unless a module asks to share."""

import gc
import importlib
import importlib.resources
import logging
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import Client

from servers import DEADLINE_S
from tenantry.app.factory import close_app, create_app
from tenantry.endpoints.finding import available_endpoints, find_endpoint
from tenantry.endpoints.loading import load_endpoint, unload_endpoints
from tenantry.endpoints.plain_names import resolve_plain_names, using
from tenantry.errors import EndpointError
from tenantry.private_code import latest_builds
from tenantry.private_code.modules import PrivateModules
from tenantry.private_code.sources import Sources

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
Load = Callable[..., PrivateModules]


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
    """Return a function that loads an endpoint for a new build of a tenant."""
    resolve_plain_names()
    builds: list[PrivateModules] = []
    sources = Sources()

    def load(name: str, tenant: str = "acme") -> PrivateModules:
        modules = PrivateModules(tenant, sources)
        builds.append(modules)
        with modules.building(), using(modules):
            load_endpoint(name, modules)
        return modules

    yield load
    for modules in builds:
        unload_endpoints(modules)
    sources.close()


def module(modules: PrivateModules, name: str) -> Any:
    """Return a module of the endpoint `corp.shop` that is loaded for one build."""
    return modules.modules[f"corp.shop.{name}"]


def app_of(name: str, tenant: str, data_dir: Path) -> Flask:
    """Return a tenant's app that has one endpoint."""
    config = {"APP_NAME": tenant, "SECRET_KEY": tenant * 16, "BLUEPRINTS": [name]}
    return create_app(config, data_dir=data_dir)


# -- what is private and what is shared ---------------------------------------------------------


def test_two_apps_have_their_own_blueprint_and_resources(
    load: Load, write_endpoint: WriteEndpoint
) -> None:
    """Two apps share no module of an endpoint, and therefore no class and no module-level state."""
    name = write_endpoint()

    acme, globex = load(name, "acme"), load(name, "globex")

    for own in ("blueprint", "resources", "models"):
        assert module(acme, own) is not module(globex, own)
    assert module(acme, "resources").seen is not module(globex, "resources").seen
    assert module(acme, "resources").Shop is not module(globex, "resources").Shop
    assert module(acme, "resources").ShopModel is module(acme, "models").ShopModel
    assert module(acme, "models").ShopModel is not module(globex, "models").ShopModel


def test_two_apps_share_a_module_that_asks_for_it(
    load: Load, write_endpoint: WriteEndpoint
) -> None:
    """All apps share a module that begins with `__shared__ = True`, and the module's imports."""
    models = '"""Docs."""\n\n__shared__ = True\nfrom .errors import ShopError\n' + SHOP["models.py"]
    name = write_endpoint(
        models=models, errors="__shared__ = True\nclass ShopError(Exception): 0\n"
    )

    acme, globex = load(name, "acme"), load(name, "globex")

    shared = module(acme, "models")
    assert shared is module(globex, "models")
    assert module(acme, "resources").ShopModel is shared.ShopModel
    assert acme.load("corp.shop.errors").ShopError is shared.ShopError


def test_a_shared_module_may_not_import_a_private_one(
    load: Load, write_endpoint: WriteEndpoint
) -> None:
    """If a shared module imports a private module, the error names the private module."""
    name = write_endpoint(models="__shared__ = True\nfrom .errors import X\n", errors="X = 1\n")

    with pytest.raises(EndpointError, match=r"corp\.shop\.errors is imported by a shared module"):
        load(name)


def test_the_names_of_private_modules_are_the_same_in_every_build(
    load: Load, write_endpoint: WriteEndpoint
) -> None:
    """The name of a module contains the tenant after the first part, and contains no counter."""
    name = write_endpoint(models="import logging\nNAME = __name__\nclass ShopModel: pass\n")

    names = [
        (module(build, "models").NAME, module(build, "models").ShopModel.__module__)
        for build in (load(name), load(name))
    ]

    assert [("corp@acme.shop.models",) * 2] * 2 == names


def test_outside_code_finds_the_modules_of_the_latest_build(
    load: Load, write_endpoint: WriteEndpoint
) -> None:
    """Pickles, `import_module` and `importlib.resources` find a private module by its name."""
    name = write_endpoint(late="X = 1\n")
    load(name)
    latest = load(name)
    item = module(latest, "models").ShopModel()

    assert type(item) is type(pickle.loads(pickle.dumps(item)))
    assert latest.load("corp.shop.late") is importlib.import_module("corp@acme.shop.late")
    files = importlib.resources.files("corp@acme.shop")
    assert "seen" in files.joinpath("resources.py").read_text()


def test_a_build_that_fails_leaves_the_modules_of_the_last_one(
    load: Load, write_endpoint: WriteEndpoint, tmp_path: Path
) -> None:
    """After a failed build, private names mean the modules of the build that serves."""
    serving = load(write_endpoint())
    (tmp_path / "corp/shop/blueprint.py").write_text("raise ValueError('no')\n")
    failing = PrivateModules("acme", Sources())
    with pytest.raises(EndpointError), failing.building():
        load_endpoint("corp.shop", failing)

    unload_endpoints(failing)

    assert module(serving, "models") is sys.modules["corp@acme.shop.models"]


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
        "from .resources import *",
        "import corp.shop.resources; seen = corp.shop.resources.seen",
        "import corp.shop.resources as r; seen = r.seen",
        "from corp import shop; seen = shop.resources.seen",
        "import importlib; seen = importlib.import_module('.resources', __package__).seen",
        "import importlib; seen = importlib.import_module('corp.shop.resources').seen",
        "seen = __import__('corp.shop.resources').shop.resources.seen",
        "import werkzeug.utils as u; seen = u.import_string('corp.shop.resources:seen')",
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


def test_new_sources_read_changed_files(
    load: Load, write_endpoint: WriteEndpoint, tmp_path: Path
) -> None:
    """All builds of a process read each file once, and new `Sources` read the files again."""
    load(write_endpoint())
    path = tmp_path / "corp/shop/resources.py"
    path.write_text(path.read_text() + "NEW = 1\n")

    old = load("corp.shop", "globex")
    new = PrivateModules("initech", Sources())
    with new.building():
        load_endpoint("corp.shop", new)

    assert [False, True] == [hasattr(module(one, "resources"), "NEW") for one in (old, new)]
    unload_endpoints(new)


def test_a_build_fails_while_an_earlier_import_hangs(
    load: Load, write_endpoint: WriteEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next build does not wait for an import that hangs, and the error names the module."""
    released, hangs = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        released.wait(DEADLINE_S)

    monkeypatch.setattr(sys, "hang_here", hang, raising=False)
    name = write_endpoint(models="import sys\nsys.hang_here()\nclass ShopModel: pass\n")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(load, name)
        assert hangs.wait(DEADLINE_S)
        monkeypatch.setattr(latest_builds, "BUILD_WAIT_S", 0.0)
        with pytest.raises(TimeoutError, match=r"'corp.shop.models' .*tenantry restart"):
            load(name)
        released.set()
        first.result(DEADLINE_S)

    assert load(name).modules


def test_an_endpoint_can_be_loaded_in_many_threads(
    write_endpoint: WriteEndpoint, load: Load
) -> None:
    """If eight threads load an endpoint at once, each gets a blueprint of its own."""
    name, together = write_endpoint(), threading.Barrier(8)

    def load_together(number: int) -> PrivateModules:
        together.wait(DEADLINE_S)
        return load(name, f"acme-{number}")

    with ThreadPoolExecutor(8) as threads:
        endpoints = list(threads.map(load_together, range(8)))

    assert 8 == len({id(module(one, "blueprint").shop_bp) for one in endpoints})


def test_two_builds_of_one_tenant_share_nothing(write_endpoint: WriteEndpoint, load: Load) -> None:
    """Builds of one tenant at the same time, such as a request's and a reload's, do not mix."""
    name, together = write_endpoint(late="seen = []\n"), threading.Barrier(4)

    def load_together(_: int) -> PrivateModules:
        together.wait(DEADLINE_S)
        return load(name)

    with ThreadPoolExecutor(4) as threads:
        builds = list(threads.map(load_together, range(4)))

    for module_name in ("blueprint", "resources", "models"):
        assert 4 == len({id(module(build, module_name)) for build in builds})
    assert 4 == len({id(build.load("corp.shop.late")) for build in builds})


# -- the end of an app --------------------------------------------------------------------------


def test_a_closed_app_and_its_modules_are_freed(
    data_dir: Path, write_endpoint: WriteEndpoint
) -> None:
    """After `close_app`, no object refers to the app, its modules or their classes."""
    app = app_of(write_endpoint(), "acme", data_dir)
    assert 200 == Client(app).get("/").status_code
    private = [name for name in sys.modules if name.startswith("corp@acme")]
    own = [sys.modules[name] for name in private]
    references = [
        weakref.ref(thing)
        for thing in (app, *own, sys.modules["corp@acme.shop.resources"].__dict__["Shop"])
    ]

    close_app(app)
    close_app(app)
    del app, own
    gc.collect()

    assert 5 == len(private)
    assert [None] * len(references) == [reference() for reference in references]
    assert not [name for name in sys.modules if "@" in name]


def test_the_loggers_of_a_private_package_are_removed(write_endpoint: WriteEndpoint) -> None:
    """Loggers named `__name__` in an endpoint are removed with the app, so none accumulate."""
    line = "import logging\nlogging.getLogger(__name__).info('hello')\n"
    name = write_endpoint(resources=SHOP["resources.py"] + line)
    before = set(logging.Logger.manager.loggerDict)
    build = PrivateModules("acme", Sources())
    with build.building():
        load_endpoint(name, build)
    during = set(logging.Logger.manager.loggerDict) - before

    unload_endpoints(build)

    assert {"corp@acme", "corp@acme.shop", "corp@acme.shop.resources"} == during
    assert before == set(logging.Logger.manager.loggerDict)


def test_a_failed_build_leaves_no_module(data_dir: Path, write_endpoint: WriteEndpoint) -> None:
    """If a build fails, modules that it imported before the failure are removed."""
    name = write_endpoint(blueprint=SHOP["blueprint.py"] + "raise ValueError('no')\n")

    with pytest.raises(EndpointError):
        app_of(name, "acme", data_dir)

    assert not [module for module in sys.modules if "@" in module]


# -- mistakes -----------------------------------------------------------------------------------


def test_a_short_name_means_an_endpoint_of_tenantry() -> None:
    """The short name `landing` means the package `tenantry.endpoints.landing`."""
    assert "landing" in available_endpoints()
    assert "tenantry.endpoints.landing" == find_endpoint("landing", None)


@pytest.mark.parametrize(
    "name",
    [
        *("lnding", "LANDING", "", ".", "..", ".landing", "landing.", "landing/../x", "a b"),
        *("@", "a@b", "json@x.decoder", "1.2"),
        *("os", "os.path", "nobody.shop", "corp.nobody", "json.decoder.x"),
    ],
)
def test_an_unknown_endpoint_is_rejected(
    load: Load, write_endpoint: WriteEndpoint, name: str
) -> None:
    """The error for an unknown endpoint lists the available endpoints."""
    write_endpoint()

    with pytest.raises(EndpointError) as refused:
        load(name)

    assert str(refused.value).startswith(f"no endpoint named {name!r}; ")
    assert "landing" in str(refused.value)


def test_the_nearest_name_is_suggested() -> None:
    """The error for the unknown endpoint `lnading` suggests `landing`."""
    with pytest.raises(EndpointError) as refused:
        find_endpoint("lnading", None)

    assert "did you mean 'landing'? Endpoints: " in str(refused.value)


def test_a_package_without_a_blueprint_is_not_an_endpoint(write_endpoint: WriteEndpoint) -> None:
    """A package without `blueprint.py` is rejected without being imported."""
    name = write_endpoint(blueprint=None)

    with pytest.raises(EndpointError, match=r"'corp\.shop' has no blueprint\.py"):
        find_endpoint(name, None)

    assert "corp.shop" not in sys.modules


@pytest.mark.parametrize(
    "text",
    ["", "shop_bp = None\n", "from flask import Blueprint\nbp = Blueprint('shop', __name__)\n"],
)
def test_a_blueprint_with_another_name_is_rejected(
    load: Load, write_endpoint: WriteEndpoint, text: str
) -> None:
    """If a blueprint has the wrong name, the error contains the line that the author must write."""
    name = write_endpoint(blueprint=text)

    with pytest.raises(EndpointError) as refused:
        load(name)

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
    load: Load, write_endpoint: WriteEndpoint, text: str, expected: str
) -> None:
    """If an endpoint cannot be imported, the error names the endpoint, the file and the line."""
    name = write_endpoint(resources=text)

    with pytest.raises(EndpointError) as refused:
        load(name)

    assert str(refused.value).startswith("endpoint 'corp.shop' fails to import: ")
    assert expected in str(refused.value)
    assert refused.value.__cause__ is not None


def test_a_failing_models_module_is_named_with_its_line(
    load: Load,
    write_endpoint: WriteEndpoint,
) -> None:
    """If an endpoint's `models.py` cannot be imported, the error names the line in that file."""
    name = write_endpoint(models="\n\nraise ValueError('no')\n")

    with pytest.raises(EndpointError, match=r"ValueError: no \(models\.py:3\)"):
        load(name)


@pytest.mark.parametrize("text", ["raise SystemExit(3)", "import nobody_at_all"])
def test_a_failing_parent_package_is_not_reported_as_missing(
    load: Load, write_endpoint: WriteEndpoint, tmp_path: Path, text: str
) -> None:
    """If an endpoint's parent package raises, the endpoint counts as failing, not as missing."""
    name = write_endpoint()
    (tmp_path / "corp/__init__.py").write_text(text)

    with pytest.raises(EndpointError, match=r"endpoint 'corp\.shop' fails to import"):
        load(name)


def test_finding_an_endpoint_runs_no_code(write_endpoint: WriteEndpoint, tmp_path: Path) -> None:
    """Code of an endpoint runs only when an app is built, not when a tenant file is validated."""
    name = write_endpoint()
    for package in ("corp", "corp/shop"):
        (tmp_path / package / "__init__.py").write_text("raise SystemExit(3)")

    assert name == find_endpoint(name, None)


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
