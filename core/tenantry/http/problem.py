"""Creates the host's own responses: `application/problem+json` (RFC 9457), or a page for people.

A response of the host never contains a file path, a stack trace, or information about another
client.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from http import HTTPStatus
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, Any

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from tenantry.http.environ import REFUSED, REQUEST_ID

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


HTML = "text/html; charset=utf-8"

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The `Content-Security-Policy` of a page, which has no scripts and loads no resources."""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 1rem/1.5 system-ui, sans-serif; margin: 15vh auto; max-width: 36rem }}
body {{ padding: 0 1rem }}
h1 {{ font-size: 1.5rem }}
p {{ overflow-wrap: anywhere }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{detail}</p>
<p><small>Status {status} · Request ID <code>{request_id}</code></small></p>
</body>
</html>
"""

MAX_ACCEPT_BYTES = 500
"""Maximum length in bytes of an `Accept` header that is parsed. Browsers send up to 200 bytes.
Parsing 8,000 bytes would take 26 ms.
"""


def prefers_html(accept: str) -> bool:
    """Whether a client prefers HTML to JSON (RFC 9110 §12.5.1).

    JSON takes precedence if both have the same quality, as in `*/*`.
    """
    if accept in ("", "*/*") or len(accept) > MAX_ACCEPT_BYTES:
        return False
    accepted = parse_accept_header(accept, MIMEAccept)
    html = max(accepted.quality("text/html"), accepted.quality(HTML))
    json_ = max(map(accepted.quality, ("application/problem+json", "application/json")))
    return bool(html > json_)


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
        status, headers, body = self.render(environ)
        start_response(status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def render(self, environ: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        """Return the status line, the headers and the body of the response to a request.

        The body is an HTML page if the client prefers one, and a JSON document otherwise. The page
        and the document have the same content.
        """
        request_id = environ.get(REQUEST_ID, "")
        if prefers_html(environ.get("HTTP_ACCEPT", "")):
            body = self._page(request_id)
            headers = [("Content-Type", HTML), ("Content-Security-Policy", PAGE_POLICY)]
        else:
            body = f"{self._start_of_body}{quoted(request_id)}}}\n".encode("ascii")
            headers = [("Content-Type", "application/problem+json")]
        headers += [
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Vary", "Accept"),
        ]
        if self.retry_after_s is not None:
            headers.append(("Retry-After", str(self.retry_after_s)))
        if self.allow is not None:
            headers.append(("Allow", self.allow))
        if self.authenticate is not None:
            headers.append(("WWW-Authenticate", self.authenticate))
        return self._status_line, headers, body

    def _page(self, request_id: str) -> bytes:
        """Return the problem as an HTML page that loads nothing else."""
        page = PAGE.format(
            status=self.status.value,
            title=escape(self.status.phrase),
            detail=escape(self.detail),
            request_id=escape(request_id),
        )
        return page.encode("utf-8", "replace")

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
