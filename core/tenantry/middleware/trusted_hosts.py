"""Trusted hosts: the WSGI layer that refuses requests for unlisted host names."""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

from tenantry.http.problem import ProblemResponse

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HOST_IS_CHECKED = "tenantry.host_is_checked"
"""Key of the WSGI environ that is present once `TrustedHosts` has accepted the host name.
Werkzeug's own check of trusted hosts rejects `ACME.test`, `acme.test.`, `web_1` and `[::1]`."""

NOT_SERVED = ProblemResponse(HTTPStatus.BAD_REQUEST, "This host name is not served here.")
"""The response to a request for an unknown host name, which reveals no trusted host name."""

_PORT = re.compile(r":\d+$")


class TrustedHosts:
    """WSGI middleware: a request for a host name that is not listed gets 400. Thread-safe.

    Args:
        app: the wrapped application.
        names: host names without ports; `.example.org` includes subdomains. An empty tuple means
            any host name.
    """

    __slots__ = ("_app", "_names")

    def __init__(self, app: "WSGIApplication", names: tuple[str, ...]) -> None:
        self._app = app
        self._names = tuple(name.lower() for name in names)

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Refuse an untrusted host name, or call the app and mark the host name as checked."""
        if self._names and not self._is_trusted(environ.get("HTTP_HOST", "")):
            return NOT_SERVED(environ, start_response)
        environ[HOST_IS_CHECKED] = True
        return self._app(environ, start_response)

    def _is_trusted(self, host: str) -> bool:
        name = _PORT.sub("", host).lower().removesuffix(".")
        return any(
            name == listed or (listed.startswith(".") and f".{name}".endswith(listed))
            for listed in self._names
        )
