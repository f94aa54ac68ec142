"""Forwarded headers of trusted proxies, on WSGI environs."""

import pytest

from tenantry.http.environ import IS_FOR_OPERATORS
from tenantry.middleware.forwarded import ForwardedHeaders

ALL = ("for", "proto", "host", "port", "prefix")
SENT = {
    "HTTP_X_FORWARDED_FOR": "203.0.113.7",
    "HTTP_X_FORWARDED_PROTO": "https",
    "HTTP_X_FORWARDED_HOST": "acme.test",
    "HTTP_X_FORWARDED_PORT": "8443",
    "HTTP_X_FORWARDED_PREFIX": "/shop",
}
DIRECT = ["10.0.0.1", "http", "proxy.test:80", ""]


def _seen(proxies: int, believed: tuple[str, ...], **sent: object) -> list[str]:
    """Return the client's address, the scheme, the host and the prefix of a request."""
    environ = {
        "REMOTE_ADDR": "10.0.0.1",
        "wsgi.url_scheme": "http",
        "HTTP_HOST": "proxy.test:80",
        "SERVER_NAME": "proxy.test",
        "SERVER_PORT": "80",
        "SCRIPT_NAME": "",
    } | sent
    ForwardedHeaders(proxies, believed).apply(environ)
    return [
        str(environ[key]) for key in ("REMOTE_ADDR", "wsgi.url_scheme", "HTTP_HOST", "SCRIPT_NAME")
    ]


@pytest.mark.parametrize(
    ("believed", "expected"),
    [
        (("for",), ["203.0.113.7", *DIRECT[1:]]),
        (("proto",), ["10.0.0.1", "https", "proxy.test:80", ""]),
        (("host",), ["10.0.0.1", "http", "acme.test", ""]),
        (("port",), ["10.0.0.1", "http", "proxy.test:8443", ""]),
        (("prefix",), ["10.0.0.1", "http", "proxy.test:80", "/shop"]),
        ((), DIRECT),
        (ALL, ["203.0.113.7", "https", "acme.test:8443", "/shop"]),
    ],
)
def test_each_header_counts_only_if_it_is_believed(
    believed: tuple[str, ...], expected: list[str]
) -> None:
    """The host ignores every `X-Forwarded-…` header that `TRUSTED_HEADERS` does not name."""
    assert expected == _seen(1, believed, **SENT)


@pytest.mark.parametrize(
    ("proxies", "sent", "address"),
    [
        (1, "203.0.113.7", "203.0.113.7"),
        (1, "198.51.100.1, 203.0.113.7", "203.0.113.7"),
        (2, "198.51.100.1, 203.0.113.7,192.0.2.1", "203.0.113.7"),
        (2, "203.0.113.7", "10.0.0.1"),  # the request did not pass both proxies
        (1, '"198.51.100.1, 203.0.113.7', "203.0.113.7"),
        (1, '"198.51.100.1, 203.0.113.7"', "10.0.0.1"),
        (1, "203.0.113.7:50000", "203.0.113.7"),
        (1, "[2001:DB8::7]:50000", "2001:db8::7"),
        (1, "2001:db8::7", "2001:db8::7"),
        (1, "unknown", "10.0.0.1"),
        (1, "203.0.113.7,", "10.0.0.1"),
        (1, "", "10.0.0.1"),
    ],
)
def test_the_address_is_the_one_that_the_outermost_trusted_proxy_saw(
    proxies: int, sent: str, address: str
) -> None:
    """The host counts values from the right, no matter which values a client adds on the left."""
    assert address == _seen(proxies, ("for",), HTTP_X_FORWARDED_FOR=sent)[0]


@pytest.mark.parametrize(
    ("sent", "scheme"),
    [("https", "https"), ("HTTPS", "https"), ("http, https", "https"), ("wss", "https"),
     ("ws", "http"), ("javascript", "javascript"), ("", "http")],
)  # fmt: skip
def test_the_scheme_of_a_websocket_is_that_of_http(sent: str, scheme: str) -> None:
    """The scheme `wss` means `https`, and the edge refuses an unknown scheme."""
    assert scheme == _seen(1, ("proto",), HTTP_X_FORWARDED_PROTO=sent)[1]


@pytest.mark.parametrize(
    ("proxies", "sent", "host"),
    [
        (1, "evil.test, acme.test:8443", "acme.test:8443"),
        (2, "evil.test, acme.test, inner.test", "acme.test"),
        (2, "acme.test", "proxy.test:80"),
        (1, "[::1]:8443", "[::1]:8443"),
        (1, "[::1]", "[::1]"),
    ],
)
def test_the_host_is_counted_from_the_right(proxies: int, sent: str, host: str) -> None:
    """With `host` believed, the name is the n-th `X-Forwarded-Host` from the right."""
    assert host == _seen(proxies, ("host",), HTTP_X_FORWARDED_HOST=sent)[2]


def test_operators_pages_get_only_the_address_and_the_scheme() -> None:
    """On the operators' listener, forwarded headers change neither the host name nor the path."""
    operators = {IS_FOR_OPERATORS: True}

    assert ["203.0.113.7", "https", "proxy.test:80", ""] == _seen(1, ALL, **SENT, **operators)
