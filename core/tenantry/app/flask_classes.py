"""What a tenant's Flask app has in place of Flask's own classes and methods.

The replacements confine sessions to one tenant, share no mutable object between apps, and never
send back the `Host` header of a request.
"""

from functools import cached_property
from typing import NoReturn
from urllib.parse import urlsplit, urlunsplit

from flask import Flask, Request, Response, request
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface, SessionMixin
from flask.templating import Environment
from werkzeug.exceptions import Aborter, HTTPException
from werkzeug.routing import RequestRedirect

from tenantry.app.config import Shown, TenantConfig
from tenantry.http.conditions import ConditionalResponse
from tenantry.http.environ import HEAD_CHECKED_FOR


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


class OwnOriginSessions(TenantSessions):
    """The sessions of a tenant with an origin of its own.

    On HTTPS, the name of the cookie begins with `__Host-`. Browsers then accept the cookie only
    from this host name, so no other name of the site can replace it.
    """

    def get_cookie_name(self, app: Flask) -> str:
        """Return the configured name, with `__Host-` if a browser accepts that."""
        name = super().get_cookie_name(app)
        # Browsers require HTTPS and `Path=/`. A proxy in front can add a prefix.
        is_accepted = request.is_secure and self.get_cookie_path(app) == "/"
        return f"__Host-{name}" if is_accepted and not name.startswith("__") else name


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


def create_jinja_environment(app: Flask) -> Environment:
    """Return a Jinja environment that masks secrets and shares no mutable object."""
    environment = type(app).create_jinja_environment(app)
    if isinstance(app.config, TenantConfig):
        environment.globals["config"] = Shown(app.config)
    key = "json.dumps_kwargs"  # this is the only mutable value in Jinja's policies
    environment.policies[key] = dict(environment.policies[key])
    return environment


def raise_routing_exception(app: Flask, request: Request) -> NoReturn:
    """Raise the routing exception of a request, with a relative redirect (RFC 9110 §10.2.2)."""
    error = request.routing_exception
    if isinstance(error, RequestRedirect):
        _, _, path, query, _ = urlsplit(error.new_url)
        error.new_url = urlunsplit(("", "", "/" + path.lstrip("/"), query, ""))
    type(app).raise_routing_exception(app, request)
