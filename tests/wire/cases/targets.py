"""Request targets: the four forms of RFC 9112 §3.2, and bytes that no target contains."""

from case import CLOSED, DECLINED, REFUSED, Case, Seen, declined, get, lines, ok, refused

# The grammar of RFC 3986 excludes these characters. RFC 9112 §3 says that a server "SHOULD respond
# with 400", but browsers send some of them, so an answer that keeps these characters raw is also
# correct.
_RAW_OR_REFUSED = "A target with a character outside the grammar is rejected or kept as it is."

_REFUSED_CONNECT = refused(400, 405, 501)


def _origin(name: str, target: bytes, path: str, query: str = "") -> Case:
    seen = Seen(method="GET", path=path, raw=target.decode(), query=query)
    return Case(f"target-{name}", "RFC 9112 §3.2.1", (get(target),), (ok(seen),))


def _lenient(name: str, target: bytes, path: str, why: str = _RAW_OR_REFUSED) -> Case:
    """Return a case with a target that may be rejected, or reach the app with this path."""
    answers = (ok(Seen(path=path, environ={"HTTP_HOST": "acme.test"})), *DECLINED)
    return Case(f"target-{name}", "RFC 9112 §3.2", (get(target),), answers, why)


def _malformed(name: str, line: bytes, why: str = "") -> Case:
    sent = (lines(line, b"Host: acme.test"),)
    return Case(f"target-{name}", "RFC 9112 §3", sent, REFUSED, why)


def _absolute(name: str, target: bytes, *, host: str, path: str, query: str = "") -> Case:
    seen = Seen(path=path, query=query, environ={"HTTP_HOST": host, "SCRIPT_NAME": ""})
    why = "The authority of the target replaces the value of Host."
    return Case(f"absolute-{name}", "RFC 9112 §3.2.2", (get(target),), (ok(seen),), why)


ORIGIN = (
    _origin("path-and-query", b"/a/b?x=1&y=2", "/a/b", "x=1&y=2"),
    _origin("two-question-marks", b"/a?b?c", "/a", "b?c"),
    _origin("empty-query", b"/a?", "/a"),
    _origin("query-with-slash", b"/a?/b//c", "/a", "/b//c"),
    _origin("query-with-url", b"/a?u=http://globex.test/", "/a", "u=http://globex.test/"),
    _origin("path-with-url", b"/a/http://globex.test/b", "/a/http://globex.test/b"),
    _origin("parameters", b"/a;b=c/d", "/a;b=c/d"),
    _origin("double-slash", b"//globex.test/a", "//globex.test/a"),
    _origin("triple-slash", b"///", "///"),
    _origin("inner-double-slash", b"/a//b", "/a//b"),
    _origin("escaped-slash", b"/a%2Fb/%2f", "/a/b//"),
    _origin("dot-segments", b"/a/../b/./c", "/a/../b/./c"),
    _origin("escaped-dot-segments", b"/a/%2e%2e/b", "/a/../b"),
    _origin("escaped-percent", b"/%2561", "/%61"),
    _origin("escaped-utf-8", b"/caf%c3%a9", "/caf\xc3\xa9"),
    _origin("escaped-invalid-utf-8", b"/%ff%fe", "/\xff\xfe"),
    _origin("escaped-question-mark", b"/a%3fb?c", "/a?b", "c"),
    _origin("escaped-hash", b"/a%23b", "/a#b"),
    _origin("escaped-space", b"/a%20b", "/a b"),
    _origin("plus", b"/a+b?c+d", "/a+b", "c+d"),
    _origin("escape-in-query", b"/?a=%00%2f", "/", "a=%00%2f"),
    _origin("sub-delimiters", b"/!$&'()*+,;=:@-._~", "/!$&'()*+,;=:@-._~"),
    _origin("colon-first", b"/:80/a", "/:80/a"),
    _origin("at-sign", b"/@globex.test/", "/@globex.test/"),
    _lenient("escaped-nul", b"/a%00b", "/a\0b", "RFC 3986 §7.3 warns of NUL."),
    _lenient("escaped-crlf", b"/a%0d%0aX:1", "/a\r\nX:1"),
    _lenient("escape-without-digits", b"/%zz", "/%zz"),
    _lenient("escape-cut", b"/a%", "/a%"),
    _lenient("escape-half", b"/a%4", "/a%4"),
    _lenient("backslash", b"/a\\..\\b", "/a\\..\\b"),
    _lenient("curly-brackets", b"/{a}", "/{a}"),
    _lenient("pipe", b"/a|b", "/a|b"),
    _lenient("angle-brackets", b"/<script>", "/<script>"),
    _lenient("quote", b'/"a"', '/"a"'),
    _lenient("caret-and-backtick", b"/^`", "/^`"),
    _lenient("square-brackets", b"/[a]", "/[a]"),
    _lenient("fragment", b"/a#b", "/a", "A fragment is not part of a target."),
    _lenient("fragment-with-path", b"/a#/../b", "/a", "A fragment is not part of a target."),
)

MALFORMED = (
    _malformed("raw-utf-8", b"GET /caf\xc3\xa9 HTTP/1.1"),
    _malformed("raw-byte-ff", b"GET /\xff HTTP/1.1"),
    _malformed("raw-byte-85", b"GET /a\x85b HTTP/1.1", "str.split() of Python splits at U+0085."),
    _malformed("raw-byte-a0", b"GET /a\xa0HTTP/1.1", "str.split() of Python splits at U+00A0."),
    _malformed("space", b"GET /a b HTTP/1.1"),
    _malformed("tab", b"GET /a\tb HTTP/1.1"),
    _malformed("nul", b"GET /a\0b HTTP/1.1"),
    _malformed("delete", b"GET /a\x7f HTTP/1.1"),
    _malformed("escape-character", b"GET /\x1b[2J HTTP/1.1"),
    _malformed("bare-cr", b"GET /a\rb HTTP/1.1"),
    _malformed("vertical-tab", b"GET /a\x0bb HTTP/1.1"),
    _malformed("empty", b"GET  HTTP/1.1"),
    _malformed("only-query", b"GET ?a=1 HTTP/1.1"),
    _malformed("only-fragment", b"GET #a HTTP/1.1"),
    _malformed("relative", b"GET acme HTTP/1.1"),
    _malformed("dot", b"GET . HTTP/1.1"),
    _malformed("relative-dot-segments", b"GET ../a HTTP/1.1"),
    _malformed("percent-slash", b"GET %2f HTTP/1.1", "A slash that starts a path is not escaped."),
    _malformed("backslash-first", b"GET \\a HTTP/1.1"),
    _malformed("version-as-target", b"GET HTTP/1.1 HTTP/1.1"),
)

ABSOLUTE = (
    _absolute("same-host", b"http://acme.test/a?b=1", host="acme.test", path="/a", query="b=1"),
    _absolute("other-host", b"http://globex.test/a", host="globex.test", path="/a"),
    _absolute("port", b"http://acme.test:8080/a", host="acme.test:8080", path="/a"),
    _absolute("ipv6", b"http://[::1]:8000/a", host="[::1]:8000", path="/a"),
    _absolute("upper-case-scheme", b"HTTP://globex.test/a", host="globex.test", path="/a"),
    _absolute("double-slash", b"http://globex.test//a", host="globex.test", path="//a"),
    _absolute("no-path", b"http://globex.test", host="globex.test", path="/"),
    _absolute("only-query", b"http://globex.test?a=1", host="globex.test", path="/", query="a=1"),
    _absolute("at-sign-in-path", b"http://globex.test/@b", host="globex.test", path="/@b"),
    Case(
        "absolute-without-host",
        "RFC 9112 §3.2",
        (lines(b"GET http://acme.test/ HTTP/1.1"),),
        DECLINED,
        "A request of HTTP/1.1 without Host is rejected, whatever form the target has.",
    ),
    Case(
        "absolute-http-1.0-without-host",
        "RFC 9112 §3.2.2",
        (lines(b"GET http://acme.test/a HTTP/1.0"),),
        (ok(Seen(path="/a", environ={"HTTP_HOST": "acme.test"}), end=CLOSED),),
    ),
    Case(
        "absolute-userinfo",
        "RFC 9110 §4.2.4",
        (get(b"http://acme.test@globex.test/a"),),
        (ok(Seen(path="/a", environ={"HTTP_HOST": "globex.test"})), *DECLINED),
        "The text before '@' is not a host name.",
    ),
    Case(
        "absolute-https",
        "RFC 9110 §7.4",
        (get(b"https://globex.test/a"),),
        (
            ok(Seen(path="/a", environ={"HTTP_HOST": "globex.test"})),
            *declined(400, 421),
        ),
        "Correct behind a proxy that terminates TLS; otherwise, 421 is correct.",
    ),
    Case(
        "absolute-other-scheme",
        "RFC 9110 §7.4",
        (get(b"ftp://acme.test/a"),),
        declined(400, 421),
        "The server has no resource with the scheme ftp.",
    ),
    Case("absolute-empty-host", "RFC 9110 §4.2.1", (get(b"http:///a"),), DECLINED),
    Case("absolute-only-port", "RFC 9110 §4.2.1", (get(b"http://:80/a"),), DECLINED),
    Case("absolute-one-slash", "RFC 9112 §3.2.2", (get(b"http:/acme.test/a"),), DECLINED),
    Case("absolute-open-bracket", "RFC 3986 §3.2.2", (get(b"http://[::1/a"),), DECLINED),
    Case("absolute-port-of-letters", "RFC 3986 §3.2.3", (get(b"http://acme.test:x/a"),), DECLINED),
    Case("absolute-backslash-host", "RFC 3986 §3.2", (get(b"http://acme.test\\@b/a"),), DECLINED),
    Case("absolute-without-scheme", "RFC 3986 §3.1", (get(b"://acme.test/a"),), DECLINED),
)

OTHER_FORMS = (
    Case(
        "asterisk-options",
        "RFC 9112 §3.2.4",
        (lines(b"OPTIONS * HTTP/1.1", b"Host: acme.test"),),
        (ok(Seen(method="OPTIONS", raw="*")),),
    ),
    Case(
        "asterisk-options-with-slash",
        "RFC 9112 §3.2.1",
        (lines(b"OPTIONS /* HTTP/1.1", b"Host: acme.test"),),
        (ok(Seen(method="OPTIONS", path="/*", raw="/*")),),
    ),
    _malformed("asterisk-get", b"GET * HTTP/1.1", "Only OPTIONS has the asterisk form."),
    _malformed("asterisk-head", b"HEAD * HTTP/1.1", "Only OPTIONS has the asterisk form."),
    _malformed("asterisk-with-query", b"OPTIONS *?a HTTP/1.1"),
    _malformed("asterisk-with-path", b"OPTIONS */a HTTP/1.1"),
    _malformed("authority-get", b"GET acme.test:80 HTTP/1.1", "Only CONNECT has this form."),
    _malformed("authority-post", b"POST acme.test:80 HTTP/1.1", "Only CONNECT has this form."),
)


def _connect(name: str, *sent: bytes, why: str = "") -> Case:
    return Case(f"connect-{name}", "RFC 9110 §9.3.6", sent, _REFUSED_CONNECT, why)


_TUNNEL = lines(b"CONNECT acme.test:443 HTTP/1.1", b"Host: acme.test:443")

CONNECT = (
    _connect("authority", _TUNNEL, why="The server is not a tunnel, so a 2xx is wrong."),
    _connect("path", lines(b"CONNECT / HTTP/1.1", b"Host: acme.test")),
    _connect("no-port", lines(b"CONNECT acme.test HTTP/1.1", b"Host: acme.test")),
    _connect("absolute", lines(b"CONNECT http://acme.test/ HTTP/1.1", b"Host: acme.test")),
    _connect("asterisk", lines(b"CONNECT * HTTP/1.1", b"Host: acme.test")),
    _connect(
        "then-request",
        _TUNNEL + get(b"/tunnelled"),
        why="Bytes after CONNECT are data of the expected tunnel, and not a request.",
    ),
    _connect(
        "http-1.0-keep-alive",
        lines(b"CONNECT acme.test:443 HTTP/1.0", b"Host: acme.test:443", b"Connection: keep-alive"),
    ),
)

CASES = (*ORIGIN, *MALFORMED, *ABSOLUTE, *OTHER_FORMS, *CONNECT)
