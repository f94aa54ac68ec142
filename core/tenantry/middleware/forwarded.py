"""Forwarded headers: reads what the trusted proxies in front of the host report about a request.

Each proxy appends one value to an `X-Forwarded-…` header, so with two trusted proxies, the second
value from the right comes from the outermost trusted proxy. A client can send any value to the left
of that value. A proxy passes on a header that it does not know, so the host believes only the
headers that `TRUSTED_HEADERS` names. Werkzeug's `ProxyFix` also counts from the right, but a
quotation mark from a client hides the values that follow.
"""

import ipaddress
import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from tenantry.http.environ import IS_FOR_OPERATORS

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_SCHEMES = {"ws": "http", "wss": "https"}
"""Schemes that Traefik sends for WebSocket requests."""

_ADDRESS_AND_PORT = re.compile(r"(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\])(?::[0-9]{1,5})?")
_PORT = re.compile(r":[0-9]*$")


class ForwardedHeaders:
    """Reads forwarded headers into the environ. Immutable.

    Args:
        proxies: number of trusted proxies, at least 1.
        believed: the headers that the host believes, such as `for` for `X-Forwarded-For`.
    """

    __slots__ = ("_believed", "_proxies")

    def __init__(self, proxies: int, believed: Collection[str]) -> None:
        self._proxies = proxies
        self._believed = frozenset(believed)

    def apply(self, environ: "WSGIEnvironment") -> None:
        """Replace the client's address, scheme, host, port and prefix with the forwarded values.

        The method does not check the host, the port, the prefix and the scheme. On the operators'
        listener, the host name is not replaced, because a script on a website can send
        `X-Forwarded-Host`.
        """
        address = _address(self._value(environ, "for"))
        if address:
            environ["REMOTE_ADDR"] = address
        scheme = self._value(environ, "proto").lower()
        if scheme:
            environ["wsgi.url_scheme"] = _SCHEMES.get(scheme, scheme)
        if IS_FOR_OPERATORS in environ:
            return
        host = self._value(environ, "host")
        if host:
            _set_host(environ, host)
        port = self._value(environ, "port")
        if port and "HTTP_HOST" in environ:
            _set_host(environ, f"{_PORT.sub('', environ['HTTP_HOST'])}:{port}")
        prefix = self._value(environ, "prefix")
        if prefix:
            environ["SCRIPT_NAME"] = prefix

    def _value(self, environ: "WSGIEnvironment", name: str) -> str:
        """Return the value from the outermost trusted proxy; empty if no value is trusted."""
        if name not in self._believed:
            return ""
        values = environ.get(f"HTTP_X_FORWARDED_{name.upper()}", "").split(",")
        return values[-self._proxies].strip(" \t") if len(values) >= self._proxies else ""


def _set_host(environ: "WSGIEnvironment", host: str) -> None:
    environ["HTTP_HOST"] = host
    environ["SERVER_NAME"] = _PORT.sub("", host)
    port = _PORT.search(host)
    if port is not None and port[0] != ":":
        environ["SERVER_PORT"] = port[0][1:]


def _address(value: str) -> str:
    """Return an IP address without a port, or an empty string if a proxy sends `unknown`."""
    match = _ADDRESS_AND_PORT.fullmatch(value)
    try:
        return str(ipaddress.ip_address((match[1] or match[2]) if match else value))
    except ValueError:
        return ""
