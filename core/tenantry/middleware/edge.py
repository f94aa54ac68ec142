"""The front door: what every request passes before a prefix is looked for.

Gives each request and response its `X-Request-ID`, refuses what is no request for us (no or a
malformed `Host`, `CONNECT`), drops what a client may not say about itself, and keeps the
operators' listener and the tenants' listener apart.
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
    HTTPStatus.METHOD_NOT_ALLOWED, "This is no proxy.", allow="GET, HEAD, POST, PUT, PATCH, DELETE"
)

_CLIENTS_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Edge:
    """The outermost WSGI layer. Safe in any thread.

    Args:
        tenants: answers what comes in on the tenants' listeners.
        operators: answers what comes in on the admin listener, if there is one.
        admin_address: IP address and port of that listener.
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
        """Check the request, then pass it to the side that its listener belongs to."""
        sent = environ.get("HTTP_X_REQUEST_ID", "")
        request_id = sent if sent and _CLIENTS_ID.fullmatch(sent) else os.urandom(16).hex()
        environ[REQUEST_ID] = environ["HTTP_X_REQUEST_ID"] = request_id
        environ.pop("HTTP_REMOTE_USER", None)
        # As ProxyFix took it from X-Forwarded-Prefix, which people write with a slash at its end.
        environ["SCRIPT_NAME"] = environ.get("SCRIPT_NAME", "").removesuffix("/")
        answer = self._refusal(environ) or self._side(environ)
        return answer(environ, _with_request_id(start_response, request_id))

    def _refusal(self, environ: "WSGIEnvironment") -> ProblemResponse | None:
        if not _is_host_good(environ):
            return BAD_HOST
        is_http = environ["wsgi.url_scheme"] in ("http", "https")
        if not is_http or not FORWARDED_PREFIX.fullmatch(environ["SCRIPT_NAME"]):
            return BAD_PROXY
        return NO_TUNNEL if environ["REQUEST_METHOD"] == "CONNECT" else None

    def _side(self, environ: "WSGIEnvironment") -> "WSGIApplication":
        # Asked of the connection itself: SERVER_PORT follows the Host header on a unix socket.
        connection: socket.socket | None = environ.get("gunicorn.socket")
        if self._admin_address is None or connection is None:
            return self._tenants
        return self._operators if self.is_admin(connection.getsockname()) else self._tenants

    def is_admin(self, local: Any) -> bool:
        """Whether a listener's address is the operators' own."""
        if not isinstance(local, tuple) or self._admin_address is None:
            return False
        address, port = self._admin_address
        return local[1] == port and (local[0] == address or address in ("0.0.0.0", "::"))  # noqa: S104


def _is_host_good(environ: "WSGIEnvironment") -> bool:
    host = environ.get("HTTP_HOST")
    if host is None:
        return environ.get("SERVER_PROTOCOL") != "HTTP/1.1"  # RFC 9112 §3.2
    return is_host_header(host)


def _with_request_id(
    start_response: "StartResponse", request_id: str
) -> "Callable[..., Callable[[bytes], object]]":
    def start(
        status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        kept = [header for header in headers if header[0].lower() != "x-request-id"]
        kept.append(("X-Request-ID", request_id))
        if exc_info is None:
            return start_response(status, kept)
        return start_response(status, kept, exc_info)

    return start


HOST_IS_CHECKED = "tenantry.host_is_checked"
"""Key of the WSGI environ: this layer let the request through. Werkzeug's own check, of the same
list, would refuse `ACME.test`, `acme.test.`, `web_1` and `[::1]`."""


class TrustedHosts:
    """WSGI middleware: a request for a host name that is not listed gets 400."""

    __slots__ = ("_app", "_names")

    def __init__(self, app: "WSGIApplication", names: tuple[str, ...]) -> None:
        self._app = app
        self._names = tuple(name.lower() for name in names)

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer 400 without a word about which names there are."""
        if self._names and not self._is_trusted(environ.get("HTTP_HOST", "")):
            return NOT_SERVED(environ, start_response)
        environ[HOST_IS_CHECKED] = True
        return self._app(environ, start_response)

    def _is_trusted(self, host: str) -> bool:
        name = re.sub(r":\d+$", "", host).lower().removesuffix(".")
        return any(
            name == listed or (listed.startswith(".") and f".{name}".endswith(listed))
            for listed in self._names
        )


NOT_SERVED = ProblemResponse(HTTPStatus.BAD_REQUEST, "This host name is not served here.")
