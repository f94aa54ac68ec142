"""Tenants of one host are isolated from each other where plain Flask apps would not be.

test_audit.py tests leaks that are only detected, and test_loader.py tests tenant files.
"""

import gc
import logging
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, g, render_template_string, request_started, url_for
from flask_restful import Api, Resource
from werkzeug.test import Client

import leaks
from conftest import KEY
from tenantry.app.factory import close_app, create_app
from tenantry.errors import EndpointError
from tenantry.host import Host

WriteTenant = Callable[..., Path]

LOGIN = """
from flask import make_response, redirect, request, session

@shop_bp.get("/login/<name>")
def login(name):
    session["user"] = name
    return name

@shop_bp.get("/who")
def who():
    return session.get("user", "nobody")

@shop_bp.get("/set/<name>/<int:size>/<int:count>")
def cookies(name, size, count):
    answer = make_response("set")
    for number in range(count):
        answer.set_cookie(f"{name}{number or ''}", "x" * size, path="/", domain="localhost")
    return answer
"""


@pytest.fixture(name="shop")
def _shop(corp: Path) -> str:
    """Return the name of an endpoint with a login view and a view that sets origin-wide cookies."""
    return leaks.write_endpoint(corp, "shop", blueprint=LOGIN)


@pytest.fixture(name="visit")
def _visit(shop: str, host: Host, client: Client, write_tenant: WriteTenant) -> Callable[..., str]:
    """Return a function that requests a path in a shared browser and returns the text."""
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[shop])
    host.load()
    return lambda path: client.get(path).text


# -- cookies ------------------------------------------------------------------------------------


def test_logins_at_two_tenants_are_independent(visit: Callable[..., str]) -> None:
    """Logging in at one tenant neither logs the visitor in nor logs the visitor out at another."""
    visit("/acme/login/ada")
    before = visit("/globex/who")
    visit("/globex/login/bob")

    assert ("nobody", "ada", "bob") == (before, visit("/acme/who"), visit("/globex/who"))


def test_a_tenant_cannot_set_another_tenants_session(visit: Callable[..., str]) -> None:
    """A tenant cannot replace another tenant's session cookie by setting a cookie with its name."""
    visit("/acme/login/ada")
    visit("/globex/set/session_acme/9/1")

    assert "ada" == visit("/acme/who")


def test_large_cookies_are_not_sent_to_other_tenants(
    visit: Callable[..., str], client: Client
) -> None:
    """Large cookies of one tenant do not cause 431 responses at other tenants."""
    visit("/acme/login/ada")
    visit("/globex/set/large/3900/3")

    assert 200 > len(client.get("/acme/who").request.headers["Cookie"])


def test_a_browser_sends_the_cookies_of_one_tenant_only(
    shop: str, host: Host, client: Client, write_tenant: WriteTenant
) -> None:
    """A browser that is logged in at 20 tenants sends one session cookie per request."""
    for number in range(20):
        write_tenant(f"t{number}", BLUEPRINTS=[shop])
    host.load()
    for number in range(20):
        client.get(f"/t{number}/login/ada")

    sent = client.get("/t7/who").request.headers["Cookie"]

    assert (1, "session_t7") == (sent.count("="), sent.partition("=")[0])
    assert 1024 > len(sent)


# -- state of apps -----------------------------------------------------------------------------


@pytest.fixture(name="app_of")
def _app_of(data_dir: Path) -> Iterator[Callable[..., Flask]]:
    """Return a function that builds a tenant's app. All apps are closed after the test."""
    apps: list[Flask] = []

    def make(name: str, *endpoints: str, **keys: object) -> Flask:
        values = {"APP_NAME": name, "SECRET_KEY": f"{name}-{KEY}", "BLUEPRINTS": [*endpoints]}
        apps.append(create_app(values | keys, data_dir=data_dir))
        return apps[-1]

    yield make
    for app in apps:
        close_app(app)


def api_of(app: Flask) -> Api:
    """Return the Flask-RESTful `Api` of the app's private copy of an endpoint."""
    package = app.extensions["tenantry"][0].package
    api: Api = sys.modules[f"{package}.blueprint"].__dict__["shop_api"]
    return api


NAMED_API = """
shop_api = Api(shop_bp)
"""


class LateResource(Resource):
    """A resource that a test adds to an app that is already built."""

    def get(self) -> str:
        """Return an empty response."""
        return "late"


def test_each_api_belongs_to_its_own_app(corp: Path, app_of: Callable[..., Flask]) -> None:
    """Each app has its own Flask-RESTful `Api` object, which refers to that app only."""
    name = leaks.write_endpoint(corp, "shop", blueprint=NAMED_API)
    apps = [app_of(one, name) for one in ("acme", "globex", "initech")]

    assert apps == [api_of(app).blueprint_setup.app for app in apps]


def test_changes_to_one_apps_api_do_not_affect_another(
    corp: Path, app_of: Callable[..., Flask]
) -> None:
    """Adding a resource or changing a representation at run time affects only one app."""
    name = leaks.write_endpoint(corp, "shop", blueprint=NAMED_API)
    acme, globex = app_of("acme", name), app_of("globex", name)
    rules = [str(rule) for rule in globex.url_map.iter_rules()]

    api_of(acme).add_resource(LateResource, "/late")
    api_of(acme).representations["application/json"] = pytest.fail

    assert ("/late" in str(acme.url_map), rules) == (
        True,
        [str(rule) for rule in globex.url_map.iter_rules()],
    )
    assert b"1\n" == Client(globex).get("/shop/").data


def test_a_changed_setting_does_not_affect_another_app(
    corp: Path, app_of: Callable[..., Flask]
) -> None:
    """If Flask-RESTful changes `RESTFUL_JSON` in one app, other apps keep their settings."""
    resources = "\nPage.get = lambda self: {'a': 1}\n"
    name = leaks.write_endpoint(corp, "shop", resources=resources)
    keys = {"RESTFUL_JSON": {"sort_keys": True}}
    acme, globex = app_of("acme", name, DEBUG=True, **keys), app_of("globex", name, **keys)

    answers = [Client(app).get("/shop/").data for app in (acme, globex)]

    assert [b'{\n    "a": 1\n}\n', b'{"a": 1}\n'] == answers


def test_changes_to_a_blueprint_do_not_affect_another_app(
    corp: Path, app_of: Callable[..., Flask]
) -> None:
    """Changing a blueprint's hooks or template folder in one app does not affect later apps."""
    name = leaks.write_endpoint(corp, "shop")
    acme = app_of("acme", name)
    own = acme.extensions["tenantry"][0].blueprint
    own.before_request_funcs.setdefault(None, []).append(lambda: "hijacked")
    own.template_folder = "/elsewhere"

    later = app_of("globex", name)

    assert b"1\n" == Client(later).get("/shop/").data
    assert later.extensions["tenantry"][0].blueprint.template_folder is None


def test_a_key_changed_while_serving_affects_one_app(app_of: Callable[..., Flask]) -> None:
    """Changing `SECRET_KEY` in a running app affects neither other tenants nor a rebuilt app."""
    acme = app_of("acme", "landing")
    acme.config.update(SECRET_KEY="changed")

    keys = [app_of(name, "landing").config["SECRET_KEY"] for name in ("globex", "acme")]

    assert [f"globex-{KEY}", f"acme-{KEY}"] == keys


def test_an_endpoint_listed_under_two_names_is_refused(app_of: Callable[..., Flask]) -> None:
    """Listing one endpoint as both `landing` and `tenantry.endpoints.landing` is an error."""
    with pytest.raises(EndpointError, match=r"'tenantry\.endpoints\.landing' fails to register"):
        app_of("acme", "landing", "tenantry.endpoints.landing")


# -- nested requests, and what a request leaves behind ---------------------------------------------


def test_a_nested_request_to_another_app_has_its_own_g(app_of: Callable[..., Flask]) -> None:
    """A request made inside another app's request gets its own `g`; the outer `g` is unchanged."""
    acme, globex = app_of("acme", "landing"), app_of("globex", "landing")
    globex.add_url_rule("/own", "own", lambda: str(g.get("user")))

    def nested() -> str:
        g.user = "ada"
        return f"{Client(globex).get('/own').text} {g.user}"

    acme.add_url_rule("/nested", "nested", nested)

    assert "None ada" == Client(acme).get("/nested").text


PUSHING = """
from flask import current_app, g

@shop_bp.get("/push")
def push():
    current_app.app_context().push()
    g.user = "ada"
    return "pushed"

@shop_bp.get("/left")
def left():
    return str(g.get("user"))

@shop_bp.get("/torn")
def torn():
    g.is_torn = True
    return "torn"

@shop_bp.teardown_app_request
def tear(error):
    if g.pop("is_torn", False):
        raise ValueError("torn")

@shop_bp.app_errorhandler(Exception)
def catch(error):
    return "caught", 418
"""


@pytest.fixture(name="status_of")
def _status_of(
    corp: Path, host: Host, client: Client, write_tenant: WriteTenant
) -> Callable[[str], tuple[int, str]]:
    """Return a function that requests a path of a tenant whose views misbehave."""
    pushing = leaks.write_endpoint(corp, "shop", blueprint=PUSHING)
    write_tenant("acme", BLUEPRINTS=[pushing])
    write_tenant("globex")
    host.load()

    def get(path: str) -> tuple[int, str]:
        with client.get(path) as answer:
            return answer.status_code, answer.mimetype

    return get


def test_a_context_left_pushed_ends_with_its_request(
    status_of: Callable[[str], Any], client: Client
) -> None:
    """An app context that a view pushes but never pops ends before the thread's next request."""
    status_of("/acme/push")

    assert "None" == client.get("/acme/left").text


def test_an_exception_of_a_teardown_is_a_500(status_of: Callable[[str], Any]) -> None:
    """If a tenant's teardown function raises, that tenant answers 500, and other tenants serve."""
    assert (500, "application/problem+json") == status_of("/acme/torn")
    assert (201, "application/json") == status_of("/globex/")


def test_a_handler_for_all_errors_affects_one_app(status_of: Callable[[str], Any]) -> None:
    """A catch-all error handler of one tenant does not change other tenants' 404 responses."""
    assert [418, 404, 404] == [
        status_of(path)[0] for path in ("/acme/none", "/globex/none", "/none")
    ]


KEEPING = """
import threading

from flask import request

_local = threading.local()

@shop_bp.get("/keep")
def keep():
    before = getattr(_local, "user", None)
    _local.user = request.root_path
    return str(before)
"""


def test_a_thread_local_belongs_to_one_tenant(
    corp: Path, host: Host, client: Client, write_tenant: WriteTenant
) -> None:
    """Tenants that use one endpoint do not share the endpoint's `threading.local`."""
    keeping = leaks.write_endpoint(corp, "shop", blueprint=KEEPING)
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[keeping])
    host.load()

    seen = [client.get(f"/{name}/keep").text for name in ("acme", "globex", "acme")]

    assert ["None", "None", "/acme"] == seen


def test_a_url_outside_a_request_has_the_tenants_prefix(
    corp: Path, app_of: Callable[..., Flask]
) -> None:
    """In a `tenantry run` job, `url_for` uses `SERVER_NAME` and the tenant's URL prefix."""
    name = leaks.write_endpoint(corp, "shop")
    keys = {"SERVER_NAME": "h.example.org", "URL_PREFIX": "/a/acme"}
    with app_of("acme", name, **keys).app_context():
        url = url_for("shop.page")

    assert "http://h.example.org/a/acme/shop/" == url


# -- templates and logs -----------------------------------------------------------------------


def test_a_template_shows_no_secret(app_of: Callable[..., Flask]) -> None:
    """Templates never show secrets, neither a single key nor the whole configuration."""
    old, password = f"old-{KEY}", "Hunter2"
    url = f"sqlite:////nowhere/acme.sqlite3?password={password}"
    keys = {"SECRET_KEY_FALLBACKS": [old], "DATABASE_URI": url, "MAPS": {"key": 7}, "ECHO": old}
    app = app_of("acme", "landing", **keys)
    template = "{{ config.SECRET_KEY }} {{ config['DATABASE_URI'] }} {{ config }} {{ config.PAGE }}"
    items = "{% for key, value in config.items() %}{{ key }} {{ value }}{% endfor %}"
    app.config["PAGE"] = "size"

    with app.app_context():
        shown = render_template_string(template + items)

    assert [] == [one for one in (KEY, password) if one in shown + repr(app.config)]
    assert shown.startswith("******** ")
    assert ("size" in shown, url) == (True, app.config["DATABASE_URI"])


def test_a_template_redacts_values_made_from_secret(
    host: Host, write_tenant: WriteTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a template, any configuration value that contains a secret is redacted."""
    monkeypatch.setenv("ACME_WORD", "Hunter2-Hunter2")
    text = "from tenantry import secret\nWORD = 'is ' + secret('ACME_WORD')\n"
    write_tenant("acme", f"SECRET_KEY = {KEY!r}\nBLUEPRINTS = ['landing']\n{text}")
    host.load()
    mount = host.router.mounts[0]
    mount.ensure_instance()
    assert mount.instance is not None
    assert mount.instance.app is not None
    app = mount.instance.app()
    assert isinstance(app, Flask)

    with app.app_context():
        shown = render_template_string("{{ config.WORD }}") + repr(app.config)

    assert ("********", False) == (shown[:8], "Hunter2" in shown)


LOGGING = """
import logging
from pathlib import Path

logging.getLogger(__name__).addHandler(logging.FileHandler(Path(__file__).with_name("own.log")))

@shop_bp.record_once
def add(state):
    state.app.logger.addHandler(logging.FileHandler(Path(__file__).with_name("app.log")))
"""


def test_log_handlers_are_removed_with_their_app(corp: Path, data_dir: Path) -> None:
    """After an app is rebuilt, its logger has no old handlers, and old log files are closed."""
    name = leaks.write_endpoint(corp, "shop", blueprint=LOGGING)
    values = {"APP_NAME": "acme", "SECRET_KEY": KEY, "BLUEPRINTS": [name]}
    logger = logging.getLogger("tenant.acme")
    old = create_app(values, data_dir=data_dir)
    counts = []
    for _ in range(3):
        new = create_app(values, data_dir=data_dir)
        close_app(old)
        counts.append(len(logger.handlers))
        old = new
    close_app(old)

    assert [1, 1, 1, 0] == [*counts, len(logger.handlers)]


def test_a_tenant_may_have_a_modules_name(
    host: Host, client: Client, write_tenant: WriteTenant
) -> None:
    """A tenant file named `json.py` does not hide the standard module `json` from other tenants."""
    write_tenant("json")
    text = f"import json\nSECRET_KEY = json.loads('\"{KEY}\"')\nBLUEPRINTS = ['landing']\n"
    write_tenant("zebra", text)
    host.load()

    assert [201, 201] == [client.get(f"/{name}/").status_code for name in ("json", "zebra")]


# -- signals ------------------------------------------------------------------------------------

RECEIVING = """
from functools import partial

from flask import request_started

received = []

def receive(sender, **_):
    received.append(sender.name)

class Receiver:
    def receive(self, sender, **_):
        received.append(sender.name)

receiver, part = Receiver(), partial(lambda _, sender, **more: received.append(sender.name), 1)
request_started.connect(receive)
request_started.connect(receiver.receive)
request_started.connect(part, weak=False)
"""


def test_a_receiver_gets_signals_of_its_own_app_only(
    corp: Path, app_of: Callable[..., Flask]
) -> None:
    """A signal receiver that is connected without a sender gets only its own tenant's signals."""
    name = leaks.write_endpoint(corp, "shop", resources=RECEIVING)
    acme, globex = app_of("acme", name), app_of("globex", name)
    for app in (acme, globex, app_of("initech", "landing")):
        Client(app).get("/shop/").close()

    received = [
        sys.modules[f"{app.extensions['tenantry'][0].package}.resources"].__dict__["received"]
        for app in (acme, globex)
    ]
    assert [["tenant.acme"] * 3, ["tenant.globex"] * 3] == received


def test_receivers_are_removed_with_their_app(corp: Path, data_dir: Path) -> None:
    """A closed app can be freed, even if it connected a signal receiver with `weak=False`."""
    name = leaks.write_endpoint(corp, "shop", resources=RECEIVING)
    values = {"APP_NAME": "acme", "SECRET_KEY": KEY, "BLUEPRINTS": [name]}
    before = len(request_started.receivers)
    app = create_app(values, data_dir=data_dir)
    during, gone = len(request_started.receivers), weakref.ref(app)
    close_app(app)
    del app
    gc.collect()

    assert (before + 3, before, None) == (during, len(request_started.receivers), gone())
