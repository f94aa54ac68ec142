"""Requests the start page of an app below a URL prefix, and finds links that lose the prefix."""

from collections.abc import Iterator
from contextlib import suppress
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

from flask import Flask, got_request_exception
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.test import Client, TestResponse

from tenantry.adoption.fact import Fact
from tenantry.endpoints.loading import describe_failure
from tenantry.http.environ import HEAD_CHECKED_FOR

ORIGIN = "http://localhost"

MAX_REDIRECTS = 5
MAX_PAGE_BYTES = 1 << 20
"""How many redirects and bytes of a page are read; a start page has fewer."""

_LINKS = frozenset({"action", "data", "formaction", "href", "poster", "src"})
"""The attributes of HTML elements that contain a URL."""


def check_start_page(app: Flask, tenant: str, prefix: str) -> Iterator[Fact]:
    """Yield a fact for each redirect and link of the start page that leaves the prefix.

    Only URLs that the app itself would answer count: other URLs belong to other sites.

    Args:
        app: the app of a tenant.
        tenant: the tenant's name.
        prefix: the URL prefix.
    """
    client = Client(app.wsgi_app)
    url = f"{ORIGIN}{prefix}/"
    for _ in range(MAX_REDIRECTS):
        answer, error = _request(client, app, tenant, prefix, url)
        with answer:
            if error is not None:
                yield Fact("answer", _path(url)[len(prefix) :], describe_failure(error, ()))
            target = _joined(url, answer.headers.get("Location", url))
            if target == url:
                yield from _links(app, answer, url, prefix)
                return
        if _loses_prefix(app, target, prefix):
            yield Fact("redirect", _path(target), _path(url)[len(prefix) :])
            target = f"{ORIGIN}{prefix}{target.removeprefix(ORIGIN)}"
        if not _is_below(target, prefix):
            return
        url = target


def _request(
    client: Client, app: Flask, tenant: str, prefix: str, url: str
) -> tuple[TestResponse, BaseException | None]:
    """Return the answer, and the exception that the app has handled."""
    raised: list[BaseException] = []

    def note(_: object, exception: BaseException) -> None:
        raised.append(exception)

    parts = urlsplit(url)
    with got_request_exception.connected_to(note, app):
        answer = client.get(
            unquote(parts.path).removeprefix(prefix) or "/",
            base_url=f"{ORIGIN}{prefix}/",
            query_string=parts.query,
            environ_overrides={HEAD_CHECKED_FOR: tenant},
        )
    return answer, raised[0] if raised else None


def _links(app: Flask, answer: TestResponse, url: str, prefix: str) -> Iterator[Fact]:
    if answer.mimetype != "text/html":
        return
    finder = _LinkFinder()
    size = 0
    for part in answer.response:
        with suppress(AssertionError):  # how the parser reports an unknown `<![…` section
            finder.feed(part.decode(errors="replace") if isinstance(part, bytes) else part)
        size += len(part)
        if size > MAX_PAGE_BYTES:
            break
    for tag, link in finder.found:
        target = _joined(url, link.strip())
        if _loses_prefix(app, target, prefix):
            yield Fact("link", f"<{tag}> {link.strip()}", _path(url)[len(prefix) :])


def _loses_prefix(app: Flask, url: str, prefix: str) -> bool:
    """Whether a URL is outside of the prefix, but the app has a page there without the prefix."""
    if not url.startswith(f"{ORIGIN}/") or _is_below(url, prefix):
        return False
    adapter = app.url_map.bind("localhost")
    try:
        adapter.match(unquote(_path(url)))
    except NotFound:
        return False
    except HTTPException:  # a redirect, or a page for another method
        return True
    return True


def _joined(url: str, link: str) -> str:
    """Return the absolute URL of a link, or the page's own URL if the link is invalid."""
    try:
        return urljoin(url, link)
    except ValueError:  # such as http://[
        return url


def _is_below(url: str, prefix: str) -> bool:
    return url.startswith(f"{ORIGIN}/") and f"{_path(url)}/".startswith(f"{prefix}/")


def _path(url: str) -> str:
    return urlsplit(url).path


class _LinkFinder(HTMLParser):
    """Collects the links of a page, with their tags."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Add the links of one element."""
        self.found += [(tag, value) for name, value in attrs if name in _LINKS and value]
