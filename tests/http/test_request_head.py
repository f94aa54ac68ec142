"""The reader of request heads accepts what HTTP allows, and nothing else."""

from http import HTTPStatus
from typing import Any

import pytest

from tenantry.http.request_head import (
    CHUNKED,
    HEAD_END,
    BadRequestError,
    Framing,
    HeadLimits,
    HeadReader,
)

GET = b"GET /acme/ HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /acme/ HTTP/1.1\r\nHost: a\r\n"


def read(data: bytes, **options: Any) -> tuple[dict[str, Any], Framing]:
    """Return the environ keys and the framing that the reader finds in a head."""
    environ: dict[str, Any] = {}
    framing = HeadReader(**options).read(data, environ)
    return environ, framing


def refused(data: bytes, **options: Any) -> int:
    """Return the status with which the reader refuses a head."""
    with pytest.raises(BadRequestError) as caught:
        HeadReader(**options).read(data, {})
    return int(caught.value.status)


# -- the request line ------------------------------------------------------------------------------


def test_a_head_becomes_an_environ() -> None:
    """The reader sets the keys of PEP 3333 and the raw request target."""
    head = (
        b"POST /a%20b/%C3%A4?x=%2f HTTP/1.1\r\nHost: acme.test\r\nContent-Type: text/plain\r\n"
        b"Content-Length: 5\r\nX-Some-Field: \t one two \t\r\n\r\n"
    )

    environ, framing = read(head)

    assert {
        "REQUEST_METHOD": "POST", "RAW_URI": "/a%20b/%C3%A4?x=%2f", "PATH_INFO": "/a b/\xc3\xa4",
        "QUERY_STRING": "x=%2f", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "acme.test",
        "CONTENT_TYPE": "text/plain", "CONTENT_LENGTH": "5", "HTTP_X_SOME_FIELD": "one two",
    } == environ  # fmt: skip
    assert Framing(5, is_kept_alive=True, expects_continue=False, is_http_1_0=False) == framing


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        (b"/", "a", "/", ""),
        (b"/x?", "a", "/x", ""),
        (b"/x?y?z", "a", "/x", "y?z"),
        (b"/%2e%2e/%00%zz", "a", "/../\x00%zz", ""),
        (b"//evil.test/x", "a", "//evil.test/x", ""),
        (b"/x?y#z", "a", "/x", "y"),
        (b"http://acme.test/x?y", "acme.test", "/x", "y"),
        (b"HTTPS://acme.test:80", "acme.test:80", "/", ""),
        (b"http://acme.test?y", "acme.test", "/", "y"),
    ],
)
def test_a_target_has_a_host_a_path_and_a_query(
    target: bytes, host: str, path: str, query: str
) -> None:
    """The host of an absolute target replaces the `Host` field (RFC 9112 §3.2.2)."""
    environ, _ = read(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")

    assert (host, path, query) == (
        environ["HTTP_HOST"], environ["PATH_INFO"], environ["QUERY_STRING"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "path"),
    [(b"OPTIONS * HTTP/1.1", "*"), (b"CONNECT acme.test:80 HTTP/1.1", "acme.test:80")],
)
def test_a_target_that_is_no_path_is_kept(line: bytes, path: str) -> None:
    """`OPTIONS *` and `CONNECT` have targets without a slash (RFC 9112 §3.2.3, §3.2.4)."""
    assert path == read(line + b"\r\nHost: a\r\n\r\n")[0]["PATH_INFO"]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET / HTTP/1.2", 400),
        (b"GET / HTTP/2.0", 400),
        (b"GET / HTTP/1", 400),
        (b"GET / HTTP/11.1", 400),
        (b"GET /", 400),
        (b"GET", 400),
        (b"", 400),
        (b"GET  / HTTP/1.1", 400),
        (b" GET / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET\t/ HTTP/1.1", 400),
        (b"G(T / HTTP/1.1", 400),
        (b"GET / http/1.1", 400),
        (b"GET /a b HTTP/1.1", 400),
        (b"GET /\xe4 HTTP/1.1", 400),
        (b"GET /\x00 HTTP/1.1", 400),
        (b"GET * HTTP/1.1", 400),
        (b"GET acme HTTP/1.1", 400),
        (b"GET ftp://acme.test/ HTTP/1.1", 400),
        (b"GET http:///x HTTP/1.1", 400),
        (b"GET http://me@acme.test/ HTTP/1.1", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    ],
)
def test_a_malformed_request_line_is_refused(line: bytes, status: int) -> None:
    """A request line has a method, a target and a known version, with one space between them."""
    assert status == refused(line + b"\r\nHost: a\r\n\r\n")


def test_http_1_1_needs_a_host() -> None:
    """Only HTTP/1.0 allows a request without `Host` (RFC 9112 §3.2)."""
    assert 400 == refused(b"GET / HTTP/1.1\r\nX: a\r\n\r\n")
    assert "/" == read(b"GET / HTTP/1.0\r\nX: a\r\n\r\n")[0]["PATH_INFO"]


@pytest.mark.parametrize("host", [b"", b"a b", b"a/b@c", b"a,b", b"a:x", b"a:65536", b"[::1"])
def test_a_malformed_host_is_refused(host: bytes) -> None:
    """A `Host` that is not a name or an address with a port is refused."""
    assert 400 == refused(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")


def test_names_of_hosts_fill_no_memory() -> None:
    """The reader remembers a bounded number of valid host names."""
    reader = HeadReader()
    for number in range(2000):
        reader.read(b"GET / HTTP/1.1\r\nHost: a-%d\r\n\r\n" % number, {})

    assert len(reader._hosts) <= 512


# -- header fields ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        b"X",
        b": a",
        b"X : a",
        b" X: a",
        b"\tfolded",
        b"X y: a",
        b"X\xe4: a",
        b"X: a\x00b",
        b"X: a\rb",
        b"X: a\nY: b",
        b"X: \x7f",
    ],
)
def test_a_malformed_field_is_refused(field: bytes) -> None:
    """A field is a token, a colon and visible characters, on one line (RFC 9112 §5)."""
    assert 400 == refused(GET + field + b"\r\n\r\n")


def test_repeated_fields_are_joined() -> None:
    """Fields with the same name become a list; cookies are joined as cookies."""
    head = GET + b"X: 1\r\nCookie: a=1\r\nx: 2\r\nCookie: b=2\r\n\r\n"

    environ, _ = read(head)

    assert ("1,2", "a=1; b=2") == (environ["HTTP_X"], environ["HTTP_COOKIE"])


@pytest.mark.parametrize(
    "name", [b"Host", b"Content-Length", b"Content-Type", b"host", b"CONTENT-LENGTH"]
)
def test_a_field_that_must_be_single_is_refused_twice(name: bytes) -> None:
    """Two hosts, lengths or types are ambiguous, even if they are equal."""
    head = b"POST / HTTP/1.1\r\n" + name + b": 5\r\n" + name.lower() + b": 5\r\n\r\n"

    assert 400 == refused(head)


def test_a_name_with_an_underscore_is_dropped_or_refused() -> None:
    """`X_Forwarded_For` would have the same key as `X-Forwarded-For`."""
    head = GET + b"X_Forwarded_For: evil\r\nX-Real: 1\r\n\r\n"

    environ, _ = read(head)

    assert ("1", False) == (environ["HTTP_X_REAL"], "HTTP_X_FORWARDED_FOR" in environ)
    assert 400 == refused(head, underscores="refuse")


def test_names_of_fields_fill_no_memory() -> None:
    """The reader remembers the keys of a bounded number of names."""
    reader = HeadReader()
    for number in range(2000):
        reader.read(GET + b"X-%d: 1\r\n\r\n" % number, {})

    environ: dict[str, Any] = {}
    reader.read(GET + b"X-1999: 1\r\n\r\n", environ)

    assert ("1", True) == (environ["HTTP_X_1999"], len(reader._keys) <= 512)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /%s HTTP/1.1\r\n\r\n" % (b"x" * 8190), 414),
        (b"GET /%s\r\n\r\n" % (b"x" * 8190), 414),
        (GET + b"X: a\r\n" * 100 + b"\r\n", 431),
        (GET + b"X: %s\r\n\r\n" % (b"a" * 8190), 431),
        (GET + b"X: %s\r\n" % (b"a" * 8000) * 9 + b"\r\n", 431),
    ],
)
def test_a_large_head_is_refused(head: bytes, status: int) -> None:
    """The request line, each field, the number of fields and the whole head have limits."""
    assert status == refused(head)


def test_a_head_at_its_limits_is_read() -> None:
    """A head with the longest line and the largest number of fields passes."""
    limits = HeadLimits(line_bytes=20, fields=2, field_bytes=10)
    head = b"GET /%s HTTP/1.1\r\nHost: a\r\nX: 1234567\r\n\r\n" % (b"x" * 6)

    assert "/xxxxxx" == read(head, limits=limits)[0]["PATH_INFO"]
    assert 414 == refused(head.replace(b"/", b"/y", 1), limits=limits)
    assert 431 == refused(head.replace(b"7\r", b"78\r"), limits=limits)
    assert 431 == refused(head[:-2] + b"Y: 1\r\n\r\n", limits=limits)


# -- the framing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "body_bytes"),
    [
        (b"", 0),
        (b"Content-Length: 0\r\n", 0),
        (b"Content-Length: 0005\r\n", 5),
        (b"Transfer-Encoding: chunked\r\n", CHUNKED),
        (b"Transfer-Encoding: \t Chunked \r\n", CHUNKED),
    ],
)
def test_a_head_tells_the_size_of_its_body(fields: bytes, body_bytes: int) -> None:
    """A body has a length in decimal digits, or ends with its last chunk."""
    assert body_bytes == read(POST + fields + b"\r\n")[1].body_bytes


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"Content-Length: +5\r\n", 400),
        (b"Content-Length: -5\r\n", 400),
        (b"Content-Length: 5, 5\r\n", 400),
        (b"Content-Length: 0x5\r\n", 400),
        (b"Content-Length: 5_0\r\n", 400),
        (b"Content-Length: \xb2\r\n", 400),
        (b"Content-Length:\r\n", 400),
        (b"Content-Length: 9999999999999999999\r\n", 400),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Transfer-Encoding: chunked, chunked\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Transfer-Encoding: chunked, identity\r\n", 400),
        (b"Transfer-Encoding: identity\r\n", 400),
        (b"Transfer-Encoding: gzip\r\n", 400),
        (b"Transfer-Encoding:\r\n", 400),
        (b"Transfer-Encoding: gzip, chunked\r\n", 501),
        (b"Transfer-Encoding: xchunked\r\n", 501),
        (b"Transfer-Encoding: \x0bchunked\r\n", 400),
    ],
)
def test_an_unclear_framing_is_refused(fields: bytes, status: int) -> None:
    """A request that two servers could end at different bytes is refused (RFC 9112 §6)."""
    assert status == refused(POST + fields + b"\r\n")


def test_a_chunked_request_of_http_1_0_is_refused() -> None:
    """HTTP/1.0 has no chunks (RFC 9112 §6.1)."""
    assert 400 == refused(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n")


@pytest.mark.parametrize(
    ("version", "connection", "is_kept_alive"),
    [
        (b"1.1", None, True),
        (b"1.1", b"close", False),
        (b"1.1", b"Keep-Alive, CLOSE", False),
        (b"1.1", b"TE,close", False),
        (b"1.1", b"te\t,\tclose", False),
        (b"1.1", b"closed", True),
        (b"1.1", b"keep-alive\r\nConnection: close", False),
        (b"1.0", None, False),
        (b"1.0", b"keep-alive", True),
        (b"1.0", b"keep-alive, close", False),
    ],
)
def test_connection_is_a_list_of_options(
    version: bytes, connection: bytes | None, is_kept_alive: bool
) -> None:
    """`close` anywhere in the `Connection` fields ends the connection (RFC 9110 §7.6.1)."""
    field = b"" if connection is None else b"Connection: %s\r\n" % connection
    head = b"GET / HTTP/%s\r\nHost: a\r\n%s\r\n" % (version, field)

    assert is_kept_alive == read(head)[1].is_kept_alive


def test_only_the_known_expectation_is_met() -> None:
    """`100-continue` counts only in HTTP/1.1, and any other expectation gets 417."""
    expecting = POST + b"Content-Length: 5\r\nExpect: 100-Continue\r\n\r\n"

    assert read(expecting)[1].expects_continue
    assert not read(expecting.replace(b"HTTP/1.1", b"HTTP/1.0"))[1].expects_continue
    assert 417 == refused(expecting.replace(b"100-Continue", b"much"))


# -- a head in pieces ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"GET / HTTP/1.1\n", 400),
        (GET + b"X: a\nb", 400),
        (b"x" * 8192, 414),
        (GET + b"X: %s" % (b"a" * (65 << 10)), 431),
    ],
)
def test_a_hopeless_start_is_refused_at_once(start: bytes, status: int) -> None:
    """A head that no further bytes can make valid is refused before the head is complete."""
    with pytest.raises(BadRequestError) as caught:
        HeadReader().check_start(start)

    assert HTTPStatus(status) == caught.value.status


def test_every_start_of_a_valid_head_passes() -> None:
    """Wherever a valid head is cut, its start is not refused."""
    head = b"GET /%s HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n" % (b"x" * 100)
    reader = HeadReader()

    for end in range(len(head) - len(HEAD_END)):
        reader.check_start(head[:end], max(0, end - 1))
