"""Creates the host's own responses, of the type `application/problem+json` (RFC 9457).

A response of the host never contains a file path, a stack trace, or information about another
client.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING

from tenantry.http.environ import REFUSED, REQUEST_ID

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


@dataclass(frozen=True)
class ProblemResponse:
    """A WSGI app that answers every request with the same problem."""

    status: HTTPStatus
    detail: str
    """A sentence that describes the problem to the client."""
    retry_after_s: int | None = None
    allow: str | None = None
    """Value of the `Allow` header, for a 405."""
    authenticate: str | None = None
    """Value of the `WWW-Authenticate` header, for a 401 or a 403 (RFC 9110 §11.6.1)."""
    is_refusal: bool = True
    """Whether the host rejected the request.

    If False, the response reports a failure of the app.
    """

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer a request with the problem."""
        if self.is_refusal:
            environ[REFUSED] = True
        body = self.body(environ)
        start_response(*self.head(len(body)))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def head(self, size_bytes: int) -> tuple[str, list[tuple[str, str]]]:
        """Return the status line and the headers for a body of `size_bytes` bytes."""
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
        """Return a JSON document with `type`, `title`, `status`, `detail` and `request_id`."""
        return f"{self._start_of_body}{quoted(environ.get(REQUEST_ID, ''))}}}\n".encode("ascii")

    # The two properties below are cached, because many requests can get the same response.

    @cached_property
    def _status_line(self) -> str:
        return f"{self.status.value} {self.status.phrase}"

    @cached_property
    def _start_of_body(self) -> str:
        document = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
        }
        return f'{json.dumps(document)[:-1]}, "request_id": '


Refusal = tuple[ProblemResponse, list[tuple[str, str]]]
"""A problem response, and additional headers."""

INTERNAL_ERROR = ProblemResponse(
    HTTPStatus.INTERNAL_SERVER_ERROR,
    "The application failed to answer this request.",
    is_refusal=False,
)

TIMED_OUT = ProblemResponse(
    HTTPStatus.GATEWAY_TIMEOUT,
    "The application took too long to answer this request.",
    is_refusal=False,
)
