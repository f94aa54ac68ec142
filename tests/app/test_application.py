"""An existing Flask application is a tenant's app without a changed line."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import Client, TestResponse

from tenantry.app.factory import close_app, create_app
from tenantry.app.probe import check_app
from tenantry.errors import ApplicationError, TenantFileError
from tenantry.host import Host
from tenantry.tenants.clients import hash_client_key

APPS = Path(__file__).parents[1] / "apps"
KEY = "0123456789abcdef0123456789abcdef"

Build = Callable[..., Flask]


@pytest.fixture(name="project")
def _project(tmp_path: Path) -> Path:
    """Return an empty folder for the modules of an application."""
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture(name="build")
def _build(tmp_path: Path, project: Path) -> Iterator[Build]:
    """Return a function that builds the app of a tenant with `APP`."""
    apps: list[Flask] = []

    def build(app: str, tenant: str = "acme", **keys: Any) -> Flask:
        config = {"APP_NAME": tenant, "SECRET_KEY": f"{tenant}-{KEY}", "APP_DIR": str(project)}
        config |= {"APP": app, **keys}
        apps.append(create_app(config, data_dir=tmp_path / "instance"))
        return apps[-1]

    yield build
    for app in apps:
        close_app(app)


def write(project: Path, text: str, name: str = "shop") -> None:
    """Write a module of the application."""
    (project / f"{name}.py").write_text(f"from flask import Flask\n\n{text}")


def get(app: Flask, path: str = "/") -> TestResponse:
    """Request a path of an app without the host."""
    return Client(app).get(path)


# -- which object APP means ----------------------------------------------------------------------

FORMS = """
def make(*args, **kwargs):
    app = Flask(__name__)
    app.config["GIVEN"] = args, kwargs
    return app

app = Flask(__name__)
app.config["GIVEN"] = "object"

def none(): return make()
def optional(config=None, *, debug=False): return make(config, debug=debug)
def required(config): return make(config["APP_NAME"], config.SECRET_KEY)
def keyword(*, config): return make(config=config["APP_NAME"])
class Factory:
    @staticmethod
    def build(config): return make(config["APP_NAME"])
build = Factory.build
"""


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("shop:app", "object"),
        ("shop", "object"),
        ("shop:none", ((), {})),
        ("shop:none()", ((), {})),
        ("shop:optional", ((None,), {"debug": False})),
        ("shop:optional('x', debug=True)", (("x",), {"debug": True})),
        ("shop:make({'a': [1]}, b=None)", (({"a": [1]},), {"b": None})),
        ("shop:required", (("acme", f"acme-{KEY}"), {})),
        ("shop:keyword", ((), {"config": "acme"})),
        ("shop:build", (("acme",), {})),
    ],
)
def test_app_means_what_gunicorn_and_flask_users_expect(
    project: Path, build: Build, text: str, given: object
) -> None:
    """`APP` names a Flask object, a call with literals, or a factory with its parameters."""
    write(project, FORMS)

    app = build(text)

    assert given == app.config["GIVEN"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("shop", "application = Flask(__name__)\napp = 'another'\n"),
        ("shop", "site = Flask(__name__)\nsame = site\n"),
        ("shop", "def create_app(): return Flask(__name__)\n"),
        ("shop", "def make_app(config): return Flask(__name__)\n"),
        ("shop:create_app", ("from functools import cache\n\n@cache\n"
         "def create_app(): return Flask(__name__)\n")),
        ("shop:create_app", ("from functools import partial\n"
         "create_app = partial(Flask, __name__)\n")),
    ],
)  # fmt: skip
def test_a_module_alone_means_its_usual_name(
    project: Path, build: Build, text: str, code: str
) -> None:
    """Without a name, gunicorn's `application`, Flask's `app`, one Flask object or a factory."""
    write(project, code)

    assert "shop@acme" == build(text).name


def test_a_subclass_and_its_own_classes_are_kept(project: Path, build: Build) -> None:
    """The class of the Flask object, and the classes that it sets, stay as they are."""
    write(
        project,
        "from flask import Config, Request, Response, sessions\n"
        "class Settings(Config): pass\n"
        "class Sessions(sessions.SecureCookieSessionInterface): pass\n"
        "class Shop(Flask):\n"
        "    request_class = type('Read', (Request,), {})\n"
        "    response_class = type('Sent', (Response,), {})\n"
        "    config_class = Settings\n"
        "    session_interface = Sessions()\n"
        "    def __init__(self):\n"
        "        super().__init__(__name__)\n"
        "        self.config['SECRET_KEY'] = 'ignored'\n"
        "app = Shop()\n",
    )

    app = build("shop")

    classes = [type(app), app.request_class, app.response_class, type(app.session_interface)]
    assert ["Shop", "Read", "Sent", "Sessions"] == [one.__name__ for one in classes]
    assert ("Settings", f"acme-{KEY}") == (type(app.config).__name__, app.secret_key)


# -- the configuration ---------------------------------------------------------------------------

ASSIGNMENTS = """
import os
from flask import Flask, current_app

class Settings:
    SECRET_KEY = SQLALCHEMY_DATABASE_URI = MAIL_SERVER = TITLE = "theirs"

def assign(config):
    config.from_object(Settings)
    config.from_object("settings")
    config.from_mapping(vars(Settings))
    config.from_prefixed_env("SHOP")
    config["SECRET_KEY"] = "theirs"
    config.update(SECRET_KEY="theirs")
    config |= {"SECRET_KEY": "theirs"}
    config.setdefault("SECRET_KEY", "theirs")
    config.pop("SECRET_KEY")
    del config["SECRET_KEY"]
    config["TITLE"] = "theirs"

app = Flask(__name__)
assign(app.config)
app.secret_key = "theirs"
app.config["SESSION_COOKIE_NAME"] = "theirs"

@app.get("/")
def show():
    assign(current_app.config)
    app.secret_key = "theirs"
    keys = "SECRET_KEY", "SQLALCHEMY_DATABASE_URI", "MAIL_SERVER", "TITLE"
    return [app.config[key] for key in keys]
"""


def test_the_keys_of_the_tenant_file_win(
    project: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No assignment of the app changes a key of the tenant file, or the URL of its database."""
    monkeypatch.setenv("SHOP_SECRET_KEY", "theirs")
    (project / "settings.py").write_text("SECRET_KEY = MAIL_SERVER = 'theirs'\n")
    write(project, ASSIGNMENTS)

    answer = get(build("shop", MAIL_SERVER="ours"))

    url = f"sqlite:///{tmp_path}/instance/acme/acme.sqlite3"
    assert [f"acme-{KEY}", url, "ours", "theirs"] == answer.json


def test_other_defaults_of_tenantry_yield_to_the_app(project: Path, build: Build) -> None:
    """An app changes the keys that the tenant file does not set, such as its cookie's name."""
    write(
        project,
        "app = Flask(__name__)\n"
        "app.config.update(SESSION_COOKIE_NAME='theirs', MAX_CONTENT_LENGTH=7)\n"
        "app.config.from_mapping(TESTING=False)\n",
    )

    app = build("shop")

    keys = "SESSION_COOKIE_NAME", "MAX_CONTENT_LENGTH", "SESSION_COOKIE_SAMESITE"
    assert ["theirs", 7, "Lax"] == [app.config[key] for key in keys]


@pytest.mark.parametrize(
    "line",
    ["config.from_object(given)", "config.from_mapping(given)", "config.from_mapping(**given)",
     "config.update(given)", "config.from_object('settings'); config.from_object(given)"],
)  # fmt: skip
def test_a_factory_receives_the_configuration(project: Path, build: Build, line: str) -> None:
    """The argument of a factory works as a mapping and an object, and has no defaults."""
    (project / "settings.py").write_text("MAX_CONTENT_LENGTH = 7\n")
    write(
        project,
        "def create_app(given):\n"
        "    app = Flask(__name__)\n"
        "    config = app.config\n"
        "    config['MAX_CONTENT_LENGTH'] = 7\n"
        f"    {line}\n"
        "    app.config['SEEN'] = given['TITLE'], given.TITLE, 'NONE' in given, len(dict(given))\n"
        "    return app\n",
    )

    app = build("shop", TITLE="Shop")

    assert (7, ("Shop", "Shop", False, 8)) == (app.config["MAX_CONTENT_LENGTH"], app.config["SEEN"])


# -- where things are ----------------------------------------------------------------------------


def test_the_instance_folder_is_the_tenants(project: Path, build: Build, tmp_path: Path) -> None:
    """`instance_path` is the tenant's folder, even if the app names another folder."""
    write(
        project,
        "relative = Flask(__name__, instance_relative_config=True)\n"
        "explicit = Flask(__name__, None, 'static', None, False, False, 'templates', '/srv')\n"
        "app = Flask(__name__, instance_path='/srv/shop')\n"
        "paths = [one.instance_path for one in (relative, explicit, app)]\n"
        "app.config['PATHS'] = [*paths, relative.config.root_path]\n",
    )

    app = build("shop")

    assert [str(tmp_path / "instance/acme")] * 4 == app.config["PATHS"]


@pytest.mark.parametrize(
    "name", ["__name__", "'shop'", "__name__.split('.')[0]", "'__main__'", "'our shop'"]
)
def test_the_root_is_the_folder_of_the_code(project: Path, build: Build, name: str) -> None:
    """Whatever the import name is, the root is the folder of the code, and the logger private."""
    write(project, f"app = Flask({name})\n")

    app = build("shop")

    assert (str(project), "acme") == (app.root_path, app.logger.name.partition("@")[2])


def test_an_app_in_a_src_folder_is_found(tmp_path: Path, project: Path, build: Build) -> None:
    """With `APP_DIR = "…/src"`, packages in `src` are found, with their templates."""
    package = project / "src/shop"
    (package / "templates").mkdir(parents=True)
    (package / "templates/page.html").write_text("{{ config.TITLE }}")
    (package / "__init__.py").write_text(
        "from flask import Flask, render_template\n"
        "app = Flask(__name__)\n"
        "app.add_url_rule('/', 'page', lambda: render_template('page.html'))\n"
    )

    app = build("shop", APP_DIR=str(project / "src"), TITLE="Shop")

    assert "Shop" == get(app).text
    assert not (tmp_path / "instance/acme/instance").exists()


def test_each_tenant_has_its_own_object(project: Path, build: Build) -> None:
    """A Flask object in a module exists once for each tenant, also if the module is installed."""
    write(project, "app = Flask(__name__)\n")

    acme, globex = build("shop"), build("shop", "globex")

    assert acme is not globex
    assert ["shop@acme", "shop@globex"] == [acme.name, globex.name]


def test_an_installed_application_is_private(
    project: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application on `sys.path` exists once for each tenant, like one in `APP_DIR`."""
    write(project, "app = Flask(__name__)\n", name="installed_shop")
    monkeypatch.syspath_prepend(project)
    other = tmp_path / "empty"
    other.mkdir()

    apps = [build("installed_shop", name, APP_DIR=str(other)) for name in ("acme", "globex")]

    assert [f"acme-{KEY}", f"globex-{KEY}"] == [app.secret_key for app in apps]


def test_endpoints_are_registered_on_the_app(project: Path, build: Build) -> None:
    """`BLUEPRINTS` adds endpoints to an existing application."""
    write(project, "app = Flask(__name__)\napp.add_url_rule('/own', 'own', lambda: 'own')\n")

    app = build("shop", BLUEPRINTS=["landing"])

    assert ("own", 201) == (get(app, "/own").text, get(app).status_code)


def test_a_call_of_run_is_ignored(
    project: Path, build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    """A module that calls `app.run()` when it is imported starts no server."""
    write(project, "app = Flask(__name__)\napp.run(debug=True)\n")

    app = build("shop")

    assert ["app.run_ignored"] == [record.message for record in caplog.records]
    assert "run" not in vars(app)


def test_any_answer_is_a_good_build(project: Path, build: Build) -> None:
    """The first request may get 401, 404 or 500; only the reason of a 500 is reported."""
    write(
        project,
        "from flask import abort\n"
        "def create_app(status):\n"
        "    app = Flask(__name__)\n"
        "    app.before_request(lambda: abort(status) if status < 500 else 1 / 0)\n"
        "    return app\n",
    )

    found = [check_app(build(f"shop:create_app({status})")) for status in (401, 404, 500)]

    assert [401, 404, 500] == [one.status for one in found]
    assert [type(None), type(None), ZeroDivisionError] == [type(one.error) for one in found]


# -- errors --------------------------------------------------------------------------------------

FAILING = """
import asyncio, sys

def raises(): raise ValueError("no broker")
def exits(): sys.exit(3)
def none(): pass
def text(): return "app"
def two(environ, start_response): pass
def three(a, b, c): pass
async def later(): return Flask(__name__)
def named(config): return {"production": Flask}[config](__name__)
def filed(config): Flask(__name__).config.from_pyfile(config)
class Wsgi:
    def __call__(self, environ, start_response): pass
wsgi = Wsgi()
app = 7
"""


PROBLEMS = {
    "shop:nothing": "has no 'nothing'; name the module that contains the Flask object or its "
    "factory.",
    "shop": "has no 'app' or 'create_app'; name the module that contains the Flask object or its "
    "factory.",
    "shop:app": "is an object of type int, not a Flask object; name a Flask object, or its "
    "factory.",
    "shop:wsgi": "is an object of type Wsgi, not a Flask object; other WSGI applications need "
    "ISOLATION = 'process', which comes with a later version of Tenantry.",
    "shop:raises": "fails to build: ValueError: no broker (shop.py:6); fix it.",
    "shop:exits": "fails to build: SystemExit: 3 (shop.py:7); fix it.",
    "shop:none": "returns None; end the function with: return app.",
    "shop:text": "returns an object of type str, not a Flask object; name a Flask",
    "shop:two": "requires 2 parameters (environ, start_response), but a factory receives at most "
    "one; write the arguments: 'shop:two(…)'; other WSGI applications need ISOLATION",
    "shop:three": "requires 3 parameters (a, b, c), but a factory receives at most one; write the "
    "arguments: 'shop:three(…)'.",
    "shop:later": "is an async function; write a function that is not async.",
    "shop:named": "fails to build: TypeError: the factory uses its argument as a name, but the "
    "argument is the tenant's configuration; write the argument in 'APP', as in "
    "\"shop:create_app('production')\" (shop.py:13); fix it.",
    "shop:filed": "fails to build: ValueError: the factory uses its argument as a file",
    "shop.models:app": "fails to import: ModuleNotFoundError: No module named 'shop.models'",
    "broken:app": "fails to import: ZeroDivisionError: division by zero (broken.py:3); fix it.",
}


@pytest.mark.parametrize("text", PROBLEMS)
def test_an_error_names_the_application_and_the_remedy(
    project: Path, build: Build, text: str
) -> None:
    """Each error is one line with the value of `APP`, what was found, and what to do."""
    write(project, FAILING)
    write(project, "1 / 0\n", name="broken")

    with pytest.raises(ApplicationError) as raised:
        build(text)

    problem = f"application {text!r} {PROBLEMS[text]}"
    assert problem == str(raised.value)[: len(problem)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("shop/wsgi.py:app", "write 'shop.wsgi:app'."),
        ("shop wsgi", "expected 'module:app'"),
        ("shop:app.wsgi_app", "expected 'module:app'"),
        ("shop:create_app(", "expected 'module:app'"),
        ("shop:create_app(name)", "expected only literals as arguments, such as 'x' or 7."),
        ("shop:create_app(**{})", "expected only literals as arguments, not **."),
        ("tenantry.wsgi:application", "expected an application of your own"),
        ("", "expected 'module:app'"),
    ],
)
def test_a_value_in_another_notation_is_refused(build: Build, text: str, problem: str) -> None:
    """A value that is not in gunicorn's notation is a problem of the tenant file."""
    with pytest.raises(TenantFileError, match=r"'APP': found") as raised:
        build(text)

    assert problem in str(raised.value)


def test_an_object_of_a_shared_module_is_refused(project: Path, build: Build) -> None:
    """A Flask object that several tenants would share is an error."""
    shared = "__shared__ = True\nfrom flask import Flask\napp = Flask(__name__)\n"
    (project / "shop.py").write_text(shared)

    with pytest.raises(ApplicationError, match="several tenants would share it"):
        build("shop")


def test_a_failed_build_leaves_nothing_behind(project: Path, build: Build) -> None:
    """If an application fails after it has created a Flask object, the object is closed."""
    write(project, "app = Flask(__name__)\nraise ValueError('late')\n")

    with pytest.raises(ApplicationError, match="late"):
        build("shop")


def test_a_client_with_endpoints_uses_no_route_of_the_app(
    project: Path, host: Host, write_tenant: Callable[..., Path]
) -> None:
    """A client that may use only some endpoints may use none of the application's own routes."""
    write(project, "app = Flask(__name__)\napp.add_url_rule('/own', 'own', lambda: 'own')\n")
    key = "k" * 40
    hashed = hash_client_key(key)
    clients = {
        "all": hash_client_key(f"{key}-all"),
        "one": {"key": hashed, "endpoints": ["landing"]},
    }
    write_tenant("acme", APP="shop", APP_DIR=str(project), CLIENTS=clients)
    host.load()
    client = Client(host)

    found = [
        client.get(path, headers={"X-API-Key": used}).status_code
        for path in ("/acme/own", "/acme/")
        for used in (key, f"{key}-all")
    ]

    assert [403, 200, 201, 201] == found
