"""The factory: builds a tenant's own Flask app."""

import copy
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

from flask import Flask, Request, Response, got_request_exception, request
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface, SessionMixin
from flask.templating import Environment
from werkzeug.exceptions import Aborter, HTTPException
from werkzeug.routing import RequestRedirect
from werkzeug.test import Client

from tenantry.app.config import MaskedConfig, Shown
from tenantry.app.lazy_rule import LazyRule
from tenantry.app.log_handlers import Added, host_log
from tenantry.database.budget import ConnectionBudget
from tenantry.database.session import NoteQuery, close_database, open_database
from tenantry.endpoints.loading import LOADED_ENDPOINTS, load_endpoint, registration_errors
from tenantry.endpoints.signal_receivers import confine_receivers
from tenantry.errors import Problem, TenantFileError
from tenantry.files.memory_budget import (
    DECODING_BYTES,
    DECODING_MEMORY,
    DECODING_WAIT_S,
    MemoryBudget,
)
from tenantry.grammar import TENANT_NAME
from tenantry.middleware.trusted_hosts import HOST_IS_CHECKED
from tenantry.migrations.guard import MigrationGuard, add_migration_guard
from tenantry.observability.redaction import secret_scope
from tenantry.settings import read_settings
from tenantry.tenants.model import Tenant
from tenantry.tenants.validation import parse_tenant


class TenantSessions(SecureCookieSessionInterface):
    """Flask's signed cookie sessions, confined to one tenant.

    The path of the session cookie is the root of the request, because a proxy in front can add a
    prefix. The salt of the signature contains the tenant's name, so that a session of another
    tenant with the same key does not verify.
    """

    def __init__(self, tenant: str) -> None:
        self.salt = f"tenantry.session.{tenant}"

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        """Return the session of a request, which is empty without a session cookie."""
        if self.get_cookie_name(app) not in request.cookies:
            return self.session_class()
        return super().open_session(app, request)

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Set the session cookie, unless the app has not used the session."""
        if session or session.accessed or session.modified:
            super().save_session(app, session, response)

    def get_cookie_path(self, app: Flask) -> str:
        """Return the configured path of the session cookie, or the root of the current request."""
        return app.config["SESSION_COOKIE_PATH"] or request.root_path or "/"

    def get_cookie_secure(self, app: Flask) -> bool:
        """Whether the session cookie is for HTTPS only: if configured, or on an HTTPS request."""
        return app.config["SESSION_COOKIE_SECURE"] or request.is_secure


class LazyAborter(Aborter):
    """An `Aborter` that builds its map of exceptions (1.1 KiB) at the first `abort`."""

    def __init__(
        self,
        mapping: dict[int, type[HTTPException]] | None = None,
        extra: dict[int, type[HTTPException]] | None = None,
    ) -> None:
        """Keep the arguments from which `mapping` builds the map of exceptions."""
        self._given = mapping, extra

    @cached_property
    def mapping(self) -> dict[int, type[HTTPException]]:  # type: ignore[override]
        """The map from status codes to exceptions of this app."""
        return Aborter(*self._given).mapping


class TenantRequest(Request):
    """A Flask request that does not check the host name again after `TrustedHosts`."""

    _trusted_hosts: list[str] | None = None

    @property
    def trusted_hosts(self) -> list[str] | None:
        """The host names that Flask accepts; None if `TrustedHosts` has checked the host name."""
        return None if HOST_IS_CHECKED in self.environ else self._trusted_hosts

    @trusted_hosts.setter
    def trusted_hosts(self, names: list[str] | None) -> None:
        self._trusted_hosts = names


class TenantApp(Flask):
    """A Flask app that shares no mutable object with another app and echoes no `Host` header."""

    aborter_class = LazyAborter
    config_class = MaskedConfig
    config: MaskedConfig
    log_handlers: tuple[Added, ...] = ()
    """Handlers that the set-up of the app added to loggers. The tenant's next app uses the same
    loggers."""
    request_class = TenantRequest
    url_rule_class = LazyRule

    def create_jinja_environment(self) -> Environment:
        """Return a Jinja environment that masks secrets and shares no dict with another app."""
        environment = super().create_jinja_environment()
        environment.globals["config"] = Shown(self.config)
        key = "json.dumps_kwargs"  # the only mutable value in Jinja's policies
        environment.policies[key] = dict(environment.policies[key])
        return environment

    def raise_routing_exception(self, request: Request) -> NoReturn:
        """Raise the routing exception. A redirect gets a relative location (RFC 9110 §10.2.2)."""
        error = request.routing_exception
        if isinstance(error, RequestRedirect):
            _, _, path, query, _ = urlsplit(error.new_url)
            error.new_url = urlunsplit(("", "", "/" + path.lstrip("/"), query, ""))
        super().raise_routing_exception(request)


def create_app(
    config: Tenant | ModuleType | type | object,
    *,
    data_dir: Path | None = None,
    budget: ConnectionBudget | None = None,
    decoding_memory: MemoryBudget | None = None,
    note_query: NoteQuery | None = None,
) -> Flask:
    """Build the Flask app of one tenant.

    Args:
        config: a tenant, or a module, a class (`class ConfigClass: APP_NAME = …`), a mapping or any
            object with upper-case attributes. Every `config` except a `Tenant` is validated like a
            tenant file, but may set `DEBUG` and `TESTING`. The app gets copies of the values.
        data_dir: the folder that contains the tenants' folders; `TENANTRY_DATA_DIR` if None.
        budget: limits the app's database connections; if None, a new budget of
            `TENANTRY_DB_CONNECTIONS` connections.
        decoding_memory: limits the memory in which the app's endpoints decode images; if None, a
            new budget of the default size.
        note_query: called after each database query with the tenant's name and the query's
            nanoseconds.

    Returns:
        The app with the enabled endpoints registered. Call `close_app` if the app ends before the
        process.

    Raises:
        TenantFileError: `config` has problems; the error names every problem.
        EndpointError: an endpoint does not exist, or fails to import or register.
    """
    data_dir = (data_dir or read_settings().data_dir).absolute()
    tenant = config if isinstance(config, Tenant) else _tenant_of(config, data_dir)
    app = _bare_app(tenant, data_dir / tenant.name)
    budget = budget or ConnectionBudget(read_settings().db_connections)
    open_database(app, tenant.name, tenant.database_uri, budget, note_query)
    app.extensions[DECODING_MEMORY] = decoding_memory or MemoryBudget(
        DECODING_BYTES, DECODING_WAIT_S
    )
    app.extensions[LOADED_ENDPOINTS] = []
    added: list[Added] = []
    try:
        with secret_scope(app.config), host_log.watching(tenant.name, added) as watch:
            guard = add_migration_guard(app, tenant, data_dir)
            for name in tenant.blueprints:
                watch.begin(name)
                _add_endpoint(app, guard, name, tenant.name)
    except BaseException:
        app.log_handlers = tuple(added)
        close_app(app)
        raise
    app.log_handlers = tuple(added)
    return app


def _add_endpoint(app: Flask, guard: MigrationGuard | None, name: str, tenant: str) -> None:
    endpoint = load_endpoint(name, tenant)
    app.extensions[LOADED_ENDPOINTS].append(endpoint)
    if guard is not None:
        guard.protect(name, endpoint.blueprint)
    with registration_errors(name):
        app.register_blueprint(endpoint.blueprint)
    confine_receivers(app, name, endpoint.package)


def check_app(app: Flask) -> None:
    """Send the app a first request that runs no view and ends Flask's set-up phase.

    Raises:
        BaseException: any exception that the app raises during the request.
    """
    raised: list[BaseException] = []

    def note(_: object, exception: BaseException) -> None:
        raised.append(exception)

    host = (app.config["TRUSTED_HOSTS"] or ["localhost"])[0].removeprefix(".")
    checked = {HOST_IS_CHECKED: True}
    with got_request_exception.connected_to(note, app):
        client = Client(app.wsgi_app)
        client.options("/", base_url=f"http://{host}/", environ_overrides=checked).close()
    if raised:
        raise raised[0]


def endpoint_finder(app: Flask, tenant: Tenant) -> Callable[[dict[str, Any]], str | None]:
    """Return a function that returns the endpoint of a request, from its WSGI environ.

    The returned function routes like the app. The returned function returns "" for a route that
    belongs to no endpoint (`static`), and None for a request without a route, which the app answers
    with a redirect, 404 or 405.
    """
    loaded = app.extensions[LOADED_ENDPOINTS]
    names = {one.blueprint.name: name for one, name in zip(loaded, tenant.blueprints, strict=True)}

    def endpoint_of(environ: dict[str, Any]) -> str | None:
        try:
            adapter = app.create_url_adapter(app.request_class(environ, populate_request=False))
            matched = None if adapter is None else adapter.match()[0]
        except HTTPException:
            return None
        return None if matched is None else names.get(str(matched).partition(".")[0], "")

    return endpoint_of


def close_app(app: Flask) -> None:
    """Free the resources of an app from `create_app`, which must serve no requests. Idempotent."""
    for endpoint in reversed(app.extensions.pop(LOADED_ENDPOINTS, [])):
        endpoint.unload()
    close_database(app)
    if isinstance(app, TenantApp):
        added, app.log_handlers = app.log_handlers, ()
        host_log.release(app.name.removeprefix("tenant."), added)


def _bare_app(tenant: Tenant, folder: Path) -> TenantApp:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # SQLite does not create the folder
    app = TenantApp(
        f"tenant.{tenant.name}",  # also the name of the logger, so no two tenants share a logger
        root_path=str(folder),
        instance_path=str(folder),
        static_folder="static" if (folder / "static").is_dir() else None,
    )
    app.config["APPLICATION_ROOT"] = tenant.url_prefix
    app.config["SESSION_COOKIE_NAME"] = f"session_{tenant.name}"
    app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
    app.config.update(tenant.config())
    app.config.hidden = tenant.keys_with_secrets
    app.session_interface = TenantSessions(tenant.name)
    return app


def _tenant_of(config: object, data_dir: Path) -> Tenant:
    file = _file_of(config)
    values = _upper_case(config)
    problems = list(_without_value(file, values))
    if problems:
        raise TenantFileError(problems)
    return parse_tenant(
        _name_of(config, values), values, file=file, data_dir=data_dir, is_development=True
    )


def _file_of(config: object) -> str:
    """Return a configuration's name for messages: the file of a module or class, or the type."""
    module = sys.modules.get(config.__module__) if isinstance(config, type) else config
    file = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
    return str(file or getattr(config, "__name__", type(config).__name__))


def _upper_case(config: object) -> dict[str, Any]:
    """Return the upper-case names of a configuration with their values, not copied."""
    if isinstance(config, Mapping):
        return {key: config[key] for key in config if isinstance(key, str) and key.isupper()}
    return {key: getattr(config, key) for key in dir(config) if key.isupper()}


def _without_value(file: str, values: dict[str, Any]) -> Iterator[Problem]:
    """Replace each value with a copy.

    Yield a problem for each value that is not plain data or that cannot be copied.
    """
    for key, value in values.items():
        if isinstance(value, property | cached_property):
            remedy = "pass an instance of the class, or write a plain value."
            yield Problem(file, f"found a {type(value).__name__}; {remedy}", key)
        elif isinstance(value, FunctionType | MethodType):
            yield Problem(file, f"found a {type(value).__name__}; write the value itself.", key)
        else:
            try:
                values[key] = copy.deepcopy(value)
            except Exception as error:  # noqa: BLE001 - a value's own copying can raise anything
                text = f"found a {type(value).__name__} that cannot be copied: {error}"
                yield Problem(file, f"{text}; write plain data.", key)


def _name_of(config: object, values: Mapping[str, Any]) -> str:
    """Return a tenant's name for a class or module: the `APP_NAME`, or the name in Python."""
    own = getattr(config, "__name__", type(config).__name__).rpartition(".")[2]
    for text in (values.get("APP_NAME"), own):
        if isinstance(text, str):
            name = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")
            if TENANT_NAME.fullmatch(name):
                return name
    return "app"
