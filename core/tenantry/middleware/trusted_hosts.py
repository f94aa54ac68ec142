"""Trusted hosts: the head check that refuses requests for unlisted host names."""

from http import HTTPStatus
from typing import TYPE_CHECKING

from tenantry.grammar import host_name
from tenantry.http.problem import ProblemResponse, Refusal

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_NOT_SERVED: Refusal = (
    ProblemResponse(HTTPStatus.BAD_REQUEST, "This host name is not served here."),
    [],
)
"""The response to a request for an unlisted host name. The response reveals no trusted name."""


class TrustedHosts:
    """Head check that answers 400 to requests for unlisted host names. Thread-safe.

    Args:
        names: host names without ports; `.example.org` includes subdomains. An empty tuple allows
            any host name.
    """

    __slots__ = ("_names",)

    is_quick = True

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = tuple(name.lower() for name in names)

    def refuse(self, environ: "WSGIEnvironment") -> Refusal | None:
        """Return a 400 for an unlisted host name, or None."""
        if self._names and not self.trusts(environ.get("HTTP_HOST", "")):
            return _NOT_SERVED
        return None

    def trusts(self, host: str) -> bool:
        """Whether a `Host` header contains a listed name."""
        name = host_name(host)
        return any(
            name == listed or (listed.startswith(".") and f".{name}".endswith(listed))
            for listed in self._names
        )
