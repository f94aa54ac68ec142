"""The one factory: from a tenant to its own Flask app."""

import copy
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

from flask import Flask, Request
from flask.sessions import SecureCookieSessionInterface
from werkzeug.routing import RequestRedirect

from config.settings import read_settings
from core.endpoints import LoadedEndpoint, load_endpoint, registering
from core.tenant import NAME, Tenant, parse_tenant

_EXTENSION = "tenantry"


class TenantSessions(SecureCookieSessionInterface):
    """Flask's signed cookie sessions, confined to one tenant.

    The cookie's path is the root under which the request came in, so that it is right behind a
    proxy's prefix too; the signature's salt is the tenant's, so that a session of a neighbour with
    the same key does not verify.
    """

    def __init__(self, tenant: str) -> None:
        self.salt = f"tenantry.session.{tenant}"

    def get_cookie_path(self, app: Flask) -> str:
        """Return the configured path, or the root of the request that is being answered."""
        from flask import request  # noqa: PLC0415 - a proxy: it means something here only

        return app.config["SESSION_COOKIE_PATH"] or request.root_path or "/"


class TenantApp(Flask):
    """A Flask app whose routing never answers with a `Host` header that a client sent."""

    def raise_routing_exception(self, request: Request) -> NoReturn:
        """Raise what routing found; a redirect is made relative to the host (RFC 9110 §10.2.2)."""
        error = request.routing_exception
        if isinstance(error, RequestRedirect):
            _, _, path, query, _ = urlsplit(error.new_url)
            error.new_url = urlunsplit(("", "", "/" + path.lstrip("/"), query, ""))
        super().raise_routing_exception(request)


def create_app(
    config: Tenant | ModuleType | type | object, *, data_dir: Path | None = None
) -> Flask:
    """Build the Flask app of one tenant.

    Args:
        config: a tenant; or a module, a class (`class ConfigClass: APP_NAME = …`) or any object
            with upper-case attributes, validated as a tenant file is, but free to set `DEBUG` and
            `TESTING`: it is a developer's.
        data_dir: where the tenants' folders are; `TENANTRY_DATA_DIR` when None.

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
    endpoints: list[LoadedEndpoint] = []
    app.extensions[_EXTENSION] = endpoints
    try:
        for name in tenant.blueprints:
            endpoint = load_endpoint(name, tenant.name)
            endpoints.append(endpoint)
            with registering(name):
                app.register_blueprint(endpoint.blueprint)
    except BaseException:
        close_app(app)
        raise
    return app


def close_app(app: Flask) -> None:
    """Free what `create_app` made for `app`. Idempotent; the app must not serve any more."""
    for endpoint in reversed(app.extensions.pop(_EXTENSION, [])):
        endpoint.unload()


def _bare_app(tenant: Tenant, folder: Path) -> Flask:
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
    app.session_interface = TenantSessions(tenant.name)
    return app


def _tenant_of(config: object, data_dir: Path) -> Tenant:
    values = _upper_case(config)
    file = inspect.getsourcefile(config) if isinstance(config, type | ModuleType) else None
    return parse_tenant(
        _name_of(config, values),
        values,
        file=file or type(config).__name__,
        data_dir=data_dir,
        is_development=True,
    )


def _upper_case(config: object) -> dict[str, Any]:
    source = config if isinstance(config, Mapping) else {k: getattr(config, k) for k in dir(config)}
    return {key: copy.deepcopy(value) for key, value in source.items() if key.isupper()}


def _name_of(config: object, values: Mapping[str, Any]) -> str:
    """Return a tenant's name for a class or module: from its `APP_NAME`, else its own name."""
    for text in (values.get("APP_NAME"), getattr(config, "__name__", None), type(config).__name__):
        if isinstance(text, str):
            name = re.sub(r"[^a-z0-9_-]+", "-", text.rpartition(".")[2].lower()).strip("-_")
            if NAME.fullmatch(name):
                return name
    return "app"
