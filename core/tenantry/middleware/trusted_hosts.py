"""Trusted hosts: the WSGI layer that refuses requests for unlisted host names."""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

from tenantry.http.problem import ProblemResponse

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HOST_IS_CHECKED = "tenantry.host_is_checked"
"""WSGI environ key that marks a host name as accepted by `TrustedHosts`. Werkzeug's own check of
trusted hosts rejects `ACME.test`, `acme.test.`, `web_1` and `[::1]`."""

NOT_SERVED = ProblemResponse(HTTPStatus.BAD_REQUEST, "This host name is not served here.")
"""The response to a request for an unlisted host name. The response reveals no trusted name."""

_PORT = re.compile(r":\d+$")


class TrustedHosts:
    """WSGI middleware that answers 400 to requests for unlisted host names. Thread-safe.

    Args:
        app: the wrapped application.
        names: host names without ports; `.example.org` includes subdomains. An empty tuple allows
            any host name.
    """

    __slots__ = ("_app", "_names")

    def __init__(self, app: "WSGIApplication", names: tuple[str, ...]) -> None:
        self._app = app
        self._names = tuple(name.lower() for name in names)

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Refuse the request, or mark its host name as checked and call the app."""
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
