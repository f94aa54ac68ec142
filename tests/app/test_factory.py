"""`create_app` builds a tenant's own Flask app from every accepted description of the tenant."""

import logging
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, session, url_for
from werkzeug.exceptions import NotFound, SecurityError
from werkzeug.test import Client

from conftest import KEY
from tenantry.app.factory import close_app, create_app
from tenantry.errors import EndpointError, TenantFileError
from tenantry.tenants.model import Tenant
from tenantry.tenants.validation import parse_tenant

Create = Callable[..., Flask]

GOOD: Mapping[str, Any] = {
    "APP_NAME": "acme",
    "SECRET_KEY": KEY,
    "BLUEPRINTS": ["landing"],
    "PROPAGATE_EXCEPTIONS": True,
}


class ConfigClass:
    """A class with upper-case names, as in Flask's tutorial."""

    APP_NAME = "acme"
    SECRET_KEY = KEY
    BLUEPRINTS = ["landing"]  # noqa: RUF012 - as in Flask's tutorial
    PROPAGATE_EXCEPTIONS = True
    lower_case = "not a key"


class ConfigObject(ConfigClass):
    """A configuration class with the keys of `GOOD` and a computed key."""

    @property
    def APP_NAME(self) -> str:  # type: ignore[override]  # noqa: N802
        """Return the name."""
        return "acme"


def _module() -> types.ModuleType:
    module = types.ModuleType("settings_of_acme")
    module.__dict__.update(GOOD)
    return module


@pytest.fixture(name="create")
def _create(data_dir: Path) -> Iterator[Create]:
    """Return `create_app` for the data folder, and by default for `GOOD` with keys replaced.

    Call `create(config)` or `create(SECRET_KEY="…")`. The apps are closed after the test.
    """
    apps: list[Flask] = []

    def create(config: object = None, **keys: object) -> Flask:
        apps.append(create_app({**GOOD, **keys} if config is None else config, data_dir=data_dir))
        return apps[-1]

    yield create
    for app in apps:
        close_app(app)


# -- input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        parse_tenant("acme", GOOD, data_dir=Path("instance")),
        _module(),
        ConfigClass,
        ConfigClass(),
        ConfigObject(),
        dict(GOOD),
        types.MappingProxyType({**GOOD, "lower": 1, 7: 8}),
        types.SimpleNamespace(**GOOD),
    ],
    ids=lambda config: type(config).__name__,
)
def test_every_form_of_configuration_is_accepted(create: Create, config: object) -> None:
    """A tenant, module, class, instance or mapping with upper-case names gives the same app."""
    app = create(config)

    assert ("tenant.acme", KEY, True) == (
        app.name,
        app.secret_key,
        app.config["PROPAGATE_EXCEPTIONS"],
    )
    assert 201 == Client(app).get("/").status_code


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"APP_NAME": "Acme Ltd."}, "acme-ltd"),
        ({"APP_NAME": "acme.example"}, "acme-example"),
        ({"APP_NAME": "3M"}, "dict"),
        ({}, "dict"),
        (type("GlobexConfig", (), {}), "globexconfig"),
        (types.ModuleType("settings.globex"), "globex"),
        (type("_", (), {}), "app"),
    ],
)
def test_the_name_comes_from_app_name_or_the_class(create: Create, config: Any, name: str) -> None:
    """The name comes from `APP_NAME` if possible, and otherwise from the class or module."""
    values = {"SECRET_KEY": KEY, "BLUEPRINTS": ["landing"]}
    if isinstance(config, dict):
        config |= values
    else:
        for key, value in values.items():
            setattr(config, key, value)

    app = create(config)

    assert (f"tenant.{name}", f"/{name}") == (app.name, app.config["URL_PREFIX"])


def test_an_error_in_a_class_without_a_file_has_its_name(create: Create) -> None:
    """A class typed into an interpreter has no file, so the message names the class."""
    space: dict[str, Any] = {"__name__": "__nowhere__"}
    exec("class Typed:\n SECRET_KEY = 'short'\n BLUEPRINTS = ['landing']", space)

    with pytest.raises(TenantFileError) as refused:
        create(space["Typed"])

    assert str(refused.value).startswith("Typed: 'SECRET_KEY': ")


def test_an_error_in_a_class_has_its_file(create: Create) -> None:
    """The message names the file of the class and the key."""

    class Broken(ConfigClass):
        SECRET_KEY = "short"

    with pytest.raises(TenantFileError) as refused:
        create(Broken)

    assert f"{__file__}: 'SECRET_KEY': " in str(refused.value)


def test_an_object_may_set_development_keys(create: Create) -> None:
    """Unlike a tenant file, an object may set `DEBUG` and `TESTING`."""
    app = create(DEBUG=True, TESTING=True)

    assert (True, True) == (app.debug, app.testing)


def test_values_are_copies(create: Create) -> None:
    """A change to one app's configuration affects neither the source dict nor another app."""
    source = {**GOOD, "MAIL": {"to": ["ops"]}, "BLUEPRINTS": ["landing"]}
    acme, globex = create(source), create({**source, "APP_NAME": "globex"})

    acme.config["MAIL"]["to"].append("evil")
    acme.config["BLUEPRINTS"].append("evil")

    assert ({"to": ["ops"]}, ["landing"]) == (source["MAIL"], source["BLUEPRINTS"])
    assert ({"to": ["ops"]}, ["landing"]) == (globex.config["MAIL"], globex.config["BLUEPRINTS"])


def test_two_apps_of_a_tenant_share_no_mutable_value(create: Create) -> None:
    """A change to the old app's configuration does not affect the new app or the tenant."""
    tenant: Tenant = parse_tenant("acme", {**GOOD, "MAIL": []}, data_dir=Path("instance"))
    old, new = create(tenant), create(tenant)

    old.config["MAIL"].append("evil")

    assert ([], []) == (new.config["MAIL"], tenant.flask["MAIL"])


class Properties(ConfigClass):
    """A class with keys that have a value on an instance only."""

    @property
    def MAIL(self) -> str:  # noqa: N802
        """Return a value."""
        return "ops"

    @cached_property
    def PHONE(self) -> str:  # noqa: N802
        """Return a value."""
        return "1"

    def FAX(self) -> str:  # noqa: N802
        """Return a value."""
        return "2"


def test_a_property_of_a_class_is_refused(create: Create) -> None:
    """A property or function of a configuration class is an error with key and remedy."""
    with pytest.raises(TenantFileError) as refused:
        create(Properties)

    lines = str(refused.value).splitlines()
    remedy = "pass an instance of the class, or write a plain value."
    assert [
        f"{__file__}: 'FAX': found a function; write the value itself.",
        f"{__file__}: 'MAIL': found a property; {remedy}",
        f"{__file__}: 'PHONE': found a cached_property; {remedy}",
    ] == lines


def test_a_property_of_an_instance_gives_its_value(create: Create) -> None:
    """Properties and cached properties of an instance are computed and become keys."""

    class Instance(Properties):
        FAX = "2"  # type: ignore[assignment]

    app = create(Instance())

    assert ("ops", "1") == (app.config["MAIL"], app.config["PHONE"])


def test_a_value_that_cannot_be_copied_is_refused(create: Create) -> None:
    """Two apps would share the value, so the error names the key of the value."""
    with pytest.raises(TenantFileError, match="'MAIL': found a lock that cannot be copied"):
        create(MAIL=threading.Lock())


def test_every_flask_key_reaches_the_app(create: Create) -> None:
    """Each key of Flask's configuration, and of an extension, is in `app.config`."""
    keys: dict[str, Any] = {
        key: value for key, value in Flask.default_config.items() if key not in GOOD
    }
    keys |= {"SESSION_COOKIE_NAME": "mine", "SERVER_NAME": "localhost", "MAIL_PORT": 25}
    keys |= {"SECRET_KEY_FALLBACKS": ["o" * 32], "MAX_CONTENT_LENGTH": 7, "TRUSTED_HOSTS": ["a"]}

    app = create(**keys)

    assert keys == {key: app.config[key] for key in keys}


# -- the app -----------------------------------------------------------------------------------


def test_each_app_has_its_own_logger(create: Create) -> None:
    """An app's logger has the tenant's name, so a handler of one app gets no records of another."""
    acme, globex = create(), create(APP_NAME="globex")

    assert ["tenant.acme", "tenant.globex"] == [acme.logger.name, globex.logger.name]
    assert logging.getLogger("tenant.acme") is acme.logger


def test_an_app_has_its_own_folder(create: Create, data_dir: Path) -> None:
    """Instance path and root path are `<data>/<name>`, which is created with mode 0700."""
    app = create()

    assert (str(data_dir / "acme"),) * 2 == (app.instance_path, app.root_path)
    assert 0o700 == (data_dir / "acme").stat().st_mode & 0o777


def test_without_a_static_folder_there_is_no_static_route(create: Create) -> None:
    """No file of a tenant's data folder is served if the data folder has no folder `static`."""
    app = create()

    assert ["landing.landingpage"] == [rule.endpoint for rule in app.url_map.iter_rules()]


def test_a_static_folder_is_served(create: Create, data_dir: Path) -> None:
    """Files in `<data>/<name>/static` are served under `/static/`, and no other file is."""
    (data_dir / "acme/static").mkdir(parents=True)
    (data_dir / "acme/static/logo.txt").write_text("acme's")
    (data_dir / "acme/acme.sqlite3").write_text("secret")
    client = Client(create())

    with client.get("/static/logo.txt") as found, client.get("/static/../acme.sqlite3") as no:
        assert (200, b"acme's", 404) == (found.status_code, found.get_data(), no.status_code)


def test_a_failing_endpoint_leaves_no_app(create: Create) -> None:
    """The error names the endpoint, and the endpoints loaded before it are unloaded."""
    with pytest.raises(EndpointError, match="no endpoint named 'lnding'"):
        create(BLUEPRINTS=["landing", "lnding"])


def test_an_app_without_a_host_checks_trusted_hosts(create: Create) -> None:
    """Without the host's layers, Flask rejects host names that `TRUSTED_HOSTS` does not list."""
    client = Client(create(TRUSTED_HOSTS=["acme.test"]))

    assert 201 == client.get("/", base_url="http://acme.test").status_code
    with pytest.raises(SecurityError):
        client.get("/", base_url="http://evil.test")


# -- sessions and redirects ---------------------------------------------------------------------


def with_session(app: Flask) -> Flask:
    """Add a login and pages that show the user and a URL, and return the app."""

    @app.get("/login")
    def login() -> str:
        session["user"] = "ada"
        return "welcome"

    @app.get("/who")
    def who() -> str:
        return str(session.get("user"))

    @app.get("/where")
    def where() -> str:
        return url_for("who")

    return app


@pytest.mark.parametrize("root", ["", "/acme", "/behind/proxy/acme"])
def test_a_session_cookie_has_the_root_of_its_request(create: Create, root: str) -> None:
    """The session cookie has the tenant's name, and the request's root as path, proxy or not."""
    client = Client(with_session(create()))

    cookie = client.get("/login", base_url=f"http://localhost{root}/").headers["Set-Cookie"]

    assert cookie.startswith("session_acme=")
    assert ["HttpOnly", f"Path={root or '/'}", "SameSite=Lax"] == sorted(cookie.split("; ")[1:])


def test_reading_the_session_adds_vary_cookie(create: Create) -> None:
    """A response that depends on the session, even an empty one, must not be cached for others."""
    app = with_session(create())
    client = Client(app)

    vary = [client.get(path).headers.get("Vary") for path in ("/who", "/")]

    assert ["Cookie", None] == vary


def test_each_app_has_its_own_abort_codes(create: Create) -> None:
    """A code that is added to one app's `aborter` is unknown to another."""
    acme, globex = create(), create()
    acme.aborter.mapping[499] = NotFound

    with pytest.raises(NotFound):
        acme.aborter(499)
    with pytest.raises(LookupError):
        globex.aborter(499)


def test_a_session_cookie_of_an_https_request_is_secure(create: Create) -> None:
    """The cookie of a response over HTTPS has the attribute `Secure`."""
    client = Client(with_session(create()))

    cookie = client.get("/login", base_url="https://localhost/acme/").headers["Set-Cookie"]

    assert "; Secure" in cookie


def test_a_configured_cookie_path_is_kept(create: Create) -> None:
    """A tenant's own `SESSION_COOKIE_PATH` and `SESSION_COOKIE_NAME` are used."""
    app = create(SESSION_COOKIE_PATH="/acme/shop", SESSION_COOKIE_NAME="mine")

    cookie = Client(with_session(app)).get("/login").headers["Set-Cookie"]

    assert cookie.startswith("mine=")
    assert "; Path=/acme/shop" in cookie


def _cookie_of(app: Flask) -> str:
    set_cookie = Client(app).get("/login").headers["Set-Cookie"]
    return set_cookie.partition(";")[0].partition("=")[2]


@pytest.mark.parametrize(("tenant", "user"), [("acme", "ada"), ("globex", "None")])
def test_a_copied_session_is_valid_at_its_own_tenant_only(
    create: Create, tenant: str, user: str
) -> None:
    """A tenant does not accept a session copied from another tenant with the same key."""
    stolen = _cookie_of(with_session(create()))
    app = with_session(create(APP_NAME=tenant))

    answer = Client(app, use_cookies=False).get(
        "/who", headers={"Cookie": f"session_{tenant}={stolen}"}
    )

    assert user == answer.text


def test_a_session_signed_with_an_old_key_is_accepted(create: Create) -> None:
    """`SECRET_KEY_FALLBACKS` verify sessions that were signed before the key changed."""
    old = _cookie_of(with_session(create(SECRET_KEY="o" * 32)))
    app = with_session(create(SECRET_KEY_FALLBACKS=["o" * 32]))

    answer = Client(app, use_cookies=False).get("/who", headers={"Cookie": f"session_acme={old}"})

    assert "ada" == answer.text


def test_urls_have_the_prefix(create: Create) -> None:
    """`url_for` adds the tenant's prefix, during a request and outside one."""
    app = with_session(create(SERVER_NAME="localhost"))

    inside = Client(app).get("/where", base_url="http://localhost/acme/").text
    with app.app_context():
        outside = url_for("who", _external=False)

    assert ("/acme/who", "/acme/who") == (inside, outside)


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("", "/acme/"),
        ("/shop", "/acme/shop/"),
        ("/shop?next=http://evil.test/", "/acme/shop/?next=http://evil.test/"),
        ("//shop//", "/acme/shop/"),
        ("/list//a", "/acme/list/a/"),
        ("/list/\\evil.test", "/acme/list/%5Cevil.test/"),
        ("/list/@evil.test#x", "/acme/list/@evil.test%23x/"),
    ],
)
def test_redirects_of_routing_are_relative(create: Create, path: str, location: str) -> None:
    """A redirect that adds or removes a slash does not depend on the `Host` header."""
    app = create()
    app.add_url_rule("/shop/", view_func=lambda: "shop")
    app.add_url_rule("/list/<name>/", "list", view_func=lambda name: name)
    name, _, query = path.partition("?")
    environ = {"PATH_INFO": name, "SCRIPT_NAME": "/acme", "QUERY_STRING": query}

    answer = Client(app).get("/", headers={"Host": "evil.test"}, environ_overrides=environ)

    assert (308, location) == (answer.status_code, answer.headers["Location"])


@pytest.mark.parametrize("path", ["//evil.test", "//evil.test/..", "///evil.test"])
def test_a_redirect_at_the_root_stays_on_the_host(create: Create, path: str) -> None:
    """An app mounted at the root redirects `//evil.test` to a path, not to another host."""
    app = create()
    app.add_url_rule("/<path:rest>/", "rest", view_func=lambda rest: rest)
    environ = {"PATH_INFO": path, "SCRIPT_NAME": ""}

    answer = Client(app).get("/", environ_overrides=environ)

    assert 308 == answer.status_code
    assert answer.headers["Location"].startswith("/evil.test/")
