"""The Host field: exactly one, with a valid value (RFC 9112 §3.2, RFC 3986 §3.2.2)."""

from case import CLOSED, DECLINED, HOST, Case, Seen, get, lines, ok, with_header

_LINE = b"GET / HTTP/1.1"
_MUST = "RFC 9112 §3.2: the server MUST respond with 400."


def _good(name: str, value: bytes) -> Case:
    sent = (get(host=b"Host: " + value),)
    return Case(f"host-{name}", "RFC 9110 §7.2", sent, (ok(with_header("HOST", value.decode())),))


def _bad(name: str, *fields: bytes) -> Case:
    return Case(f"host-{name}", "RFC 9112 §3.2", (lines(_LINE, *fields),), DECLINED, _MUST)


def _odd(name: str, value: bytes, why: str) -> Case:
    """Return a case with a value that the grammar allows but that no real host has."""
    sent = (get(host=b"Host: " + value),)
    answers = (ok(with_header("HOST", value.decode())), *DECLINED)
    return Case(f"host-{name}", "RFC 3986 §3.2.2", sent, answers, why)


CASES = (
    _good("name", b"globex.test"),
    _good("port", b"acme.test:8080"),
    _good("empty-port", b"acme.test:"),
    _good("ipv4", b"192.0.2.1"),
    _good("ipv6", b"[2001:db8::1]"),
    _good("ipv6-port", b"[::1]:8000"),
    _good("upper-case", b"ACME.Test"),
    _good("trailing-dot", b"acme.test."),
    _good("underscore", b"my_service:8000"),
    _odd("empty", b"", "Valid for a target without an authority; names no tenant."),
    _odd("percent", b"acme%2etest", "A registered name may contain escapes."),
    _odd("comma", b"acme.test,globex.test", "A registered name may contain a comma."),
    _odd("large-port", b"acme.test:99999", "The grammar does not limit a port."),
    _odd("two-dots", b"acme..test", "The grammar allows empty labels."),
    _odd("only-port", b":80", "The grammar allows an empty name."),
    _bad("missing"),
    _bad("missing-with-other-field", b"X-A: b"),
    _bad("twice-equal", HOST, HOST),
    _bad("twice-different", HOST, b"Host: globex.test"),
    _bad("twice-different-apart", HOST, b"X-A: b", b"Host: globex.test"),
    _bad("twice-other-case", HOST, b"hOST: globex.test"),
    _bad("twice-one-empty", HOST, b"Host:"),
    _bad("space-before-colon", b"Host : acme.test"),
    _bad("space-inside", b"Host: acme.test globex.test"),
    _bad("tab-inside", b"Host: acme.test\tglobex.test"),
    _bad("path", b"Host: acme.test/globex"),
    _bad("url", b"Host: http://acme.test"),
    _bad("userinfo", b"Host: globex.test@acme.test"),
    _bad("backslash", b"Host: acme.test\\globex.test"),
    _bad("query", b"Host: acme.test?a"),
    _bad("fragment", b"Host: acme.test#a"),
    _bad("port-of-letters", b"Host: acme.test:http"),
    _bad("port-negative", b"Host: acme.test:-1"),
    _bad("two-ports", b"Host: acme.test:80:80"),
    _bad("open-bracket", b"Host: [::1"),
    _bad("close-bracket", b"Host: ::1]"),
    _bad("ipv6-without-brackets", b"Host: 2001:db8::1"),
    _bad("text-after-bracket", b"Host: [::1]acme.test"),
    _bad("script", b"Host: <script>alert(1)</script>"),
    _bad("quotes", b'Host: "acme.test"'),
    _bad("high-byte", b"Host: acm\xe9.test"),
    _bad("nul", b"Host: acme.test\0"),
    _bad("control", b"Host: acme.test\x01"),
    _bad("percent-cut", b"Host: acme%2.test"),
    Case(
        "host-twice-http-1.0",
        "RFC 9112 §3.2",
        (lines(b"GET / HTTP/1.0", HOST, b"Host: globex.test"),),
        DECLINED,
        "Any message with two Host fields is rejected.",
    ),
    Case(
        "host-x-forwarded",
        "RFC 9112 §3.2",
        (get(b"/", b"X-Forwarded-Host: globex.test"),),
        (ok(Seen(environ={"HTTP_HOST": "acme.test"})),),
        "The server trusts no proxy; the app decides.",
    ),
    Case(
        "host-last-of-many-fields",
        "RFC 9112 §5.2",
        (lines(_LINE, *(b"X-%d: b" % number for number in range(50)), b"Connection: close", HOST),),
        (ok(with_header("HOST", "acme.test"), end=CLOSED),),
        "The order of fields with different names has no meaning.",
    ),
)
