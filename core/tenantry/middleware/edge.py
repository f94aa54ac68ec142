"""The edge: the WSGI layer that every request passes before the router.

`Edge` gives each request and response an `X-Request-ID`, refuses requests with a missing or
malformed `Host`, refuses `CONNECT`, drops headers that a client may not set, and keeps the
operators' listener apart from the tenants' listener.
"""

import os
import re
import socket
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from tenantry.grammar import FORWARDED_PREFIX, is_host_header
from tenantry.http.environ import REQUEST_ID
from tenantry.http.problem import ProblemResponse

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

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
    """The WSGI layer between `Accounting` and the router. Thread-safe.

    Args:
        tenants: answers requests on the tenants' listeners.
        operators: answers requests on the operators' listener.
        admin_address: IP address and port of the operators' listener; None without an operators'
            listener.
    """

    def __init__(
        self,
        tenants: "WSGIApplication",
        operators: "WSGIApplication",
        admin_address: tuple[str, int] | None,
    ) -> None:
        self._tenants = tenants
        self._operators = operators
        self._admin_address = admin_address

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Check the request, then call the tenants or the operators' pages."""
        sent = environ.get("HTTP_X_REQUEST_ID", "")
        request_id = sent if sent and _VALID_REQUEST_ID.fullmatch(sent) else os.urandom(16).hex()
        environ[REQUEST_ID] = environ["HTTP_X_REQUEST_ID"] = request_id
        environ.pop("HTTP_REMOTE_USER", None)
        # ProxyFix copies X-Forwarded-Prefix, which proxies often send with a final slash.
        environ["SCRIPT_NAME"] = environ.get("SCRIPT_NAME", "").removesuffix("/")
        app: WSGIApplication = self._refusal(environ) or self._tenants
        # The connection tells the listener, because on a Unix socket, `SERVER_PORT` comes from the
        # `Host` header.
        connection: socket.socket | None = environ.get("gunicorn.socket")
        if app is self._tenants and connection is not None and self._admin_address is not None:
            app = self._operators if self.is_admin(connection.getsockname()) else app
        return app(environ, _with_request_id(start_response, request_id))

    @staticmethod
    def _refusal(environ: "WSGIEnvironment") -> ProblemResponse | None:
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


def _with_request_id(
    start_response: "StartResponse", request_id: str
) -> "Callable[..., Callable[[bytes], object]]":
    def start(
        status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        own = [("X-Request-ID", request_id)]
        for header in headers:
            if header[0].lower() != "x-request-id":
                own.append(header)  # noqa: PERF401 - a comprehension is one more call per request
        if exc_info is None:
            return start_response(status, own)
        return start_response(status, own, exc_info)

    return start
