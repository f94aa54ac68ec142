"""The one factory: from a tenant to its own Flask app."""

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
from tenantry.app.lazy_rule import LateRule
from tenantry.app.log_handlers import Added, host_log
from tenantry.database.budget import ConnectionBudget
from tenantry.database.session import NoteQuery, close_database, open_database
from tenantry.endpoints.loading import load_endpoint, registration_errors
from tenantry.endpoints.signal_receivers import confine_receivers
from tenantry.errors import Problem, TenantFileError
from tenantry.grammar import TENANT_NAME
from tenantry.middleware.trusted_hosts import HOST_IS_CHECKED
from tenantry.migrations.guard import MigrationGuard, add_migration_guard
from tenantry.observability.redaction import secret_scope
from tenantry.settings import read_settings
from tenantry.storage.memory_budget import (
    DECODING_BYTES,
    DECODING_MEMORY,
    DECODING_WAIT_S,
    MemoryBudget,
)
from tenantry.tenants.model import Tenant, parse_tenant

_EXTENSION = "tenantry"


class TenantSessions(SecureCookieSessionInterface):
    """Flask's signed cookie sessions, confined to one tenant.

    The cookie's path is the root under which the request came in, so that it is right behind a
    proxy's prefix too; the signature's salt is the tenant's, so that a session of a neighbour with
    the same key does not verify.
    """

    def __init__(self, tenant: str) -> None:
        self.salt = f"tenantry.session.{tenant}"

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        """Return the session; without its cookie an empty one, and nothing is made to verify it."""
        if self.get_cookie_name(app) not in request.cookies:  # no tenant is without a key
            return self.session_class()
        return super().open_session(app, request)

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Set the cookie if there is a reason to; ask for its attributes only then."""
        if session or session.accessed or session.modified:
            super().save_session(app, session, response)

    def get_cookie_path(self, app: Flask) -> str:
        """Return the configured path, or the root of the request that is being answered."""
        return app.config["SESSION_COOKIE_PATH"] or request.root_path or "/"

    def get_cookie_secure(self, app: Flask) -> bool:
        """Return whether the cookie is for HTTPS only: as configured, or as the request came."""
        return app.config["SESSION_COOKIE_SECURE"] or request.is_secure


class LateAborter(Aborter):
    """Makes its map from codes to exceptions at the first `abort`: 1.1 KiB that few apps need."""

    def __init__(
        self,
        mapping: dict[int, type[HTTPException]] | None = None,
        extra: dict[int, type[HTTPException]] | None = None,
    ) -> None:
        """Note what the map is made of."""
        self._given = mapping, extra

    @cached_property
    def mapping(self) -> dict[int, type[HTTPException]]:  # type: ignore[override]
        """The map, the app's own."""
        return Aborter(*self._given).mapping


class TenantRequest(Request):
    """Flask's request. Flask checks its host only if `TrustedHosts` has not."""

    _trusted_hosts: list[str] | None = None

    @property
    def trusted_hosts(self) -> list[str] | None:
        """What Flask's own check goes by; None where there is nothing left to check."""
        return None if HOST_IS_CHECKED in self.environ else self._trusted_hosts

    @trusted_hosts.setter
    def trusted_hosts(self, names: list[str] | None) -> None:
        self._trusted_hosts = names


class TenantApp(Flask):
    """A Flask app that shares nothing it could write with another, and echoes no `Host` header."""

    aborter_class = LateAborter
    config_class = MaskedConfig
    config: MaskedConfig
    log_handlers: tuple[Added, ...] = ()
    """What its set-up added to loggers, which are also those of the tenant's next app."""
    request_class = TenantRequest
    url_rule_class = LateRule

    def create_jinja_environment(self) -> Environment:
        """Return the templates' environment; what Jinja would share is copied, no key is shown."""
        environment = super().create_jinja_environment()
        environment.globals["config"] = Shown(self.config)
        key = "json.dumps_kwargs"  # the one policy that can be written
        environment.policies[key] = dict(environment.policies[key])
        return environment

    def raise_routing_exception(self, request: Request) -> NoReturn:
        """Raise what routing found; a redirect is made relative to the host (RFC 9110 §10.2.2)."""
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
        config: a tenant; or a module, a class (`class ConfigClass: APP_NAME = …`), a mapping or
            any object with upper-case attributes, validated as a tenant file is, but free to set
            `DEBUG` and `TESTING`: it is a developer's. Its values are copied.
        data_dir: where the tenants' folders are; `TENANTRY_DATA_DIR` when None.
        budget: where its database connections count; one of its own, of `TENANTRY_DB_CONNECTIONS`,
            when None.
        decoding_memory: the memory that its endpoints may use to decode images; a budget of its
            own when None.
        note_query: called after each query with the tenant's name and the nanoseconds.

    Returns:
        An app with the enabled endpoints registered. `close_app` ends it; an app that lives as
        long as the process needs no closing.

    Raises:
        TenantFileError: `config` has problems, all of them named.
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
    app.extensions[_EXTENSION] = []
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
    app.extensions[_EXTENSION].append(endpoint)
    if guard is not None:
        guard.protect(name, endpoint.blueprint)
    with registration_errors(name):
        app.register_blueprint(endpoint.blueprint)
    confine_receivers(app, name, endpoint.package)


def check_app(app: Flask) -> None:
    """Send the app a first request that runs no view; from here on its set-up is over.

    Raises:
        BaseException: whatever the app raises in it, inside Flask or out of it.
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
    """Return what tells, of a WSGI environ, for which of the tenant's endpoints the request is.

    It routes as the app itself will. "" stands for a rule that belongs to no endpoint (`static`),
    None for no rule: the app will answer that with a redirect, 404 or 405.
    """
    loaded = app.extensions[_EXTENSION]
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
    """Free what `create_app` made for `app`. Idempotent; the app must not serve any more."""
    for endpoint in reversed(app.extensions.pop(_EXTENSION, [])):
        endpoint.unload()
    close_database(app)
    if isinstance(app, TenantApp):
        added, app.log_handlers = app.log_handlers, ()
        host_log.release(app.name.removeprefix("tenant."), added)


def _bare_app(tenant: Tenant, folder: Path) -> TenantApp:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # SQLite makes no folder by itself
    app = TenantApp(
        f"tenant.{tenant.name}",  # names the logger too: two tenants never share one
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
    """Return what messages name: the file of a module or class, the type of anything else."""
    module = sys.modules.get(config.__module__) if isinstance(config, type) else config
    file = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
    return str(file or getattr(config, "__name__", type(config).__name__))


def _upper_case(config: object) -> dict[str, Any]:
    """Return the upper-case names and what they hold, not copied yet."""
    if isinstance(config, Mapping):
        return {key: config[key] for key in config if isinstance(key, str) and key.isupper()}
    return {key: getattr(config, key) for key in dir(config) if key.isupper()}


def _without_value(file: str, values: dict[str, Any]) -> Iterator[Problem]:
    """Replace each value by a copy; yield a problem for each that is none or cannot be copied."""
    for key, value in values.items():
        if isinstance(value, property | cached_property):
            remedy = "pass an instance of the class, or write a plain value."
            yield Problem(file, f"found a {type(value).__name__}; {remedy}", key)
        elif isinstance(value, FunctionType | MethodType):
            yield Problem(file, f"found a {type(value).__name__}; write the value itself.", key)
        else:
            try:
                values[key] = copy.deepcopy(value)
            except Exception as error:  # noqa: BLE001 - whatever the value's own copying raises
                text = f"found a {type(value).__name__} that cannot be copied: {error}"
                yield Problem(file, f"{text}; write plain data.", key)


def _name_of(config: object, values: Mapping[str, Any]) -> str:
    """Return a tenant's name for a class or module: from its `APP_NAME`, else its own name."""
    own = getattr(config, "__name__", type(config).__name__).rpartition(".")[2]
    for text in (values.get("APP_NAME"), own):
        if isinstance(text, str):
            name = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")
            if TENANT_NAME.fullmatch(name):
                return name
    return "app"
