"""Redirects from a former address, or from another host name, to a tenant's present address."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote

from tenantry.http.problem import ProblemResponse
from tenantry.tenants.address import Pair

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

MAX_AGE_S = 60
"""Seconds for which a browser may keep a redirect. Without a limit, a browser keeps a 308 for
months, although the address can get a new tenant."""

_MOVED = ProblemResponse(HTTPStatus.PERMANENT_REDIRECT, "This address has moved.", is_refusal=False)


class AddressRedirect:
    """A WSGI app that redirects from one pair of a host name and a prefix to another. Immutable.

    The path and the query stay as the client sent them, except for the prefix. To another name, the
    `Location` begins with `//`, so that the scheme stays the same, and keeps the client's port.
    """

    __slots__ = ("_new", "_old")

    def __init__(self, old: Pair, new: Pair) -> None:
        self._old = old
        self._new = new

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer a request with a 308."""
        status, headers, body = _MOVED.render(environ)
        headers = [header for header in headers if header[0] != "Cache-Control"]
        headers.append(("Cache-Control", f"max-age={MAX_AGE_S}"))
        headers.append(("Location", self._location(environ)))
        start_response(status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _location(self, environ: "WSGIEnvironment") -> str:
        old_prefix, (name, new_prefix) = self._old[1], self._new
        outside = environ.get("SCRIPT_NAME", "").removesuffix(old_prefix)  # from a trusted proxy
        path, query = _raw_target(environ, old_prefix)
        place = f"{outside}{new_prefix}{_after(path, old_prefix)}"
        if name != self._old[0]:
            place = f"//{name}{_port(environ.get('HTTP_HOST', ''))}{place or '/'}"
        return f"{place}?{query}" if query else place


def _raw_target(environ: "WSGIEnvironment", old_prefix: str) -> tuple[str, str]:
    """Return the path and the query, still percent-encoded."""
    target = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
    if target[:1] != "/" and "://" in target:  # the absolute form (RFC 9112 §3.2.2)
        rest = target.partition("://")[2]
        place = min((at for mark in "/?#" if (at := rest.find(mark)) >= 0), default=len(rest))
        target = rest[place:] if rest[place : place + 1] == "/" else f"/{rest[place:]}"
    if target:
        path, _, query = target.partition("#")[0].partition("?")
        return path, query
    # The server does not keep the target.
    path = quote(old_prefix + environ.get("PATH_INFO", ""), encoding="latin-1")
    return path, environ.get("QUERY_STRING", "")


def _after(path: str, prefix: str) -> str:
    """Return the rest of a raw path that begins with `prefix`, some characters of it encoded."""
    place = 0
    for _ in prefix:
        place += 3 if path[place : place + 1] == "%" else 1
    return path[place:]


def _port(host: str) -> str:
    """Return the port in a `Host` header with its colon, or an empty string."""
    name, colon, port = host.rpartition(":")
    return f":{port}" if colon and port and not port.endswith("]") and name else ""
