"""The page `/-/domain?domain=NAME`: whether the host serves a host name.

A proxy such as Caddy asks this page before it requests a certificate for a name. The page answers
from memory, without a lock, so that it also answers while tenants fail.
"""

from collections.abc import Callable, Collection, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from tenantry.grammar import host_name
from tenantry.http.problem import ProblemResponse

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_SERVED = ProblemResponse(HTTPStatus.OK, "This host serves the name.", is_refusal=False)
_UNKNOWN = ProblemResponse(HTTPStatus.NOT_FOUND, "This host does not serve the name.")


class DomainPage:
    """A WSGI app that answers 200 for a name that the host serves, and otherwise 404. Thread-safe.

    Args:
        names: returns the present and former host names of all tenants that are not disabled.
        trusted_hosts: the host's `TRUSTED_HOSTS`, of which only exact names count.
    """

    def __init__(
        self, names: Callable[[], Collection[str]], trusted_hosts: Collection[str]
    ) -> None:
        self._names = names
        self._trusted = frozenset(host_name(name) for name in trusted_hosts if name[0] != ".")

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer a request of a proxy."""
        values = parse_qs(environ.get("QUERY_STRING", "")).get("domain", [])
        name = values[0].lower().removesuffix(".") if len(values) == 1 else ""
        is_served = name in self._names() or name in self._trusted
        return (_SERVED if is_served else _UNKNOWN)(environ, start_response)
