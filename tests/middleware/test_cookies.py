"""A tenant's response can set cookies under the tenant's own prefix only."""

import logging
from typing import Any

import pytest
from werkzeug.test import Client, TestResponse

from tenantry.middleware.cookies import COOKIES_BYTES, CookieConfinement, Headers, confined_cookie

LOGGER = logging.getLogger("tenant.acme")


def answer(headers: Headers, root: str = "/acme", *, has_own_origin: bool = False) -> TestResponse:
    """Return the response of an app that sends `headers`."""

    def app(_: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", headers)
        return [b"ok"]

    wsgi = CookieConfinement(app, LOGGER, has_own_origin=has_own_origin)
    return Client(wsgi).get("/", base_url=f"http://localhost{root}")


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("a=1", "a=1; Path=/acme"),
        ("a=1; Path=/", "a=1; Path=/acme"),
        ("a=1; Path=/acme", "a=1; Path=/acme"),
        ("a=1; path=/acme/shop; HttpOnly", "a=1; HttpOnly; Path=/acme/shop"),
        ("a=1; Path=/acmecorp", "a=1; Path=/acme"),
        ("a=1; Path=/globex", "a=1; Path=/acme"),
        ("a=1; Path=acme", "a=1; Path=/acme"),
        ("a=1; Path", "a=1; Path=/acme"),
        ("a=1; Path=/acme; Path=/", "a=1; Path=/acme"),
        ("a=1; Path=/; Path=/acme/x", "a=1; Path=/acme/x"),
        ("a=1; Domain=example.org; Secure", "a=1; Secure; Path=/acme"),
        ("a=1; DOMAIN = .example.org", "a=1; Path=/acme"),
        ("a=; Max-Age=0", "a=; Max-Age=0; Path=/acme"),
        # this cookie is longer than browsers accept
        ("a=1; Path=/acme/" + "x" * 1024, "a=1; Path=/acme"),
        ("session_globex=bogus; Path=/globex", "session_globex=bogus; Path=/acme"),
        ("=__Host-a=1", None),
        ("a", None),
        ("", None),
    ],
)
def test_a_cookie_is_confined_to_the_tenants_root(sent: str, expected: str | None) -> None:
    """A cookie gets a path inside the tenant's root and no domain.

    A cookie without a name is dropped.
    """
    assert expected == confined_cookie(sent, "/acme")


@pytest.mark.parametrize(("root", "path"), [("", "/"), ("/behind/acme", "/behind/acme")])
def test_the_root_comes_from_the_request(root: str, path: str) -> None:
    """The cookie path follows a proxy's prefix, and is `/` for an app mounted at the root."""
    assert [f"a=1; Path={path}"] == answer([("Set-Cookie", "a=1")], root).headers.getlist(
        "Set-Cookie"
    )


def test_cookies_over_the_size_limit_are_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Cookies that would make every later request a 431 are dropped, and the log says how many."""
    cookies = [("Set-Cookie", f"{name}={'x' * 3900}") for name in "abc"]

    kept = answer(cookies).headers.getlist("Set-Cookie")

    assert ["a"] == [cookie[0] for cookie in kept]
    assert [(2, COOKIES_BYTES)] == [
        (vars(record)["dropped"], vars(record)["limit_bytes"]) for record in caplog.records
    ]


def test_a_cookie_over_the_limit_does_not_affect_later_ones(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After an oversized cookie, a session cookie and one that exactly fits are still sent."""
    rest = "b=" + "x" * (COOKIES_BYTES - len("b=; Path=/acme") - len("session=1; Path=/acme"))
    cookies = [("Set-Cookie", one) for one in ("a=" + "x" * 7000, "session=1", rest, "c=1")]

    kept = answer(cookies).headers.getlist("Set-Cookie")

    assert ["session=1; Path=/acme", f"{rest}; Path=/acme"] == kept
    assert [2] == [vars(record)["dropped"] for record in caplog.records]


@pytest.mark.parametrize(
    ("headers", "caching"),
    [
        ([("Set-Cookie", "a=1")], ["private"]),
        ([("Set-Cookie", "a=1"), ("Cache-Control", "max-age=60")], ["max-age=60"]),
        ([("set-cookie", "a=1"), ("expires", "0")], []),
        ([("X-Other", "1")], []),
    ],
)
def test_a_response_with_a_cookie_is_private(headers: Headers, caching: list[str]) -> None:
    """A response that sets a cookie and has no caching headers gets `Cache-Control: private`."""
    assert caching == answer(headers).headers.getlist("Cache-Control")


@pytest.mark.parametrize("name", [
    "Accept-CH", "Alt-Svc", "Attribution-Reporting-Register-Source",
    "Attribution-Reporting-Register-Trigger", "Cache-Group-Invalidation", "Clear-Site-Data",
    "Critical-CH", "Expect-CT", "IdP-SignIn-Status", "Login-Status", "NEL",
    "Observe-Browsing-Topics", "Origin-Agent-Cluster", "Public-Key-Pins", "Report-To",
    "Sec-Session-Registration", "Secure-Session-Registration", "Service-Worker-Allowed",
    "Set-Cookie2", "Set-Login", "Shared-Storage-Write", "Strict-Transport-Security",
    "Use-As-Dictionary", "USE-AS-DICTIONARY",
])  # fmt: skip
def test_headers_that_affect_the_whole_origin_are_removed(name: str) -> None:
    """A tenant cannot send headers that would also apply to other tenants of the same origin."""
    assert name not in answer([(name, '"*"'), ("X-Other", "1")]).headers


@pytest.mark.parametrize("name", [
    "Content-Security-Policy", "Cross-Origin-Opener-Policy", "Link", "Permissions-Policy",
    "Reporting-Endpoints", "Speculation-Rules", "Supports-Loading-Mode", "Activate-Storage-Access",
])  # fmt: skip
def test_headers_that_affect_only_their_own_page_are_kept(name: str) -> None:
    """A header that acts only on its own response or page reaches the client."""
    assert "x" == answer([(name, "x")]).headers[name]


@pytest.mark.parametrize(
    ("name", "sent", "expected"),
    [
        ("Alt-Svc", 'h3=":443"', 'h3=":443"'),
        (
            "Strict-Transport-Security",
            "max-age=300; includeSubDomains;preload",
            "max-age=300; preload",
        ),
        ("Clear-Site-Data", '"cache", "cookies","storage"', '"cache", "storage"'),
        ("Clear-Site-Data", '"*"', None),
        ("NEL", '{"report_to": "a", "max_age": 60}', '{"report_to": "a", "max_age": 60}'),
        ("NEL", '{"report_to": "a", "include_subdomains": true}', None),
        ("Public-Key-Pins", "max-age=1", None),
    ],
)
def test_an_origin_of_its_own_keeps_what_acts_only_there(
    name: str, sent: str, expected: str | None
) -> None:
    """A tenant with an origin of its own sends origin-wide headers, but no part for other names."""
    own = answer([(name, sent)], "/", has_own_origin=True)
    behind_prefix = answer([(name, sent)], "/apps", has_own_origin=True)

    assert (expected, None) == (own.headers.get(name), behind_prefix.headers.get(name))
