"""The host's own answers: `application/problem+json` (RFC 9457). An answer *is* a WSGI app.

Never a reason that tells one client about another, a path of the machine or a stack.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

REQUEST_ID = "tenantry.request_id"
"""Key of the WSGI environ under which the request's id stands, once the front door gave it one."""

TENANT = "tenantry.tenant"
"""Key of the WSGI environ under which the tenant's name stands, once its mount has the request."""

REFUSED = "tenantry.refused"
"""Key of the WSGI environ that is there once the host has answered in the app's place."""

ANSWERED = "tenantry.answered"
"""Key of the WSGI environ under which the status stands that was sent past the server."""

CLIENT = "tenantry.client"
"""Key of the WSGI environ under which the client's name stands; `oidc:SUB` of one with a token."""

ENDPOINT = "tenantry.endpoint"
"""Key of the WSGI environ under which the app notes which of its endpoints the request is for."""


@dataclass(frozen=True)
class ProblemAnswer:
    """An answer that refuses or fails a request."""

    status: HTTPStatus
    detail: str
    """One sentence for the client."""
    retry_after_s: int | None = None
    allow: str | None = None
    """The methods of a 405."""
    authenticate: str | None = None
    """The challenge of a 401 or 403 (RFC 9110 §11.6.1)."""
    is_refusal: bool = True
    """Whether the request was kept from the app; else the app is at fault."""

    def head(self, size_bytes: int) -> tuple[str, list[tuple[str, str]]]:
        """Return the status line and the headers of the answer."""
        headers = [
            ("Content-Type", "application/problem+json"),
            ("Content-Length", str(size_bytes)),
            ("Cache-Control", "no-store"),
        ]
        if self.retry_after_s is not None:
            headers.append(("Retry-After", str(self.retry_after_s)))
        if self.allow is not None:
            headers.append(("Allow", self.allow))
        if self.authenticate is not None:
            headers.append(("WWW-Authenticate", self.authenticate))
        return self._status_line, headers

    def body(self, environ: "WSGIEnvironment") -> bytes:
        """Return the JSON document: type, title, status, detail, request_id."""
        return f"{self._beginning}{quoted(environ.get(REQUEST_ID, ''))}}}\n".encode("ascii")

    # What is the same in each of a flood of refusals is made once.

    @cached_property
    def _status_line(self) -> str:
        return f"{self.status.value} {self.status.phrase}"

    @cached_property
    def _beginning(self) -> str:
        document = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
        }
        return f'{json.dumps(document)[:-1]}, "request_id": '

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer as a WSGI app."""
        if self.is_refusal:
            environ[REFUSED] = True
        body = self.body(environ)
        start_response(*self.head(len(body)))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


Refusal = tuple[ProblemAnswer, list[tuple[str, str]]]
"""An answer, and the headers that it gets in addition."""

INTERNAL_ERROR = ProblemAnswer(
    HTTPStatus.INTERNAL_SERVER_ERROR,
    "The application failed to answer this request.",
    is_refusal=False,
)

TIMED_OUT = ProblemAnswer(
    HTTPStatus.GATEWAY_TIMEOUT,
    "The application took too long to answer this request.",
    is_refusal=False,
)
