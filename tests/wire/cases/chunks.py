"""Chunked bodies: sizes, extensions, ends and trailers (RFC 9112 §7.1)."""

from case import (
    HALF_CLOSE,
    NO_ANSWER,
    REFUSED,
    REFUSED_OR_NO_ANSWER,
    Case,
    Seen,
    chunked,
    get,
    ok,
    ok_then,
    refused,
)

END = b"0\r\n\r\n"
HELLO = b"5\r\nhello\r\n"
_SEES_HELLO = Seen(method="POST", body=b"hello")
_TOO_LARGE = refused(400, 413, 431)


def _right(name: str, body: bytes, seen: bytes = b"hello") -> Case:
    return Case(f"chunk-{name}", "RFC 9112 §7.1", (chunked(body),), (ok(Seen(body=seen)),))


def _wrong(name: str, body: bytes, why: str = "") -> Case:
    return Case(f"chunk-{name}", "RFC 9112 §7.1", (chunked(body),), REFUSED, why)


def _size(name: str, size: bytes, why: str = "") -> Case:
    return _wrong(f"size-{name}", size + b"\r\nhello\r\n" + END, why)


def _lenient(name: str, body: bytes, why: str, spec: str = "RFC 9112 §7.1.1") -> Case:
    return Case(f"chunk-{name}", spec, (chunked(body),), (ok(_SEES_HELLO), *_TOO_LARGE), why)


SIZES = (
    _right("one", HELLO + END),
    _right("none", END, b""),
    _right("two", HELLO + b"7\r\n, world\r\n" + END, b"hello, world"),
    _right("upper-case-size", b"A\r\n0123456789\r\n" + END, b"0123456789"),
    _right("lower-case-size", b"a\r\n0123456789\r\n" + END, b"0123456789"),
    _right("leading-zeros", b"00005\r\nhello\r\n" + END),
    _right("many-zeros-at-end", HELLO + b"000\r\n\r\n"),
    _right("of-line-ends", b"4\r\n\r\n\r\n\r\n" + END, b"\r\n\r\n"),
    _right("that-looks-like-end", b"5\r\n" + END + b"\r\n" + END, END),
    _right("of-one-byte-each", b"".join(b"1\r\n%c\r\n" % byte for byte in b"hello") + END),
    _right("of-100-kb", b"186A0\r\n" + b"x" * 100_000 + b"\r\n" + END, b"x" * 100_000),
    _right("of-2000-bytes-each", (b"7D0\r\n" + b"y" * 2000 + b"\r\n") * 100 + END, b"y" * 200_000),
    _size("empty", b""),
    _size("prefix", b"0x5", "Python's int(…, 16) accepts this size."),
    _size("plus", b"+5", "Python's int() accepts this size."),
    _size("minus", b"-5"),
    _size("underscore", b"0_5", "Python's int() accepts this size."),
    _size("space-first", b" 5"),
    _size("tab-first", b"\t5"),
    _size("space-last", b"5 ", "Whitespace is allowed only before an extension."),
    _size("vertical-tab", b"5\x0b"),
    _size("no-break-space", b"5\xa0"),
    _size("nul", b"5\0"),
    _size("letter-g", b"g"),
    _size("decimal-point", b"5.0"),
    _size("quotes", b'"5"'),
    _size("arabic-digit", b"\xd9\xa5"),
    _size("superscript", b"\xb2"),
    _size("two-numbers", b"5 5"),
    _size("comma", b"5,5"),
    _size("cr", b"5\r5"),
    _size("minus-zero", b"-0"),
    _lenient("size-of-200-digits", b"0" * 199 + HELLO + END, "A size may have leading zeros."),
    Case(
        "chunk-size-of-16000-digits",
        "RFC 9112 §7.1.1",
        (chunked(b"0" * 15_999 + HELLO + END),),
        (ok(_SEES_HELLO), *_TOO_LARGE),
        "The grammar has no limit; a server may have one.",
    ),
    Case(
        "chunk-size-2-64-plus-5",
        "RFC 9112 §7.1",
        (chunked(b"10000000000000005\r\nhello\r\n" + END), HALF_CLOSE),
        (*_TOO_LARGE, *NO_ANSWER),
        'A size must not overflow: "recipients MUST anticipate large hexadecimal numerals".',
    ),
    Case(
        "chunk-size-2-32-plus-5",
        "RFC 9112 §7.1",
        (chunked(b"100000005\r\nhello\r\n" + END), HALF_CLOSE),
        (*_TOO_LARGE, *NO_ANSWER),
    ),
    Case(
        "chunk-size-2-63",
        "RFC 9112 §7.1",
        (chunked(b"8000000000000000\r\nhello\r\n" + END), HALF_CLOSE),
        (*_TOO_LARGE, *NO_ANSWER),
    ),
)

_LINE_END = "A chunk's line ends with CRLF only; another end hides a chunk from a proxy."

ENDS = (
    _wrong("lf-after-size", b"5\nhello\r\n" + END, _LINE_END),
    _wrong("lf-after-data", b"5\r\nhello\n" + END, _LINE_END),
    _wrong("cr-after-size", b"5\rhello\r\n" + END, _LINE_END),
    _wrong("cr-after-data", b"5\r\nhello\r" + END, _LINE_END),
    _wrong("two-bytes-for-crlf", b"5\r\nhelloXX" + END, "The two bytes are not skipped."),
    _wrong("no-end-of-data", b"5\r\nhello" + END),
    Case(
        "chunk-only-lf",
        "RFC 9112 §7.1",
        (chunked(b"5\nhello\n0\n\n"), HALF_CLOSE),
        (*REFUSED_OR_NO_ANSWER, *refused(408)),
        _LINE_END,
    ),
    _wrong("lf-after-last", HELLO + b"0\n\r\n", _LINE_END),
    _wrong("lf-at-end", HELLO + b"0\r\n\n", _LINE_END),
    _wrong("size-too-small", b"4\r\nhello\r\n" + END),
    _wrong("size-too-large", b"6\r\nhello\r\n" + END + b"\r\n"),
    _wrong("empty-line-first", b"\r\n" + HELLO + END),
    _wrong("body-without-chunks", b"hello\r\n\r\n"),
    Case(
        "chunk-garbage-after-last",
        "RFC 9112 §7.1",
        (chunked(HELLO + END + b"X\r\n\r\n"),),
        (ok_then(_SEES_HELLO, 400),),
    ),
    Case(
        "chunk-two-ends",
        "RFC 9112 §7.1",
        (chunked(HELLO + END + END),),
        (ok_then(_SEES_HELLO, 400),),
        "The second end is read as the next request.",
    ),
    Case(
        "chunk-half-close-before-end",
        "RFC 9112 §8",
        (chunked(HELLO), HALF_CLOSE),
        (*REFUSED_OR_NO_ANSWER, *refused(408)),
        "A chunked body is incomplete without its last chunk.",
    ),
    Case(
        "chunk-half-close-in-data",
        "RFC 9112 §8",
        (chunked(b"5\r\nhel"), HALF_CLOSE),
        (*REFUSED_OR_NO_ANSWER, *refused(408)),
    ),
    Case(
        "chunk-half-close-after-last-size",
        "RFC 9112 §8",
        (chunked(HELLO + b"0\r\n"), HALF_CLOSE),
        (*REFUSED_OR_NO_ANSWER, *refused(408)),
        "The empty line after the trailers is missing.",
    ),
    Case(
        "chunk-half-close-in-trailers",
        "RFC 9112 §8",
        (chunked(HELLO + b"0\r\nX-T: a\r\n"), HALF_CLOSE),
        (*REFUSED_OR_NO_ANSWER, *refused(408)),
    ),
)


def _extension(name: str, extension: bytes) -> Case:
    return Case(
        f"chunk-extension-{name}",
        "RFC 9112 §7.1.1",
        (chunked(b"5" + extension + b"\r\nhello\r\n" + END),),
        (ok(_SEES_HELLO),),
        "A recipient MUST ignore extensions that it does not know.",
    )


def _bad_extension(name: str, extension: bytes, why: str = "") -> Case:
    return _wrong(f"extension-{name}", b"5" + extension + b"\r\nhello\r\n" + END, why)


EXTENSIONS = (
    _extension("name", b";a"),
    _extension("value", b";a=b"),
    _extension("quoted", b';a="b;c, d"'),
    _extension("quoted-escape", b';a="b\\"c"'),
    _extension("spaces", b" ; a = b"),
    _extension("several", b';a;b=c;d="e"'),
    Case(
        "chunk-extension-of-last",
        "RFC 9112 §7.1.1",
        (chunked(HELLO + b"0;a=b\r\n\r\n"),),
        (ok(_SEES_HELLO),),
    ),
    _lenient("extension-without-name", b"5;\r\nhello\r\n" + END, "The name is missing."),
    _lenient("extension-not-token", b"5;a b\r\nhello\r\n" + END, "Malformed, but on one line."),
    _lenient("extension-open-quote", b'5;a="b\r\nhello\r\n' + END, "The line ends at CRLF."),
    _bad_extension("lf", b";a\nb", "A proxy can read the LF as the end of the line."),
    _bad_extension("lf-at-once", b";\n", "A proxy can read the LF as the end of the line."),
    _bad_extension("cr", b";a\rb"),
    _bad_extension("nul", b";a\0b"),
    _wrong(
        "extension-quoted-line-end",
        b'5;a="\r\nhello\r\n0\r\n\r\n"\r\nhello\r\n' + END,
        "No quoted string contains CRLF, so the first chunk ends early, and the rest is garbage.",
    ),
    Case(
        "chunk-extension-of-1000-bytes",
        "RFC 9112 §7.1.1",
        (chunked(b"5;a=" + b"b" * 1000 + b"\r\nhello\r\n" + END),),
        (ok(_SEES_HELLO), *_TOO_LARGE),
    ),
    Case(
        "chunk-extension-of-20000-bytes",
        "RFC 9112 §7.1.1",
        (chunked(b"5;a=" + b"b" * 20_000 + b"\r\nhello\r\n" + END),),
        _TOO_LARGE,
        "A server ought to limit extensions.",
    ),
    Case(
        "chunk-extension-endless",
        "RFC 9112 §7.1.1",
        (chunked(b"5;a=" + b"b" * 200_000), HALF_CLOSE),
        (*_TOO_LARGE, *NO_ANSWER),
    ),
)


def _trailer(name: str, *fields: bytes, why: str, **environ: str | None) -> Case:
    """Return a case with trailer fields that are ignored or rejected, and never merged."""
    trailers = b"".join(field + b"\r\n" for field in fields)
    sent = (chunked(HELLO + b"0\r\n" + trailers + b"\r\n"),)
    answers = (ok(Seen(body=b"hello", environ=environ)), *REFUSED)
    return Case(f"trailer-{name}", "RFC 9110 §6.5.1", sent, answers, why)


def _bad_trailer(name: str, trailers: bytes, why: str = "") -> Case:
    sent = (chunked(HELLO + b"0\r\n" + trailers + b"\r\n\r\n"),)
    return Case(f"trailer-{name}", "RFC 9112 §7.1.2", sent, REFUSED, why)


_NEVER = "Fields about framing, routing and authentication have no place in a trailer."

TRAILERS = (
    Case(
        "trailer-one",
        "RFC 9112 §7.1.2",
        (chunked(HELLO + b"0\r\nX-T: a\r\n\r\n"),),
        (ok(Seen(body=b"hello", environ={"HTTP_X_T": None})),),
        "A trailer is not a header field.",
    ),
    Case(
        "trailer-announced",
        "RFC 9110 §6.6.2",
        (chunked(HELLO + b"0\r\nX-T: a\r\nX-U: b\r\n\r\n", b"Trailer: X-T"),),
        (ok(Seen(body=b"hello", environ={"HTTP_X_T": None, "HTTP_TRAILER": "X-T"})),),
    ),
    Case(
        "trailer-content-length",
        "RFC 9110 §6.5.1",
        (chunked(HELLO + b"0\r\nContent-Length: 3\r\n\r\n"),),
        (
            ok(Seen(body=b"hello", environ={"CONTENT_LENGTH": None})),
            ok(Seen(body=b"hello", environ={"CONTENT_LENGTH": "5"})),
            *REFUSED,
        ),
        _NEVER,
    ),
    _trailer("transfer-encoding", b"Transfer-Encoding: gzip", why=_NEVER),
    _trailer("host", b"Host: globex.test", why=_NEVER, HTTP_HOST="acme.test"),
    _trailer("authorization", b"Authorization: Bearer a", why=_NEVER, HTTP_AUTHORIZATION=None),
    _trailer("cookie", b"Cookie: session=a", why=_NEVER, HTTP_COOKIE=None),
    _trailer("connection", b"Connection: close", why=_NEVER, HTTP_CONNECTION=None),
    _trailer("forwarded", b"X-Forwarded-For: 192.0.2.1", why=_NEVER, HTTP_X_FORWARDED_FOR=None),
    _trailer("underscore", b"SCRIPT_NAME: /acme", why=_NEVER, SCRIPT_NAME=""),
    _trailer("folded", b"X-T: a", b" b", why="A fold is rejected or replaced.", HTTP_X_T=None),
    _bad_trailer("no-colon", b"evil"),
    _bad_trailer("space-before-colon", b"X-T : a"),
    _bad_trailer("lf", b"X-T: a\nX-U: b", "A bare LF ends no line."),
    _bad_trailer("request-line", b"GET /evil HTTP/1.1"),
    _bad_trailer("name-with-nul", b"X-\0T: a"),
    Case(
        "trailer-50",
        "RFC 9112 §7.1.2",
        (
            chunked(
                HELLO + b"0\r\n" + b"".join(b"X-%d: a\r\n" % one for one in range(50)) + b"\r\n"
            ),
        ),
        (ok(_SEES_HELLO), *_TOO_LARGE),
    ),
    Case(
        "trailer-1000",
        "RFC 9112 §7.1.2",
        (
            chunked(
                HELLO + b"0\r\n" + b"".join(b"X-%d: a\r\n" % one for one in range(1000)) + b"\r\n"
            ),
        ),
        _TOO_LARGE,
        "The limits of a head hold for trailers, too.",
    ),
    Case(
        "trailer-endless",
        "RFC 9112 §7.1.2",
        (chunked(HELLO + b"0\r\n" + b"X-T: aaaaaaaaaa\r\n" * 70_000), HALF_CLOSE),
        (*_TOO_LARGE, *NO_ANSWER),
    ),
    Case(
        "trailer-then-request",
        "RFC 9112 §7.1.2",
        (chunked(HELLO + b"0\r\nX-T: a\r\n\r\n") + get(b"/next"),),
        (ok(_SEES_HELLO, Seen(method="GET", path="/next", environ={"HTTP_X_T": None})),),
    ),
)

CASES = (*SIZES, *ENDS, *EXTENSIONS, *TRAILERS)
