"""`create_app` builds a tenant's Flask app from any valid form of configuration."""

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
    """A configuration class with upper-case attributes, as in Flask's tutorial."""

    APP_NAME = "acme"
    SECRET_KEY = KEY
    BLUEPRINTS = ["landing"]  # noqa: RUF012 - written as in Flask's tutorial
    PROPAGATE_EXCEPTIONS = True
    lower_case = "not a key"


class ConfigObject(ConfigClass):
    """A configuration object with the keys of `GOOD` and one computed key."""

    @property
    def APP_NAME(self) -> str:  # type: ignore[override]  # noqa: N802
        """Return the app's name."""
        return "acme"


def _module() -> types.ModuleType:
    module = types.ModuleType("settings_of_acme")
    module.__dict__.update(GOOD)
    return module


@pytest.fixture(name="create")
def _create(data_dir: Path) -> Iterator[Create]:
    """Return a function that calls `create_app` and closes each app after the test.

    Call `create(config)`, or `create(SECRET_KEY="…")` to replace keys of `GOOD`.
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
    """`create_app` accepts a `Tenant` object, a module, a class, an instance or a mapping."""
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
    """The app's name is `APP_NAME` if that key is set, and otherwise the class or module name."""
    values = {"SECRET_KEY": KEY, "BLUEPRINTS": ["landing"]}
    if isinstance(config, dict):
        config |= values
    else:
        for key, value in values.items():
            setattr(config, key, value)

    app = create(config)

    assert (f"tenant.{name}", f"/{name}") == (app.name, app.config["URL_PREFIX"])


def test_an_error_in_a_class_without_a_file_has_its_name(create: Create) -> None:
    """The error for a configuration class without a source file names the class."""
    space: dict[str, Any] = {"__name__": "__nowhere__"}
    exec("class Typed:\n SECRET_KEY = 'short'\n BLUEPRINTS = ['landing']", space)

    with pytest.raises(TenantFileError) as refused:
        create(space["Typed"])

    assert str(refused.value).startswith("Typed: 'SECRET_KEY': ")


def test_an_error_in_a_class_has_its_file(create: Create) -> None:
    """The error for an invalid configuration class names the class's source file and the key."""

    class Broken(ConfigClass):
        SECRET_KEY = "short"

    with pytest.raises(TenantFileError) as refused:
        create(Broken)

    assert f"{__file__}: 'SECRET_KEY': " in str(refused.value)


def test_an_object_may_set_development_keys(create: Create) -> None:
    """A configuration object may set `DEBUG` and `TESTING`; a tenant file may not."""
    app = create(DEBUG=True, TESTING=True)

    assert (True, True) == (app.debug, app.testing)


def test_values_are_copies(create: Create) -> None:
    """Changing one app's configuration changes neither the source dict nor another app."""
    source = {**GOOD, "MAIL": {"to": ["ops"]}, "BLUEPRINTS": ["landing"]}
    acme, globex = create(source), create({**source, "APP_NAME": "globex"})

    acme.config["MAIL"]["to"].append("evil")
    acme.config["BLUEPRINTS"].append("evil")

    assert ({"to": ["ops"]}, ["landing"]) == (source["MAIL"], source["BLUEPRINTS"])
    assert ({"to": ["ops"]}, ["landing"]) == (globex.config["MAIL"], globex.config["BLUEPRINTS"])


def test_two_apps_of_a_tenant_share_no_mutable_value(create: Create) -> None:
    """When an app is rebuilt, changes to the old app's configuration do not reach the new app."""
    tenant: Tenant = parse_tenant("acme", {**GOOD, "MAIL": []}, data_dir=Path("instance"))
    old, new = create(tenant), create(tenant)

    old.config["MAIL"].append("evil")

    assert ([], []) == (new.config["MAIL"], tenant.flask["MAIL"])


class Properties(ConfigClass):
    """A configuration class with properties. Properties have values only on an instance."""

    @property
    def MAIL(self) -> str:  # noqa: N802
        """Return a sample value."""
        return "ops"

    @cached_property
    def PHONE(self) -> str:  # noqa: N802
        """Return a sample value."""
        return "1"

    def FAX(self) -> str:  # noqa: N802
        """Return a sample value."""
        return "2"


def test_a_property_of_a_class_is_refused(create: Create) -> None:
    """A configuration class with a property or method is rejected; the error names the key."""
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
    """On a configuration instance, properties and cached properties become configuration keys."""

    class Instance(Properties):
        FAX = "2"  # type: ignore[assignment]

    app = create(Instance())

    assert ("ops", "1") == (app.config["MAIL"], app.config["PHONE"])


def test_a_value_that_cannot_be_copied_is_refused(create: Create) -> None:
    """`create_app` rejects a value that it cannot copy, because two apps would share that value."""
    with pytest.raises(TenantFileError, match="'MAIL': found a lock that cannot be copied"):
        create(MAIL=threading.Lock())


def test_every_flask_key_reaches_the_app(create: Create) -> None:
    """Keys of Flask and of Flask extensions reach `app.config`."""
    keys: dict[str, Any] = {
        key: value for key, value in Flask.default_config.items() if key not in GOOD
    }
    keys |= {"SESSION_COOKIE_NAME": "mine", "SERVER_NAME": "localhost", "MAIL_PORT": 25}
    keys |= {"SECRET_KEY_FALLBACKS": ["o" * 32], "MAX_CONTENT_LENGTH": 7, "TRUSTED_HOSTS": ["a"]}

    app = create(**keys)

    assert keys == {key: app.config[key] for key in keys}


# -- the app -----------------------------------------------------------------------------------


def test_each_app_has_its_own_logger(create: Create) -> None:
    """Each app has its own logger, so a log handler of one app gets no records of another app."""
    acme, globex = create(), create(APP_NAME="globex")

    assert ["tenant.acme", "tenant.globex"] == [acme.logger.name, globex.logger.name]
    assert logging.getLogger("tenant.acme") is acme.logger


def test_an_app_has_its_own_folder(create: Create, data_dir: Path) -> None:
    """The instance path and root path of an app are `<data>/<name>`, created with mode 0700."""
    app = create()

    assert (str(data_dir / "acme"),) * 2 == (app.instance_path, app.root_path)
    assert 0o700 == (data_dir / "acme").stat().st_mode & 0o777


def test_without_a_static_folder_there_is_no_static_route(create: Create) -> None:
    """If the tenant's data folder has no folder `static`, the app has no `/static/` route."""
    app = create()

    assert ["landing.landingpage"] == [rule.endpoint for rule in app.url_map.iter_rules()]


def test_a_static_folder_is_served(create: Create, data_dir: Path) -> None:
    """The app serves files in `<data>/<name>/static` under `/static/`, and no other files."""
    (data_dir / "acme/static").mkdir(parents=True)
    (data_dir / "acme/static/logo.txt").write_text("acme's")
    (data_dir / "acme/acme.sqlite3").write_text("secret")
    client = Client(create())

    with client.get("/static/logo.txt") as found, client.get("/static/../acme.sqlite3") as no:
        assert (200, b"acme's", 404) == (found.status_code, found.get_data(), no.status_code)


def test_a_failing_endpoint_leaves_no_app(create: Create) -> None:
    """If an endpoint fails to load, the error names it, and earlier endpoints are unloaded."""
    with pytest.raises(EndpointError, match="no endpoint named 'lnding'"):
        create(BLUEPRINTS=["landing", "lnding"])


def test_an_app_without_a_host_checks_trusted_hosts(create: Create) -> None:
    """An app that runs without the host still rejects host names that `TRUSTED_HOSTS` omits."""
    client = Client(create(TRUSTED_HOSTS=["acme.test"]))

    assert 201 == client.get("/", base_url="http://acme.test").status_code
    with pytest.raises(SecurityError):
        client.get("/", base_url="http://evil.test")


# -- sessions and redirects ---------------------------------------------------------------------


def with_session(app: Flask) -> Flask:
    """Add a login page, and pages that show the user and a URL; return the app."""

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
    """The session cookie is named after the tenant, and its path is the request's script root."""
    client = Client(with_session(create()))

    cookie = client.get("/login", base_url=f"http://localhost{root}/").headers["Set-Cookie"]

    assert cookie.startswith("session_acme=")
    assert ["HttpOnly", f"Path={root or '/'}", "SameSite=Lax"] == sorted(cookie.split("; ")[1:])


def test_reading_the_session_adds_vary_cookie(create: Create) -> None:
    """A response that reads the session has `Vary: Cookie`, even if the session is empty."""
    app = with_session(create())
    client = Client(app)

    vary = [client.get(path).headers.get("Vary") for path in ("/who", "/")]

    assert ["Cookie", None] == vary


def test_each_app_has_its_own_abort_codes(create: Create) -> None:
    """A status code added to one app's `aborter` is unknown to other apps."""
    acme, globex = create(), create()
    acme.aborter.mapping[499] = NotFound

    with pytest.raises(NotFound):
        acme.aborter(499)
    with pytest.raises(LookupError):
        globex.aborter(499)


def test_a_session_cookie_of_an_https_request_is_secure(create: Create) -> None:
    """A session cookie that is set over HTTPS has the attribute `Secure`."""
    client = Client(with_session(create()))

    cookie = client.get("/login", base_url="https://localhost/acme/").headers["Set-Cookie"]

    assert "; Secure" in cookie


def test_a_configured_cookie_path_is_kept(create: Create) -> None:
    """The app respects `SESSION_COOKIE_PATH` and `SESSION_COOKIE_NAME` in a tenant file."""
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
    """A tenant rejects another tenant's session cookie, even if both have the same secret key."""
    stolen = _cookie_of(with_session(create()))
    app = with_session(create(APP_NAME=tenant))

    answer = Client(app, use_cookies=False).get(
        "/who", headers={"Cookie": f"session_{tenant}={stolen}"}
    )

    assert user == answer.text


def test_a_session_signed_with_an_old_key_is_accepted(create: Create) -> None:
    """Sessions signed with a key in `SECRET_KEY_FALLBACKS` stay valid after the key changes."""
    old = _cookie_of(with_session(create(SECRET_KEY="o" * 32)))
    app = with_session(create(SECRET_KEY_FALLBACKS=["o" * 32]))

    answer = Client(app, use_cookies=False).get("/who", headers={"Cookie": f"session_acme={old}"})

    assert "ada" == answer.text


def test_urls_have_the_prefix(create: Create) -> None:
    """`url_for` adds the tenant's URL prefix, both during a request and outside a request."""
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
    """A redirect that adds or removes a trailing slash is relative, so it never repeats `Host`."""
    app = create()
    app.add_url_rule("/shop/", view_func=lambda: "shop")
    app.add_url_rule("/list/<name>/", "list", view_func=lambda name: name)
    name, _, query = path.partition("?")
    environ = {"PATH_INFO": name, "SCRIPT_NAME": "/acme", "QUERY_STRING": query}

    answer = Client(app).get("/", headers={"Host": "evil.test"}, environ_overrides=environ)

    assert (308, location) == (answer.status_code, answer.headers["Location"])


@pytest.mark.parametrize("path", ["//evil.test", "//evil.test/..", "///evil.test"])
def test_a_redirect_at_the_root_stays_on_the_host(create: Create, path: str) -> None:
    """An app mounted at the root redirects `//evil.test` to a path, not to the host `evil.test`."""
    app = create()
    app.add_url_rule("/<path:rest>/", "rest", view_func=lambda rest: rest)
    environ = {"PATH_INFO": path, "SCRIPT_NAME": ""}

    answer = Client(app).get("/", environ_overrides=environ)

    assert 308 == answer.status_code
    assert answer.headers["Location"].startswith("/evil.test/")


@pytest.mark.parametrize(
    ("url", "start"),
    [
        ("https://shop.test/", "__Host-session_acme="),
        ("http://shop.test/", "session_acme="),
        ("https://shop.test/behind/proxy/", "session_acme="),
    ],
)
def test_an_origin_of_its_own_has_a_host_cookie_on_https(
    create: Create, url: str, start: str
) -> None:
    """With an origin of its own, the session cookie is a `__Host-` cookie if browsers accept it."""
    client = Client(with_session(create(HOSTS=["shop.test"])))

    cookie = client.get("/login", base_url=url).headers["Set-Cookie"]

    assert cookie.startswith(start)
    assert "Domain" not in cookie
    assert "ada" == client.get("/who", base_url=url).text
