"""Cookies: the WSGI layer that keeps a tenant's response headers from affecting other tenants.

Tenants under one host name share an origin, so the response headers of one tenant can affect other
tenants. For example, three cookies of 3,900 bytes with `Path=/` made every tenant answer 431. The
layer confines cookies to the tenant's URL prefix, and removes headers that act on the whole origin.
A tenant with an origin of its own keeps these headers, except for parts that also act on subdomains
or on other names of the site.
"""

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

COOKIES_BYTES = 6 << 10
"""Maximum total size in bytes of the cookies that one response sets: one cookie of 4 KiB, the limit
of browsers, and some small cookies. The server accepts a `Cookie` header of up to 8,190 bytes."""

PATH_BYTES = 1024
"""Maximum length in bytes of a cookie's `Path`. Browsers ignore a longer `Path` (RFC 6265bis §5.6)
and use the folder of the request's URL instead, which is `/` for `/acme`."""

ORIGIN_WIDE = frozenset({
    # These headers control where and how requests are sent: RFC 7838, RFC 6797, RFC 7469, RFC 9163
    "alt-svc", "strict-transport-security", "public-key-pins", "public-key-pins-report-only",
    "expect-ct",
    # These headers control what requests contain: RFC 8942, Client Hints Reliability, RFC 9842
    "accept-ch", "accept-ch-lifetime", "critical-ch", "use-as-dictionary",
    # These headers control what the browser stores: Clear Site Data, RFC 2965, Shared Storage, RFC
    # 9875
    "clear-site-data", "set-cookie2", "shared-storage-write", "cache-group-invalidation",
    # These headers report whether the visitor is signed in: Login Status, Device Bound Sessions
    "login-status", "set-login", "idp-signin-status", "secure-session-registration",
    "secure-session-challenge", "sec-session-registration", "sec-session-challenge",
    # These headers control what the browser reports about the visitor: Network Error Logging,
    # Reporting, Topics, Attribution Reporting
    "nel", "report-to", "observe-browsing-topics", "attribution-reporting-register-source",
    "attribution-reporting-register-trigger", "attribution-reporting-register-os-source",
    "attribution-reporting-register-os-trigger",
    # These headers control which scripts and processes serve pages: Service Workers, HTML
    "service-worker-allowed", "origin-agent-cluster", "origin-isolation",
})  # fmt: skip
"""Response headers that act on a whole origin, or on all its later requests, and therefore on other
tenants. For example, `alt-svc` can move requests to another server, and `service-worker-allowed`
lets a script of one tenant answer requests for other tenants. Headers that act only on their own
response or page, such as `content-security-policy`, are not in the list. A proxy in front of the
host can set origin-wide headers for all tenants."""

_OBSOLETE = frozenset({"set-cookie2", "public-key-pins", "public-key-pins-report-only"})
"""Headers that act beyond the origin and that no browser uses any more."""

_CACHING = frozenset({"cache-control", "expires"})
_SET_COOKIE = "set-cookie"
_CONFINED = ORIGIN_WIDE | {_SET_COOKIE}
_USUAL = frozenset({"Cache-Control", "Content-Length", "Content-Type", "ETag", "Location", "Vary"})
"""Common header names that `CookieConfinement` passes on without further checks."""

Headers = list[tuple[str, str]]


class CookieConfinement:
    """WSGI middleware that confines cookies to the tenant's URL prefix. Thread-safe.

    - The URL prefix replaces a cookie's `Path` that leads outside the prefix. The layer removes
      every `Domain` attribute, and every cookie without a name.
    - Origin-wide headers are removed, unless the tenant has an origin of its own.
    - The layer removes cookies beyond `COOKIES_BYTES` in one response, and logs how many cookies it
      removed.
    - A response that sets a cookie but has no caching header gets `Cache-Control: private`.
    """

    __slots__ = ("_app", "_has_own_origin", "_logger")

    def __init__(
        self, app: "WSGIApplication", logger: logging.Logger, *, has_own_origin: bool = False
    ) -> None:
        self._app = app
        self._logger = logger
        self._has_own_origin = has_own_origin

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Call the app and confine its response headers."""
        root = environ.get("SCRIPT_NAME") or "/"

        def start(status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], object]:
            for name, _ in headers:
                if name not in _USUAL and name.lower() in _CONFINED:
                    headers = self._confined(headers, root)
                    break
            if exc_info is None:
                return start_response(status, headers)
            return start_response(status, headers, exc_info)

        return self._app(environ, start)

    def _confined(self, headers: Headers, root: str) -> Headers:
        names = {name.lower() for name, _ in headers}
        kept = [one for one in headers if one[0].lower() not in _CONFINED]
        if self._has_own_origin and root == "/":  # no proxy in front adds a prefix
            kept += _origin_headers(headers)
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


def _origin_headers(headers: Headers) -> Headers:
    """Return the origin-wide headers, without the parts that act beyond the origin."""
    kept = []
    for name, value in headers:
        lowered = name.lower()
        if lowered in ORIGIN_WIDE and (own := _own_part(lowered, value)):
            kept.append((name, own))
    return kept


def _own_part(lowered: str, value: str) -> str:
    """Return the part of an origin-wide header that acts only on the origin."""
    if lowered == "strict-transport-security":
        return _without(value, ";", "includesubdomains")
    if lowered == "clear-site-data":
        return _without(value, ",", '"cookies"', '"*"')
    # The JSON of NEL and Report-To can include subdomains.
    return "" if lowered in _OBSOLETE or "include_subdomains" in value else value


def _without(value: str, separator: str, *parts: str) -> str:
    """Return a header value without some of its parts."""
    items = (item.strip(" \t") for item in value.split(separator))
    return f"{separator} ".join(item for item in items if item and item.lower() not in parts)


def confined_cookie(value: str, root: str) -> str | None:
    """Return a `Set-Cookie` value confined to the path `root`; None if the value names no cookie.

    Like a browser, the function uses the last of several attributes with the same name, and ignores
    a path that does not begin with a slash (RFC 6265 §5.2).
    """
    pair, *attributes = (part.strip(" \t") for part in value.split(";"))
    if not pair.partition("=")[0].strip(" \t") or "=" not in pair:
        return None  # a browser reads `=__Host-x=1` as the cookie `__Host-x` (CVE-2023-23934)
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
