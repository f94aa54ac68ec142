"""What a tenant's response says about cookies stays under the tenant's own prefix."""

import logging
from typing import Any

import pytest
from werkzeug.test import Client, TestResponse

from tenantry.middleware.cookies import COOKIES_BYTES, CookieConfinement, Headers, confined_cookie

LOGGER = logging.getLogger("tenant.acme")


def answer(headers: Headers, root: str = "/acme") -> TestResponse:
    """Return the response of an app that sends `headers`."""

    def app(_: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", headers)
        return [b"ok"]

    return Client(CookieConfinement(app, LOGGER)).get("/", base_url=f"http://localhost{root}")


@pytest.mark.parametrize(
    ("sent", "leaves"),
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
        ("a=1; Path=/acme/" + "x" * 1024, "a=1; Path=/acme"),  # browsers take none so long
        ("session_globex=bogus; Path=/globex", "session_globex=bogus; Path=/acme"),
        ("=__Host-a=1", None),
        ("a", None),
        ("", None),
    ],
)
def test_a_cookie_is_confined(sent: str, leaves: str | None) -> None:
    """Its path is inside the tenant's root and it has no domain; a cookie without a name goes."""
    assert leaves == confined_cookie(sent, "/acme")


@pytest.mark.parametrize(("root", "path"), [("", "/"), ("/behind/acme", "/behind/acme")])
def test_the_root_is_that_of_the_request(root: str, path: str) -> None:
    """It is right behind a proxy's prefix, and for an app that is mounted nowhere."""
    assert [f"a=1; Path={path}"] == answer([("Set-Cookie", "a=1")], root).headers.getlist(
        "Set-Cookie"
    )


def test_no_more_cookies_than_the_next_request_can_carry(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of three that would make every answer a 431 the first leaves, and the log says so."""
    cookies = [("Set-Cookie", f"{name}={'x' * 3900}") for name in "abc"]

    kept = answer(cookies).headers.getlist("Set-Cookie")

    assert ["a"] == [cookie[0] for cookie in kept]
    assert [(2, COOKIES_BYTES)] == [
        (vars(record)["dropped"], vars(record)["limit_bytes"]) for record in caplog.records
    ]


def test_a_cookie_that_is_too_large_takes_no_other_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A session that is set behind it, and one that fits exactly, leave."""
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
def test_who_gets_a_cookie_shares_no_cache(headers: Headers, caching: list[str]) -> None:
    """A response that sets one and says nothing about caching is private."""
    assert caching == answer(headers).headers.getlist("Cache-Control")


@pytest.mark.parametrize("name", [
    "Accept-CH", "Alt-Svc", "Clear-Site-Data", "NEL", "Origin-Agent-Cluster", "Report-To",
    "Service-Worker-Allowed", "Set-Cookie2", "Strict-Transport-Security",
])  # fmt: skip
def test_what_acts_on_the_whole_origin_does_not_leave(name: str) -> None:
    """A tenant can neither move, report, answer, change nor forget what is its neighbours'."""
    assert name not in answer([(name, '"*"'), ("X-Other", "1")]).headers
