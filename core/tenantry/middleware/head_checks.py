"""Head checks: the WSGI layer that refuses a request because of the request's head.

The checks run in a fixed order: host name, key or token, rate, declared length. A server can run
the checks itself, before the server asks for a body and before a thread runs the request. Under any
other server, the layer runs the checks in the thread. Each check runs once per request.
"""

import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from structlog.contextvars import bind_contextvars

from tenantry.http.environ import CLIENT, HEAD_CHECKED_FOR, HEAD_REFUSAL, RATE_HEADERS
from tenantry.http.problem import ProblemResponse, Refusal
from tenantry.middleware.authentication import CLAIMS
from tenantry.middleware.body_limit import INPUT_TERMINATED, BodyLimit

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Headers = list[tuple[str, str]]

VARY = ("Vary", "Authorization, X-API-Key")
"""The request headers that can contain a key."""

_CACHED_BY = re.compile(
    r"(?:^|[\s,])(?:public|private|no-store|s-maxage)(?:$|[\s,=])", re.IGNORECASE
)
"""Directives of `Cache-Control` that say whether a shared cache may store a response."""

LENGTH_REQUIRED = ProblemResponse(
    HTTPStatus.LENGTH_REQUIRED, "This server needs the length of a body before the body."
)


class HeadCheck(Protocol):
    """One decision from the head of a request. Thread-safe."""

    is_quick: bool
    """Whether `refuse` neither waits for the network, nor verifies a signature, nor runs code of
    the app."""

    def refuse(self, environ: "WSGIEnvironment") -> Refusal | None:
        """Return the response to a request that the check refuses, or None."""


class HeadChecks:
    """WSGI middleware: answers a request that a check refuses, or calls the app. Thread-safe.

    Args:
        app: the wrapped application.
        tenant: the name of the tenant.
        checks: the checks before the check of the declared length, in their order.
        body_limit: checks the declared length, and reads a body of unknown length.
        is_stranger: whether a request will be refused because it has no known key; None if the
            tenant is open. A server asks before the request takes a place among the tenant's
            requests in flight.
    """

    __slots__ = ("_app", "_body_limit", "_checks", "_tenant", "is_quick", "is_stranger")

    def __init__(
        self,
        app: "WSGIApplication",
        tenant: str,
        checks: Iterable[HeadCheck],
        body_limit: BodyLimit,
        is_stranger: "Callable[[WSGIEnvironment], bool] | None" = None,
    ) -> None:
        self._app = app
        self._tenant = tenant
        self._checks = tuple(checks)
        self._body_limit = body_limit
        self.is_stranger = is_stranger
        self.is_quick = all(check.is_quick for check in self._checks)
        """Whether a server can call `refuse` on a thread that must not wait."""

    def refuse(self, environ: "WSGIEnvironment") -> Refusal | None:
        """Run all checks and return the response of the first check that refuses, or None.

        A second call for the same request returns the same result without running a check. `refuse`
        sets no context variable.

        Args:
            environ: the environ of the request, with `SCRIPT_NAME` and `PATH_INFO` as for the app.
        """
        checked_for = environ.get(HEAD_CHECKED_FOR)
        if checked_for == self._tenant:
            return environ.get(HEAD_REFUSAL)
        if checked_for is not None:
            # The address moved to another tenant between the check and the call of the app.
            for key in (HEAD_REFUSAL, CLIENT, CLAIMS, RATE_HEADERS):
                environ.pop(key, None)
        environ[HEAD_CHECKED_FOR] = self._tenant
        for check in self._checks:
            refusal = check.refuse(environ)
            if refusal is not None:
                break
        else:
            refusal = self._body_limit.refuse(environ) if environ.get("CONTENT_LENGTH") else None
        if refusal is not None:
            environ[HEAD_REFUSAL] = refusal
        return refusal

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Refuse the request, or call the app with a body of known length."""
        if (
            self._checks
            or environ.get("CONTENT_LENGTH")
            or INPUT_TERMINATED in environ
            or "HTTP_TRANSFER_ENCODING" in environ
            or environ.setdefault(HEAD_CHECKED_FOR, self._tenant) != self._tenant
        ):
            refusal = self.refuse(environ)
            if refusal is not None:
                return refusal[0](environ, _adding(refusal[1], start_response))
            if CLIENT in environ:
                bind_contextvars(client=environ[CLIENT])
                start_response = _keeping_private(start_response)
            if RATE_HEADERS in environ:
                start_response = _adding(environ[RATE_HEADERS], start_response)
            # With the key `INPUT_TERMINATED`, Werkzeug reads up to the end of the stream instead of
            # the declared length. Without the key, reading an incomplete body raises an error.
            is_terminated = environ.pop(INPUT_TERMINATED, False)
            if is_terminated and not environ.get("CONTENT_LENGTH"):
                return self._body_limit.read_first(self._app, environ, start_response)
            if "HTTP_TRANSFER_ENCODING" in environ and not environ.get("CONTENT_LENGTH"):
                # Under a server such as uWSGI, the app would get an empty body.
                return LENGTH_REQUIRED(environ, start_response)
        return self._app(environ, start_response)


def _keeping_private(start_response: "StartResponse") -> "StartResponse":
    """Return a `start_response` that keeps shared caches from sending a response to other clients.

    A shared cache already keeps responses to requests with `Authorization` private (RFC 9111 §3.5),
    but does not know the header `X-API-Key`.
    """

    def start(status: str, headers: Headers, exc_info: Any = None, /) -> Callable[[bytes], object]:
        caching = ",".join(value for name, value in headers if name.lower() == "cache-control")
        added = [VARY] if _CACHED_BY.search(caching) else [VARY, ("Cache-Control", "private")]
        if exc_info is None:
            return start_response(status, [*headers, *added])
        return start_response(status, [*headers, *added], exc_info)

    return start


def _adding(added: Headers, start_response: "StartResponse") -> "StartResponse":
    """Return a `start_response` that adds headers."""

    def start(status: str, headers: Headers, exc_info: Any = None, /) -> Callable[[bytes], object]:
        if exc_info is None:
            return start_response(status, [*headers, *added])
        return start_response(status, [*headers, *added], exc_info)

    return start
