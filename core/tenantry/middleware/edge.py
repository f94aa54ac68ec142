"""The edge: finds the app that answers a request, before a thread runs the request.

`Edge` reads the forwarded headers of trusted proxies, and gives each request an ID. It refuses
`CONNECT`, and requests with a missing or malformed `Host`, and drops headers that a client may not
set. Then `Edge` separates the operators' listener from the tenants' listener, and asks the router
for the mount.
"""

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from tenantry.grammar import FORWARDED_PREFIX, host_name, is_address, is_host_header
from tenantry.http.environ import CONNECTION, IS_FOR_OPERATORS, REQUEST_ID, TARGET, TENANT
from tenantry.http.problem import ProblemResponse
from tenantry.http.request_id import new_request_id
from tenantry.middleware.forwarded import ForwardedHeaders
from tenantry.middleware.trusted_hosts import TrustedHosts
from tenantry.settings import ANY_ADDRESS

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

BAD_HOST = ProblemResponse(HTTPStatus.BAD_REQUEST, "The Host header is missing or malformed.")
NOT_OPERATORS_HOST = ProblemResponse(
    HTTPStatus.BAD_REQUEST,
    "This page answers only to IP addresses, localhost, and the names in TENANTRY_ADMIN_HOSTS.",
)
BAD_PROXY = ProblemResponse(
    HTTPStatus.BAD_REQUEST, "X-Forwarded-Proto or X-Forwarded-Prefix is malformed."
)
NO_TUNNEL = ProblemResponse(
    HTTPStatus.METHOD_NOT_ALLOWED,
    "This server is not a proxy.",
    allow="GET, HEAD, POST, PUT, PATCH, DELETE",
)

_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_AUTHORITY = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
_OPERATORS_NAMES = ("localhost",)


class Edge:
    """Finds the app that answers a request. Thread-safe.

    Args:
        route: returns the app for a request on the tenants' listeners.
        operators: answers requests on the operators' listener.
        admin_address: IP address and port of the operators' listener; None without an operators'
            listener.
        admin_hosts: further host names that the operators' listener answers to.
        forwarded: reads the headers of trusted proxies; None if no proxy is trusted.
    """

    def __init__(
        self,
        route: "Callable[[WSGIEnvironment], WSGIApplication]",
        operators: "WSGIApplication",
        admin_address: tuple[str, int] | None,
        *,
        admin_hosts: tuple[str, ...] = (),
        forwarded: ForwardedHeaders | None = None,
    ) -> None:
        self._admin_hosts = TrustedHosts((*_OPERATORS_NAMES, *admin_hosts))
        self._forwarded = forwarded
        self._route = route
        self._operators = operators
        self._admin_address = admin_address

    def route(self, environ: "WSGIEnvironment", _: object = None, /) -> Any:
        """Check a request, and put the app that answers it into the environ as `TARGET`.

        Return the tenant; an empty string for a page of the host, None for a request of operators.
        """
        sent = environ.get("HTTP_X_REQUEST_ID")
        request_id = sent if sent and _VALID_REQUEST_ID.fullmatch(sent) else new_request_id()
        environ[REQUEST_ID] = environ["HTTP_X_REQUEST_ID"] = request_id
        environ.pop("HTTP_REMOTE_USER", None)
        uri = environ.get("RAW_URI") or environ.get("REQUEST_URI")
        # Tenantry's worker has already read an absolute target.
        if uri and uri[0] != "/" and CONNECTION not in environ:
            _use_absolute_target(environ, uri)
        if self._forwarded is not None:
            self._forwarded.apply(environ)
        # Without trusted proxies, Tenantry's worker has already checked the head of the request.
        is_checked = CONNECTION in environ and self._forwarded is None
        target = None
        if not is_checked or environ["REQUEST_METHOD"] == "CONNECT":
            # Proxies often send X-Forwarded-Prefix with a final slash.
            environ["SCRIPT_NAME"] = environ.get("SCRIPT_NAME", "").removesuffix("/")
            target = self._refusal(environ)
        is_for_operators = IS_FOR_OPERATORS in environ
        if target is None and is_for_operators:
            target = self._operators if self._is_for_admin(environ) else NOT_OPERATORS_HOST
        elif target is None:
            target = self._route(environ)
        environ[TARGET] = target
        return None if is_for_operators else environ.get(TENANT, "")

    @staticmethod
    def _refusal(environ: "WSGIEnvironment") -> "WSGIApplication | None":
        host = environ.get("HTTP_HOST")
        if host is None:
            if environ.get("SERVER_PROTOCOL") == "HTTP/1.1":  # RFC 9112 §3.2
                return BAD_HOST
        elif not is_host_header(host):
            return BAD_HOST
        if environ["wsgi.url_scheme"] not in ("http", "https"):
            return BAD_PROXY
        if not FORWARDED_PREFIX.fullmatch(environ["SCRIPT_NAME"]):
            return BAD_PROXY
        return NO_TUNNEL if environ["REQUEST_METHOD"] == "CONNECT" else None

    def _is_for_admin(self, environ: "WSGIEnvironment") -> bool:
        """Whether the operators' listener answers to the host name of a request.

        Otherwise, a website could read operators' pages through an operator's browser. The website
        would let its own name point to 127.0.0.1 (DNS rebinding), so that the browser treats the
        pages as pages of the website.
        """
        host = environ.get("HTTP_HOST")
        if host is None:  # an HTTP/1.0 probe sends no name, but a browser always does
            return True
        return is_address(host_name(host)) or self._admin_hosts.trusts(host)

    def is_admin(self, local: Any) -> bool:
        """Whether a socket's own address is the address of the operators' listener."""
        if not isinstance(local, tuple) or self._admin_address is None:
            return False
        address, port = self._admin_address
        return local[1] == port and (local[0] == address or address in ANY_ADDRESS)


def _use_absolute_target(environ: "WSGIEnvironment", uri: str) -> None:
    """Replace `Host` with the authority of a target such as `http://shop.example.org/x`.

    See RFC 9112 §3.2.2.
    """
    if match := _AUTHORITY.match(uri):
        environ["HTTP_HOST"] = match[1]
