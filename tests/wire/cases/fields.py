"""Header fields: names, values, folding, repetition, and names that reach the environ of WSGI."""

from case import HOST, REFUSED, Answer, Case, Seen, get, lines, ok, refused, with_header

_LINE = b"GET / HTTP/1.1"


def _value(name: str, field: bytes, value: str | None) -> Case:
    """Return a case with a field X-A that the app sees with this value."""
    return Case(
        f"field-{name}", "RFC 9110 §5.5", (get(b"/", field),), (ok(with_header("X_A", value)),)
    )


def _refused(name: str, *fields: bytes, spec: str = "RFC 9112 §5", why: str = "") -> Case:
    return Case(f"field-{name}", spec, (get(b"/", *fields),), REFUSED, why)


def _either(name: str, field: bytes, value: str | None, spec: str, why: str) -> Case:
    """Return a case with a field that is rejected, or reaches the app as X-A with this value."""
    answers = (ok(with_header("X_A", value)), *REFUSED)
    return Case(f"field-{name}", spec, (get(b"/", field),), answers, why)


_REPLACED = "A server rejects such a byte, or replaces it with a space."
_CONTROL = "RFC 9110 §5.5 lets a recipient keep control characters other than CR, LF and NUL."

VALUES = (
    _value("without-space", b"X-A:b", "b"),
    _value("spaces-around", b"X-A: \t b \t ", "b"),
    _value("tab-inside", b"X-A: a\tb", "a\tb"),
    _value("spaces-inside", b"X-A: a   b", "a   b"),
    _value("empty", b"X-A:", ""),
    _value("only-spaces", b"X-A:   \t ", ""),
    _value("colons", b"X-A: :b:c", ":b:c"),
    _value("high-bytes", b"X-A: \xff\xe9\x80", "\xff\xe9\x80"),
    _value("utf-8", b"X-A: caf\xc3\xa9", "caf\xc3\xa9"),
    _value("next-line-character", b"X-A: a\x85", "a\x85"),
    _value("no-break-space", b"X-A: a\xa0", "a\xa0"),
    _value("quotes", b'X-A: "a, b"', '"a, b"'),
    _value("lower-case-name", b"x-a: b", "b"),
    _value("control-sequence-escaped", b"X-A: %0d%0aX-B: c", "%0d%0aX-B: c"),
    _either("nul", b"X-A: a\0b", "a b", "RFC 9110 §5.5", _REPLACED),
    _either("bare-cr", b"X-A: a\rb", "a b", "RFC 9110 §5.5", _REPLACED),
    _either("bare-cr-hides-field", b"X-A: a\rX-B: b", "a X-B: b", "RFC 9110 §5.5", _REPLACED),
    _either("control-character", b"X-A: a\x01b", "a\x01b", "RFC 9110 §5.5", _CONTROL),
    _either("delete-character", b"X-A: a\x7fb", "a\x7fb", "RFC 9110 §5.5", _CONTROL),
    _either("escape-character", b"X-A: \x1b[2J", "\x1b[2J", "RFC 9110 §5.5", _CONTROL),
    _either("vertical-tab", b"X-A: \x0bb", "\x0bb", "RFC 9110 §5.5", _CONTROL),
)

_SPACE = "A space before the colon MUST be rejected: proxies that accept it see another field."

NAMES = (
    _refused("space-before-colon", b"X-A : b", spec="RFC 9112 §5.1", why=_SPACE),
    _refused("tab-before-colon", b"X-A\t: b", spec="RFC 9112 §5.1", why=_SPACE),
    _refused("space-inside-name", b"X A: b"),
    _refused("no-colon", b"X-A"),
    _refused("empty-name", b": b"),
    _refused("only-colon", b":"),
    _refused("name-with-nul", b"X-\0A: b"),
    _refused("name-with-cr", b"X-\rA: b"),
    _refused("name-not-ascii", b"X-\xc4: b"),
    _refused("name-with-sharp-s", b"HO\xdfT: b", why="str.upper() turns this byte into SS."),
    _refused("name-with-parenthesis", b"X(A): b"),
    _refused("name-with-slash", b"X/A: b"),
    _refused("name-with-at", b"@X: b"),
    _refused("name-in-quotes", b'"X-A": b'),
    _refused("name-with-semicolon", b"X-A; q: b"),
    _refused("name-with-equals", b"X=A: b"),
    _refused("name-with-control", b"X-\x01A: b"),
    _refused("name-with-delete", b"X-A\x7f: b"),
    Case(
        "field-name-of-odd-tokens",
        "RFC 9110 §5.1",
        (get(b"/", b"!#$%&'*+.^`|~: b"),),
        (ok(Seen()), *REFUSED),
        "All these characters are allowed in a name; no app needs them.",
    ),
)


def _fold(name: str, *fields: bytes, answer: Answer | None = None) -> Case:
    answers = REFUSED if answer is None else (answer, *REFUSED)
    why = "A fold is rejected, or replaced with a space."
    return Case(f"fold-{name}", "RFC 9112 §5.2", (get(b"/", *fields),), answers, why)


FOLDING = (
    _fold("space", b"X-A: a", b" b", answer=ok(with_header("X_A", "a b"))),
    _fold("tab", b"X-A: a", b"\tb", answer=ok(with_header("X_A", "a b"))),
    _fold("two-lines", b"X-A: a", b"  b", b"  c", answer=ok(Seen())),
    _fold("empty-line", b"X-A: a", b" ", answer=ok(with_header("X_A", "a"))),
    _fold("field-in-fold", b"X-A: a", b" X-B: b", answer=ok(with_header("X_B", None))),
    _fold("value-on-next-line", b"X-A:", b" b", answer=ok(with_header("X_A", "b"))),
    _fold("host", b"X-A: a", b" Host: globex.test", answer=ok(with_header("HOST", "acme.test"))),
    Case(
        "fold-of-host",
        "RFC 9112 §5.2",
        (lines(_LINE, b"Host:", b" acme.test"),),
        (ok(with_header("HOST", "acme.test")), *REFUSED),
    ),
    Case(
        "fold-in-first-field",
        "RFC 9112 §2.2",
        (lines(_LINE, b" X-A: a", HOST),),
        (ok(with_header("X_A", None)), *REFUSED),
        "Whitespace after the request line is rejected, or its line is ignored.",
    ),
    Case(
        "fold-of-request-line",
        "RFC 9112 §2.2",
        (lines(_LINE, b"\tHost: globex.test", HOST),),
        (ok(with_header("HOST", "acme.test")), *REFUSED),
    ),
    Case(
        "fold-of-lf-and-tab",
        "RFC 9112 §5.2",
        (b"GET / HTTP/1.1\r\nHost: acme.test\r\nX-A: a\n\tb\r\n\r\n",),
        REFUSED,
        "A bare LF ends no line.",
    ),
)


def _environ(name: str, *fields: bytes, why: str, **environ: str | None) -> Case:
    answers = (ok(Seen(path="/acme/x", environ=environ)),)
    return Case(f"environ-{name}", "RFC 3875 §4.1.18", (get(b"/acme/x", *fields),), answers, why)


_DROPPED = "In WSGI, '_' and '-' are the same, so a field with '_' is dropped."

ENVIRON = (
    _environ("underscore", b"X_A: b", why=_DROPPED, HTTP_X_A=None),
    _environ("underscore-and-hyphen", b"X_A: evil", b"X-A: b", why=_DROPPED, HTTP_X_A="b"),
    _environ("hyphen-and-underscore", b"X-A: b", b"X_A: evil", why=_DROPPED, HTTP_X_A="b"),
    _environ("script-name", b"SCRIPT_NAME: /acme", why=_DROPPED, SCRIPT_NAME=""),
    _environ("path-info", b"PATH_INFO: /globex", why=_DROPPED, HTTP_PATH_INFO=None),
    _environ(
        "script-name-with-hyphen",
        b"Script-Name: /acme",
        why="This field has no meaning for a server.",
        SCRIPT_NAME="",
        HTTP_SCRIPT_NAME="/acme",
    ),
    _environ("remote-addr", b"REMOTE_ADDR: 192.0.2.1", why=_DROPPED, REMOTE_ADDR="127.0.0.1"),
    _environ("remote-user", b"REMOTE_USER: ada", why=_DROPPED, HTTP_REMOTE_USER=None),
    _environ("underscore-length", b"Content_Length: 5", why=_DROPPED, CONTENT_LENGTH=None),
    _environ(
        "wsgi-key",
        b"wsgi.url_scheme: https",
        why="A field name is not an environ key.",
        **{"wsgi.url_scheme": "http"},
    ),
    _environ(
        "https",
        b"HTTPS: on",
        why="A field name is not an environ key.",
        **{"wsgi.url_scheme": "http"},
    ),
    _environ(
        "forwarded-scheme",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Ssl: on",
        b"X-Forwarded-Protocol: ssl",
        why="The server trusts no proxy; the app decides.",
        **{"wsgi.url_scheme": "http", "HTTP_X_FORWARDED_PROTO": "https"},
    ),
    _environ(
        "forwarded-address",
        b"X-Forwarded-For: 192.0.2.1",
        why="The server trusts no proxy; the app decides.",
        REMOTE_ADDR="127.0.0.1",
    ),
    _environ("content-type", b"Content-Type: text/plain", why="", CONTENT_TYPE="text/plain"),
    _environ("underscore-host", b"Host_: globex.test", why=_DROPPED, HTTP_HOST="acme.test"),
)

REPEATED = (
    Case(
        "repeated-list-field",
        "RFC 9110 §5.3",
        (get(b"/", b"X-A: a", b"X-B: x", b"X-A: b"),),
        (ok(with_header("X_A", "a,b")), ok(with_header("X_A", "a, b"))),
    ),
    Case(
        "repeated-in-other-case",
        "RFC 9110 §5.1",
        (get(b"/", b"X-A: a", b"x-a: b"),),
        (ok(with_header("X_A", "a,b")), ok(with_header("X_A", "a, b"))),
    ),
    Case(
        "repeated-cookie",
        "RFC 6265 §5.4",
        (get(b"/", b"Cookie: a=1", b"Cookie: b=2"),),
        (ok(with_header("COOKIE", "a=1; b=2")), *REFUSED),
        "Cookies are separated by '; ' (RFC 9113 §8.2.3); a comma is part of a cookie's value.",
    ),
    Case(
        "cookie-with-comma",
        "RFC 6265 §4.2.1",
        (get(b"/", b"Cookie: a=1, b=2; c=3"),),
        (ok(with_header("COOKIE", "a=1, b=2; c=3")),),
    ),
    Case(
        "repeated-content-type",
        "RFC 9110 §8.3",
        (get(b"/", b"Content-Type: text/plain", b"Content-Type: text/html"),),
        (
            ok(Seen(environ={"CONTENT_TYPE": "text/plain"})),
            ok(Seen(environ={"CONTENT_TYPE": "text/html"})),
            *REFUSED,
        ),
        "The app gets one of the two values, never a mixture.",
    ),
    Case(
        "repeated-authorization",
        "RFC 9110 §5.3",
        (get(b"/", b"Authorization: Bearer a", b"Authorization: Bearer b"),),
        (ok(Seen()), *refused(400)),
    ),
)

CASES = (*VALUES, *NAMES, *FOLDING, *ENVIRON, *REPEATED)
