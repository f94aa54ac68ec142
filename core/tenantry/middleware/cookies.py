"""What a tenant's response may do to the browser's other tenants: nothing. A WSGI middleware.

All tenants of a host name are one origin, so a header of one tenant's response can reach the next
one's cookies: three cookies of 3,900 bytes at `Path=/` made every tenant answer 431. Here each
`Set-Cookie` leaves confined to the root of its request, and what acts on a whole origin is taken
out.
"""

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

COOKIES_BYTES = 6 << 10
"""Of `Set-Cookie` in one response: one of the 4 KiB that browsers keep, and some small ones. The
server takes a `Cookie` header of 8,190 bytes."""

PATH_BYTES = 1024
"""Of a cookie's `Path`: browsers pass over a longer one (RFC 6265bis §5.6) and take the folder of
the request's URL, which is `/` for `/acme`."""

ORIGIN_WIDE = frozenset({
    "accept-ch", "alt-svc", "clear-site-data", "nel", "origin-agent-cluster", "report-to",
    "service-worker-allowed", "set-cookie2", "strict-transport-security",
})  # fmt: skip
"""Headers that would act on the neighbours: they move their requests to another server (RFC 7838
§3) or to HTTPS, or back (RFC 6797 §8.1: the proxy's to say, which has the certificate), delete
their cookies and storage (W3C Clear Site Data §3), report their requests elsewhere (Network Error
Logging §3, and where to: Reporting), let a script of this tenant answer them (Service Workers
§6.1), change what browsers send to them (RFC 8942 §3.1) or which process they run in (HTML)."""

_CACHING = frozenset({"cache-control", "expires"})
_SET_COOKIE = "set-cookie"
_CONFINED = ORIGIN_WIDE | {_SET_COOKIE}
_USUAL = frozenset({"Cache-Control", "Content-Length", "Content-Type", "ETag", "Location", "Vary"})
"""Names of others, as most apps write them: they need no look."""

Headers = list[tuple[str, str]]


class CookieConfinement:
    """Keeps one tenant's responses from its neighbours' cookies. Safe in any thread.

    - A cookie's `Path` is inside the root under which the request came in, else it becomes that
      root; `Domain` goes, a cookie without a name goes.
    - A cookie that `COOKIES_BYTES` of one response have no room left for goes, and it is logged.
    - A response that sets a cookie and says nothing about caching is `Cache-Control: private`.
    """

    __slots__ = ("_app", "_logger")

    def __init__(self, app: "WSGIApplication", logger: logging.Logger) -> None:
        self._app = app
        self._logger = logger

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Call the app; its headers are confined on their way out."""
        root = environ.get("SCRIPT_NAME") or "/"

        def start(status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], object]:
            confined = self._confined(headers, root)
            if exc_info is None:
                return start_response(status, confined)
            return start_response(status, confined, exc_info)

        return self._app(environ, start)

    def _confined(self, headers: Headers, root: str) -> Headers:
        for name, _ in headers:
            if name not in _USUAL and name.lower() in _CONFINED:
                break
        else:
            return headers
        names = {name.lower() for name, _ in headers}
        kept = [one for one in headers if one[0].lower() not in _CONFINED]
        cookies = [
            cookie
            for name, value in headers
            if name.lower() == _SET_COOKIE and (cookie := confined_cookie(value, root))
        ]
        kept += [("Set-Cookie", cookie) for cookie in self._fitting(cookies)]
        if cookies and not names & _CACHING:
            kept.append(("Cache-Control", "private"))
        return kept

    def _fitting(self, cookies: list[str]) -> list[str]:
        left = COOKIES_BYTES
        fitting = []
        for cookie in cookies:
            if len(cookie) <= left:
                left -= len(cookie)
                fitting.append(cookie)
        if len(fitting) < len(cookies):
            facts = {"dropped": len(cookies) - len(fitting), "limit_bytes": COOKIES_BYTES}
            self._logger.error("response.cookies_dropped", extra=facts)
        return fitting


def confined_cookie(value: str, root: str) -> str | None:
    """Return a `Set-Cookie` value that stays under `root`; None where it names no cookie.

    As browsers read it (RFC 6265 §5.2): of two attributes of one name the last counts, and a path
    that does not begin with a slash is none.
    """
    pair, *attributes = (part.strip(" \t") for part in value.split(";"))
    if not pair.partition("=")[0].strip(" \t") or "=" not in pair:
        return None  # `=__Host-x=1` would be taken for another cookie (CVE-2023-23934)
    path = root
    kept = []
    for attribute in attributes:
        name, _, text = attribute.partition("=")
        lowered = name.strip(" \t").lower()
        if lowered == "path":
            path = text.strip(" \t")
        elif lowered != "domain":
            kept.append(attribute)
    if len(path) > PATH_BYTES or not _is_inside(path, root):
        path = root
    return "; ".join([pair, *kept, f"Path={path}"])


def _is_inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root if root == "/" else f"{root}/")
