"""Builds the Flask app of a tenant."""

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
from tenantry.endpoints.loading import (
    LOADED_ENDPOINTS,
    load_endpoint,
    registration_errors,
    unload_endpoints,
)
from tenantry.endpoints.plain_names import MODULES, resolve_plain_names, using
from tenantry.endpoints.signal_receivers import confine_receivers
from tenantry.errors import Problem, TenantFileError
from tenantry.files.memory_budget import (
    DECODING_BYTES,
    DECODING_MEMORY,
    DECODING_WAIT_S,
    MemoryBudget,
)
from tenantry.grammar import TENANT_NAME
from tenantry.http.conditions import ConditionalResponse
from tenantry.http.environ import HEAD_CHECKED_FOR
from tenantry.library_locks import lock_library_functions
from tenantry.migrations.guard import MigrationGuard, add_migration_guard
from tenantry.observability.redaction import secret_scope
from tenantry.private_code.modules import PrivateModules
from tenantry.private_code.sources import Sources
from tenantry.settings import read_settings
from tenantry.tenants.model import Tenant
from tenantry.tenants.validation import parse_tenant


class TenantSessions(SecureCookieSessionInterface):
    """Flask's signed cookie sessions, confined to one tenant.

    The path of the session cookie is the root path of the request, because a proxy in front can add
    a prefix. The salt of the cookie's signature contains the tenant's name, so a tenant rejects the
    sessions of all other tenants, even if two tenants have the same secret key.
    """

    def __init__(self, tenant: str) -> None:
        self.salt = f"tenantry.session.{tenant}"

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        """Return the session of a request, or an empty session if the request has no cookie."""
        if self.get_cookie_name(app) not in request.cookies:
            return self.session_class()
        return super().open_session(app, request)

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Set the session cookie, unless the app has not used the session."""
        if session or session.accessed or session.modified:
            super().save_session(app, session, response)

    def get_cookie_path(self, app: Flask) -> str:
        """Return the configured path of the session cookie, or the root path of the request."""
        return app.config["SESSION_COOKIE_PATH"] or request.root_path or "/"

    def get_cookie_secure(self, app: Flask) -> bool:
        """Whether to mark the session cookie `Secure`: always on HTTPS, otherwise if configured."""
        return app.config["SESSION_COOKIE_SECURE"] or request.is_secure


class LazyAborter(Aborter):
    """An `Aborter` that builds its map of exceptions at the first `abort`, to save 1.1 KiB."""

    def __init__(
        self,
        mapping: dict[int, type[HTTPException]] | None = None,
        extra: dict[int, type[HTTPException]] | None = None,
    ) -> None:
        """Store the arguments, and build the map of exceptions later."""
        self._given = mapping, extra

    @cached_property
    def mapping(self) -> dict[int, type[HTTPException]]:  # type: ignore[override]
        """The app's map from status codes to exception classes."""
        return Aborter(*self._given).mapping


class TenantRequest(Request):
    """A Flask request whose host name Flask checks only if the host has not checked it before."""

    _trusted_hosts: list[str] | None = None

    @property
    def trusted_hosts(self) -> list[str] | None:
        """The host names that Flask accepts; None if the host has already checked the name."""
        return None if HEAD_CHECKED_FOR in self.environ else self._trusted_hosts

    @trusted_hosts.setter
    def trusted_hosts(self, names: list[str] | None) -> None:
        self._trusted_hosts = names


class TenantResponse(ConditionalResponse, Response):
    """A response of a tenant's app, with conditional and range requests for static files."""


class TenantApp(Flask):
    """A Flask app that shares no mutable object with another app.

    The app never sends back the `Host` header of a request.
    """

    aborter_class = LazyAborter
    config_class = MaskedConfig
    config: MaskedConfig
    log_handlers: tuple[Added, ...] = ()
    """Log handlers that endpoints added while the app was built.

    When the host closes the app, the host removes these log handlers, because the tenant's next app
    uses the same loggers.
    """
    private_modules: PrivateModules | None = None
    """The modules of the app's endpoints."""
    request_class = TenantRequest
    response_class = TenantResponse
    url_rule_class = LazyRule

    def make_shell_context(self) -> dict[str, Any]:
        """Let code in `flask shell` import the tenant's private modules."""
        context: dict[str, Any] = super().make_shell_context()
        if self.private_modules is not None:
            context["__builtins__"] = self.private_modules.builtins
        return context

    def create_jinja_environment(self) -> Environment:
        """Return a Jinja environment that masks secrets and shares no mutable object."""
        environment = super().create_jinja_environment()
        environment.globals["config"] = Shown(self.config)
        key = "json.dumps_kwargs"  # this is the only mutable value in Jinja's policies
        environment.policies[key] = dict(environment.policies[key])
        return environment

    def raise_routing_exception(self, request: Request) -> NoReturn:
        """Raise the routing exception of a request, with a relative redirect (RFC 9110 §10.2.2)."""
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
    sources: Sources | None = None,
) -> Flask:
    """Build the Flask app of one tenant.

    Args:
        config: a `Tenant`, a module, a class (`class ConfigClass: APP_NAME = …`), a mapping, or any
            object with upper-case attributes. Unless `config` is a `Tenant`, it is validated like a
            tenant file, but may set `DEBUG` and `TESTING`. The app gets copies of the values.
        data_dir: the folder that contains the tenants' folders; `TENANTRY_DATA_DIR` if None.
        budget: limits the app's database connections. The default is a new budget of
            `TENANTRY_DB_CONNECTIONS` connections.
        decoding_memory: limits the memory that endpoints use to decode images. The default is a new
            budget of `DECODING_BYTES`.
        note_query: a function that receives the tenant's name and the duration in nanoseconds of
            each database query.
        sources: the compiled code of endpoints. By default, each build reads the files again.

    Returns:
        The app, in which the tenant's endpoints are registered. Call `close_app` when you no longer
        need the app.

    Raises:
        TenantFileError: `config` is invalid. The error lists every problem of the configuration.
        EndpointError: an endpoint does not exist, or its import or registration fails.
    """
    lock_library_functions()
    resolve_plain_names()
    confine_receivers()
    data_dir = (data_dir or read_settings().data_dir).absolute()
    tenant = config if isinstance(config, Tenant) else _tenant_of(config, data_dir)
    app = _bare_app(tenant, data_dir / tenant.name)
    budget = budget or ConnectionBudget(read_settings().db_connections)
    open_database(
        app,
        tenant.name,
        tenant.database_uri,
        budget,
        note_query,
        options=tenant.database_options,
    )
    app.extensions[DECODING_MEMORY] = decoding_memory or MemoryBudget(
        DECODING_BYTES, DECODING_WAIT_S
    )
    app.extensions[LOADED_ENDPOINTS] = []
    modules = app.private_modules = PrivateModules(tenant.name, sources, app_dir=tenant.app_dir)
    app.extensions[MODULES] = modules
    added: list[Added] = []
    try:
        with (
            modules.building(),
            using(modules),
            secret_scope(app.config),
            host_log.watching(tenant.name, added) as watch,
        ):
            guard = add_migration_guard(app, tenant, data_dir)
            for name in tenant.blueprints:
                watch.begin(name)
                _add_endpoint(app, guard, name, modules)
    except BaseException:
        app.log_handlers = tuple(added)
        close_app(app)
        raise
    app.log_handlers = tuple(added)
    return app


def _add_endpoint(
    app: Flask, guard: MigrationGuard | None, name: str, modules: PrivateModules
) -> None:
    endpoint = load_endpoint(name, modules)
    app.extensions[LOADED_ENDPOINTS].append(endpoint)
    if guard is not None:
        guard.protect(name, endpoint.blueprint)
    with registration_errors(name):
        app.register_blueprint(endpoint.blueprint)


def check_app(app: Flask) -> None:
    """Send the app an `OPTIONS` request, which ends Flask's setup phase.

    Raises:
        BaseException: the exception that the app raised during the request.
    """
    raised: list[BaseException] = []

    def note(_: object, exception: BaseException) -> None:
        raised.append(exception)

    host = (app.config["TRUSTED_HOSTS"] or ["localhost"])[0].removeprefix(".")
    checked = {HEAD_CHECKED_FOR: app.name}
    with got_request_exception.connected_to(note, app):
        client = Client(app.wsgi_app)
        client.options("/", base_url=f"http://{host}/", environ_overrides=checked).close()
    if raised:
        raise raised[0]


def endpoint_finder(app: Flask, tenant: Tenant) -> Callable[[dict[str, Any]], str | None]:
    """Return a function that finds the endpoint of a request in its WSGI environ.

    The function matches URLs in the same way as the app. The result is "" for a route that belongs
    to no endpoint, such as `static`, and None if the app would answer with a redirect, 404 or 405.
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
    """Free the resources of an app that serves no more requests. Idempotent."""
    app.extensions.pop(LOADED_ENDPOINTS, None)
    if isinstance(app, TenantApp) and app.private_modules is not None:
        unload_endpoints(app.private_modules)
    close_database(app)
    if isinstance(app, TenantApp):
        added, app.log_handlers = app.log_handlers, ()
        host_log.release(app.name.removeprefix("tenant."), added)


def _bare_app(tenant: Tenant, folder: Path) -> TenantApp:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # SQLite creates no folder
    app = TenantApp(
        f"tenant.{tenant.name}",  # Flask names the app's logger after the app
        root_path=str(folder),
        instance_path=str(folder),
        static_folder="static" if (folder / "static").is_dir() else None,
    )
    app.config["DEBUG"] = False  # otherwise, FLASK_DEBUG turns on debugging for all tenants
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
    """Return the file that defines a configuration, or its type, for error messages."""
    module = sys.modules.get(config.__module__) if isinstance(config, type) else config
    file = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
    return str(file or getattr(config, "__name__", type(config).__name__))


def _upper_case(config: object) -> dict[str, Any]:
    """Return the upper-case names of a configuration, with their values."""
    if isinstance(config, Mapping):
        return {key: config[key] for key in config if isinstance(key, str) and key.isupper()}
    return {key: getattr(config, key) for key in dir(config) if key.isupper()}


def _without_value(file: str, values: dict[str, Any]) -> Iterator[Problem]:
    """Replace each value with a copy.

    Yield a problem for each value that is not plain data or cannot be copied.
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
            except Exception as error:  # noqa: BLE001 - `__deepcopy__` can raise any exception
                text = f"found a {type(value).__name__} that cannot be copied: {error}"
                yield Problem(file, f"{text}; write plain data.", key)


def _name_of(config: object, values: Mapping[str, Any]) -> str:
    """Return a tenant's name: the `APP_NAME` of its configuration, or the class or module name."""
    own = getattr(config, "__name__", type(config).__name__).rpartition(".")[2]
    for text in (values.get("APP_NAME"), own):
        if isinstance(text, str):
            name = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")
            if TENANT_NAME.fullmatch(name):
                return name
    return "app"
