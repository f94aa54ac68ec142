"""Request lines: methods, versions, line ends, and bytes that are not HTTP/1.1."""

from case import (
    CLOSED,
    EITHER,
    HALF_CLOSE,
    HOST,
    NO_ANSWER,
    REFUSED,
    REFUSED_OR_NO_ANSWER,
    Case,
    Seen,
    declined,
    get,
    lines,
    ok,
    refused,
)

_LINE = b"GET / HTTP/1.1"


def _method(name: str, method: bytes, *, is_common: bool = True) -> Case:
    """Return a case with a valid method; a server may not know a method that is not common."""
    answers = (ok(Seen(method=method.decode(), path="/a")),)
    sent = (lines(method + b" /a HTTP/1.1", HOST),)
    rest = () if is_common else declined(400, 405, 501)
    why = "" if is_common else "An unknown method reaches the app unchanged, or is rejected."
    return Case(f"method-{name}", "RFC 9110 §9.1", sent, (*answers, *rest), why)


def _bad_line(name: str, line: bytes, *statuses: int, why: str = "") -> Case:
    return Case(f"line-{name}", "RFC 9112 §3", (lines(line, HOST),), refused(*statuses), why)


METHODS = (
    *(
        _method(name.lower(), name.encode())
        for name in ("PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "QUERY", "M-SEARCH")
    ),
    _method("trace", b"TRACE", is_common=False),
    _method("unknown", b"BREW", is_common=False),
    _method("one-letter", b"X", is_common=False),
    _method("21-letters", b"A" * 21, is_common=False),
    _method("lower-case", b"get", is_common=False),
    _method("mixed-case", b"Post", is_common=False),
    _method("token-characters", b"A!#$%&'*+-.^_`|~9", is_common=False),
    _bad_line("method-with-parenthesis", b"GE(T / HTTP/1.1", 400, 501),
    _bad_line("method-with-colon", b"GET: / HTTP/1.1", 400, 501),
    _bad_line("method-with-nul", b"G\0ET / HTTP/1.1", 400, 501),
    _bad_line("method-with-slash", b"GET/ / HTTP/1.1", 400, 501),
    _bad_line("method-in-quotes", b'"GET" / HTTP/1.1', 400, 501),
    _bad_line("method-not-ascii", b"G\xc9T / HTTP/1.1", 400, 501),
    _bad_line("method-with-cr", b"GET\r / HTTP/1.1", 400, 501),
    _bad_line("no-method", b"/ HTTP/1.1", 400, 501),
    _bad_line("space-first", b" GET / HTTP/1.1"),
    _bad_line("tab-first", b"\tGET / HTTP/1.1"),
    _bad_line("byte-order-mark", b"\xef\xbb\xbfGET / HTTP/1.1", 400, 501),
)

_STRICT = "Parsing at any whitespace is allowed, but lets two servers read different targets."

SPACES = (
    _bad_line("two-spaces-before-target", b"GET  / HTTP/1.1", why=_STRICT),
    _bad_line("two-spaces-after-target", b"GET /  HTTP/1.1", why=_STRICT),
    _bad_line("space-last", b"GET / HTTP/1.1 ", why=_STRICT),
    _bad_line("tabs", b"GET\t/\tHTTP/1.1", why=_STRICT),
    _bad_line("vertical-tabs", b"GET\x0b/\x0bHTTP/1.1", why=_STRICT),
    _bad_line("form-feeds", b"GET\x0c/\x0cHTTP/1.1", why=_STRICT),
    _bad_line("two-versions", b"GET / HTTP/1.1 HTTP/1.1", why=_STRICT),
    _bad_line("two-targets", b"GET /a /b HTTP/1.1", why=_STRICT),
)


def _version(name: str, version: bytes, *statuses: int) -> Case:
    statuses = statuses or (400,)
    sent = (lines(b"GET / " + version, HOST),)
    return Case(f"version-{name}", "RFC 9112 §2.3", sent, refused(*statuses))


VERSIONS = (
    Case(
        "version-1.0",
        "RFC 9112 §9.3",
        (lines(b"GET /a HTTP/1.0", HOST),),
        (ok(Seen(path="/a", environ={"SERVER_PROTOCOL": "HTTP/1.0"}), end=CLOSED),),
    ),
    Case(
        "version-1.0-without-host",
        "RFC 9112 §3.2",
        (lines(b"GET /a HTTP/1.0"),),
        (ok(Seen(path="/a"), end=CLOSED),),
        "Only HTTP/1.1 requires Host.",
    ),
    Case(
        "version-1.2",
        "RFC 9110 §6.2",
        (lines(b"GET /a HTTP/1.2", HOST),),
        (ok(Seen(path="/a"), end=EITHER), *declined(400, 505)),
        "A higher minor version is read as HTTP/1.1; the response never says HTTP/1.2.",
    ),
    Case(
        "version-missing",
        "RFC 9112 §3",
        (lines(b"GET /x/"),),
        REFUSED,
        "HTTP/0.9 requests have no version, and are obsolete.",
    ),
    Case(
        "version-missing-half-close",
        "RFC 9112 §3",
        (b"GET /x/\r\n", HALF_CLOSE),
        REFUSED_OR_NO_ANSWER,
    ),
    _version("missing-with-space", b""),
    _version("2.0", b"HTTP/2.0", 400, 505),
    _version("0.9", b"HTTP/0.9", 400, 505),
    _version("9.9", b"HTTP/9.9", 400, 505),
    _version("1", b"HTTP/1"),
    _version("1.", b"HTTP/1."),
    _version("1.10", b"HTTP/1.10", 400, 505),
    _version("11.1", b"HTTP/11.1", 400, 505),
    _version("01.1", b"HTTP/01.1", 400, 505),
    _version("1.1.1", b"HTTP/1.1.1"),
    _version("comma", b"HTTP/1,1"),
    _version("lower-case", b"http/1.1"),
    _version("plus", b"HTTP/+1.1"),
    _version("hexadecimal", b"HTTP/1.a"),
    _version("superscript", b"HTTP/1.\xb9"),
    _version("nul", b"HTTP/1.1\0"),
    _version("other-protocol", b"RTSP/1.0", 400, 505),
    _version("https", b"HTTPS/1.1"),
    _version("backslash", b"HTTP\\1.1"),
)

_BARE_LF = "RFC 9112 §2.2 allows a bare LF, but a proxy that rejects it sees one long line."


def _bare(name: str, data: bytes, why: str = _BARE_LF) -> Case:
    return Case(f"line-end-{name}", "RFC 9112 §2.2", (data,), REFUSED, why)


LINE_ENDS = (
    _bare("only-lf", b"GET / HTTP/1.1\nHost: acme.test\n\n"),
    _bare("lf-after-request-line", b"GET / HTTP/1.1\nHost: acme.test\r\n\r\n"),
    _bare("lf-after-field", b"GET / HTTP/1.1\r\nHost: acme.test\n\r\n"),
    _bare("lf-between-fields", b"GET / HTTP/1.1\r\nX-A: a\nHost: acme.test\r\n\r\n"),
    _bare("lf-at-end", b"GET / HTTP/1.1\r\nHost: acme.test\r\n\n"),
    _bare("cr-between-fields", b"GET / HTTP/1.1\r\nX-A: a\rX-B: b\nHost: acme.test\r\n\r\n"),
    _bare("only-cr", b"GET / HTTP/1.1\rHost: acme.test\r\r\n\r\n", "A bare CR ends no line."),
    _bare("cr-cr-lf", b"GET / HTTP/1.1\r\r\nHost: acme.test\r\n\r\n", "A bare CR is invalid."),
    _bare("lf-cr", b"GET / HTTP/1.1\n\rHost: acme.test\n\r\n\r"),
    Case(
        "line-end-one-empty-line-first",
        "RFC 9112 §2.2",
        (b"\r\n" + get(b"/a"),),
        (ok(Seen(path="/a")),),
        "A server SHOULD ignore at least one empty line before the request line.",
    ),
    Case(
        "line-end-three-empty-lines-first",
        "RFC 9112 §2.2",
        (b"\r\n\r\n\r\n" + get(b"/a"),),
        (ok(Seen(path="/a")), *REFUSED),
    ),
    Case(
        "line-end-bare-lf-first",
        "RFC 9112 §2.2",
        (b"\n" + get(b"/a"),),
        (ok(Seen(path="/a")), *REFUSED),
    ),
    Case("line-end-bare-cr-first", "RFC 9112 §2.2", (b"\r" + get(b"/a"),), REFUSED),
    Case(
        "line-end-only-empty-lines",
        "RFC 9112 §2.2",
        (b"\r\n\r\n", HALF_CLOSE),
        REFUSED_OR_NO_ANSWER,
    ),
    Case(
        "line-end-flood-of-empty-lines",
        "RFC 9112 §2.2",
        (b"\r\n" * 40_000, HALF_CLOSE),
        (*refused(400, 431), *NO_ANSWER),
    ),
)

_HELLO = b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(range(160))

OTHER_PROTOCOLS = (
    Case("other-tls", "RFC 9112 §3", (_HELLO, HALF_CLOSE), REFUSED_OR_NO_ANSWER),
    Case("other-tls-with-line-end", "RFC 9112 §3", (_HELLO + b"\r\n\r\n",), REFUSED),
    Case(
        "other-http-2-preface",
        "RFC 9113 §3.4",
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",),
        refused(400, 505),
    ),
    Case("other-nul-bytes", "RFC 9112 §3", (b"\0" * 200 + b"\r\n\r\n",), REFUSED),
    Case(
        "other-ssh", "RFC 9112 §3", (b"SSH-2.0-OpenSSH_9.9\r\n", HALF_CLOSE), REFUSED_OR_NO_ANSWER
    ),
    Case("other-smtp", "RFC 9112 §3", (b"EHLO acme.test\r\n", HALF_CLOSE), REFUSED_OR_NO_ANSWER),
    Case("other-response", "RFC 9112 §2.1", (lines(b"HTTP/1.1 200 OK", HOST),), REFUSED),
    Case("other-only-field", "RFC 9112 §2.1", (lines(HOST),), REFUSED),
    Case("other-high-bytes", "RFC 9112 §3", (bytes(range(128, 256)) + b"\r\n\r\n",), REFUSED),
    Case("other-json", "RFC 9112 §3", (b'{"method": "GET"}\r\n\r\n',), REFUSED),
    Case(
        "other-repeated-request-line",
        "RFC 9112 §5",
        (lines(_LINE, _LINE, HOST),),
        REFUSED,
        "The second line has no colon, so it is not a field.",
    ),
)

CASES = (*METHODS, *SPACES, *VERSIONS, *LINE_ENDS, *OTHER_PROTOCOLS)
