"""The edge: finds out who answers a request, before a thread runs it.

`Edge` gives each request an ID, refuses requests with a missing or malformed `Host`, refuses
`CONNECT`, drops headers that a client may not set, keeps the operators' listener apart from the
tenants' listener, and asks the router for the mount.
"""

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from tenantry.grammar import FORWARDED_PREFIX, is_host_header
from tenantry.http.environ import CONNECTION, IS_FOR_OPERATORS, REQUEST_ID, TARGET, TENANT
from tenantry.http.problem import ProblemResponse
from tenantry.http.request_id import new_request_id

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

BAD_HOST = ProblemResponse(HTTPStatus.BAD_REQUEST, "The Host header is missing or malformed.")
BAD_PROXY = ProblemResponse(
    HTTPStatus.BAD_REQUEST, "X-Forwarded-Proto or X-Forwarded-Prefix is malformed."
)
NO_TUNNEL = ProblemResponse(
    HTTPStatus.METHOD_NOT_ALLOWED,
    "This server is not a proxy.",
    allow="GET, HEAD, POST, PUT, PATCH, DELETE",
)

_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


class Edge:
    """Finds the app that answers a request. Thread-safe.

    Args:
        route: returns the app for a request on the tenants' listeners.
        operators: answers requests on the operators' listener.
        admin_address: IP address and port of the operators' listener; None without an operators'
            listener.
        is_behind_proxies: whether headers of proxies have changed the environ.
    """

    def __init__(
        self,
        route: "Callable[[WSGIEnvironment], WSGIApplication]",
        operators: "WSGIApplication",
        admin_address: tuple[str, int] | None,
        *,
        is_behind_proxies: bool = True,
    ) -> None:
        self._is_behind_proxies = is_behind_proxies
        self._route = route
        self._operators = operators
        self._admin_address = admin_address

    def route(self, environ: "WSGIEnvironment", _: object = None) -> Any:
        """Check a request, and put the app that answers it into the environ as `TARGET`.

        Return the tenant; an empty string for a page of the host, None for a request of operators.
        The second argument makes `route` a WSGI app for `ProxyFix`.
        """
        sent = environ.get("HTTP_X_REQUEST_ID")
        request_id = sent if sent and _VALID_REQUEST_ID.fullmatch(sent) else new_request_id()
        environ[REQUEST_ID] = environ["HTTP_X_REQUEST_ID"] = request_id
        environ.pop("HTTP_REMOTE_USER", None)
        # Tenantry's worker has checked what no proxy has changed.
        is_checked = CONNECTION in environ and not self._is_behind_proxies
        target = None
        if not is_checked or environ["REQUEST_METHOD"] == "CONNECT":
            # ProxyFix copies X-Forwarded-Prefix, which proxies often send with a final slash.
            environ["SCRIPT_NAME"] = environ.get("SCRIPT_NAME", "").removesuffix("/")
            target = self._refusal(environ)
        is_for_operators = IS_FOR_OPERATORS in environ
        if target is None:
            target = self._operators if is_for_operators else self._route(environ)
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

    def is_admin(self, local: Any) -> bool:
        """Whether a socket's own address is the address of the operators' listener."""
        if not isinstance(local, tuple) or self._admin_address is None:
            return False
        address, port = self._admin_address
        return local[1] == port and (local[0] == address or address in _ANY_ADDRESS)
