"""Bodies with Content-Length (RFC 9112 §6.3, RFC 9110 §8.6)."""

from case import (
    HALF_CLOSE,
    NO_ANSWER,
    REFUSED,
    REFUSED_OR_NO_ANSWER,
    Case,
    Seen,
    get,
    lines,
    ok,
    ok_then,
    post,
    refused,
)

HELLO = b"hello"
_SEES_HELLO = Seen(method="POST", path="/", body=HELLO)


def _length(name: str, value: bytes, why: str = "") -> Case:
    """Return a case with an invalid length, followed by five bytes."""
    sent = (post(b"Content-Length:" + value, body=HELLO),)
    return Case(f"length-{name}", "RFC 9110 §8.6", sent, REFUSED, why)


def _twice(name: str, *fields: bytes, is_equal: bool = False) -> Case:
    answers = (ok(_SEES_HELLO), *REFUSED) if is_equal else REFUSED
    why = "Equal lengths may be read as one." if is_equal else "Lengths that differ are rejected."
    return Case(f"length-{name}", "RFC 9112 §6.3", (post(*fields, body=HELLO),), answers, why)


RIGHT = (
    Case(
        "length-5", "RFC 9112 §6.3", (post(b"Content-Length: 5", body=HELLO),), (ok(_SEES_HELLO),)
    ),
    Case("length-0", "RFC 9112 §6.3", (post(b"Content-Length: 0"),), (ok(Seen(body=b"")),)),
    Case(
        "length-missing",
        "RFC 9112 §6.3",
        (post(),),
        (ok(Seen(method="POST", body=b"")), *refused(411)),
        "A request without framing fields has no body.",
    ),
    Case(
        "length-leading-zeros",
        "RFC 9110 §8.6",
        (post(b"Content-Length: 0005", body=HELLO),),
        (ok(_SEES_HELLO), *REFUSED),
        "The grammar is 1*DIGIT, in base ten.",
    ),
    Case(
        "length-spaces-around",
        "RFC 9112 §5.1",
        (post(b"Content-Length: \t 5 \t", body=HELLO),),
        (ok(_SEES_HELLO),),
    ),
    Case(
        "length-octal-look",
        "RFC 9110 §8.6",
        (post(b"Content-Length: 010", body=b"0123456789"),),
        (ok(Seen(body=b"0123456789")), *REFUSED),
        "The length is ten bytes, not eight.",
    ),
    Case(
        "length-of-get",
        "RFC 9110 §9.3.1",
        (get(b"/a", b"Content-Length: 5") + HELLO,),
        (ok(Seen(method="GET", path="/a", body=HELLO)), *REFUSED),
        "The body of a GET has no meaning, but the server reads its framing.",
    ),
    Case(
        "length-of-delete",
        "RFC 9110 §9.3.5",
        (lines(b"DELETE / HTTP/1.1", b"Host: acme.test", b"Content-Length: 5") + HELLO,),
        (ok(Seen(method="DELETE", body=HELLO)), *REFUSED),
    ),
    Case(
        "length-body-looks-like-request",
        "RFC 9112 §6.3",
        (post(b"Content-Length: %d" % len(get(b"/evil")), body=get(b"/evil")),),
        (ok(Seen(path="/", body=get(b"/evil"))),),
    ),
    Case(
        "length-body-of-all-bytes",
        "RFC 9112 §6.3",
        (post(b"Content-Length: 256", body=bytes(range(256))),),
        (ok(Seen(body=bytes(range(256)))),),
    ),
    Case(
        "length-body-of-line-ends",
        "RFC 9112 §6.3",
        (post(b"Content-Length: 8", body=b"\r\n\r\n\r\n\r\n"),),
        (ok(Seen(body=b"\r\n" * 4)),),
    ),
    Case(
        "length-body-of-1-mib",
        "RFC 9112 §6.3",
        (post(b"Content-Length: 1048576", body=b"0123456789abcdef" * 65536),),
        (ok(Seen(body=b"0123456789abcdef" * 65536)),),
    ),
    Case(
        "length-head-and-body-apart",
        "RFC 9112 §6.3",
        (post(b"Content-Length: 5"), b"he", b"llo"),
        (ok(_SEES_HELLO),),
    ),
)

_INT = "Python's int() accepts this length."
_WHITESPACE = "str.strip() of Python removes this byte."

INVALID = (
    _length("empty", b""),
    _length("plus", b" +5", _INT),
    _length("minus", b" -5"),
    _length("minus-zero", b" -0", _INT),
    _length("underscore", b" 0_5", _INT),
    _length("hexadecimal", b" 0x5"),
    _length("octal-prefix", b" 0o5"),
    _length("hexadecimal-digit", b" a"),
    _length("decimal-point", b" 5.0"),
    _length("exponent", b" 5e0"),
    _length("letters", b" five"),
    _length("two-numbers", b" 5 5"),
    _length("semicolon", b" 5;a=b"),
    _length("quotes", b' "5"'),
    _length("superscript", b" \xb2", "str.isnumeric() of Python is true."),
    _length("arabic-digit", b" \xd9\xa5", "int() accepts this digit once it is decoded."),
    _length("no-break-space", b" 5\xa0", _WHITESPACE),
    _length("next-line", b" 5\x85", _WHITESPACE),
    _length("vertical-tab", b" \x0b5", _WHITESPACE),
    _length("form-feed", b" 5\x0c", _WHITESPACE),
    _length("file-separator", b" 5\x1c", _WHITESPACE),
    _length("nul", b" 5\0"),
    _length("cr", b" 5\r0", "A bare CR that becomes a space leaves two numbers."),
    _length("infinity", b" inf"),
    _length("trailing-comma", b" 5,"),
    Case(
        "length-space-before-colon",
        "RFC 9112 §5.1",
        (post(b"Content-Length : 5", body=HELLO),),
        REFUSED,
    ),
    Case(
        "length-folded",
        "RFC 9112 §5.2",
        (post(b"Content-Length:", b" 5", body=HELLO),),
        (ok(_SEES_HELLO), *REFUSED),
    ),
    Case(
        "length-hidden-in-fold",
        "RFC 9112 §5.2",
        (post(b"X-A: a", b" Content-Length: 5", body=HELLO),),
        (*REFUSED, ok_then(Seen(body=b""), 400)),
    ),
    Case(
        "length-folded-digits",
        "RFC 9112 §5.2",
        (post(b"Content-Length: 1", b" 0", body=b"0123456789"),),
        REFUSED,
        "The fold becomes a space, so the value is '1 0'.",
    ),
    Case(
        "length-invalid-of-get",
        "RFC 9112 §6.3",
        (get(b"/", b"Content-Length: -1"),),
        REFUSED,
        "The server reads the framing even if the method usually has no body.",
    ),
)

REPEATED = (
    _twice("twice-equal", b"Content-Length: 5", b"Content-Length: 5", is_equal=True),
    _twice("list-equal", b"Content-Length: 5, 5", is_equal=True),
    _twice("twice-different", b"Content-Length: 5", b"Content-Length: 6"),
    _twice("twice-different-case", b"Content-Length: 5", b"content-length: 0"),
    _twice("twice-apart", b"Content-Length: 0", b"X-A: b", b"Content-Length: 5"),
    _twice("list-different", b"Content-Length: 5, 6"),
    _twice("list-with-list", b"Content-Length: 5, 6", b"Content-Length: 5, 6"),
    _twice("twice-different-spelling", b"Content-Length: 5", b"Content-Length: 05x"),
    _twice("twice-one-empty", b"Content-Length: 5", b"Content-Length:"),
    _twice("thrice", b"Content-Length: 5", b"Content-Length: 5", b"Content-Length: 4"),
)


def _huge(name: str, value: bytes, *statuses: int) -> Case:
    sent = (post(b"Content-Length: " + value, body=HELLO), HALF_CLOSE)
    why = "The body never ends, so the app never gets a whole body."
    return Case(f"length-{name}", "RFC 9110 §8.6", sent, (*refused(*statuses), *NO_ANSWER), why)


INCOMPLETE = (
    _huge("2-63", b"9223372036854775808", 400, 408, 413),
    _huge("2-64", b"18446744073709551616", 400, 408, 413),
    _huge("2-64-plus-5", b"18446744073709551621", 400, 408, 413),
    _huge("2-32-plus-5", b"4294967301", 400, 408, 413),
    _huge("5000-digits", b"9" * 5000, 400, 408, 413),
    Case(
        "length-incomplete",
        "RFC 9112 §8",
        (post(b"Content-Length: 5", body=b"hel"), HALF_CLOSE),
        (*REFUSED_OR_NO_ANSWER, *refused(408)),
        "The app must not take an incomplete body for a complete body.",
    ),
    Case(
        "length-none-arrives",
        "RFC 9112 §8",
        (post(b"Content-Length: 5"), HALF_CLOSE),
        (*REFUSED_OR_NO_ANSWER, *refused(408)),
    ),
    Case(
        "length-garbage-after-body",
        "RFC 9112 §6.3",
        (post(b"Content-Length: 5", body=b"helloGARBAGE\r\n\r\n"),),
        (ok_then(_SEES_HELLO, 400),),
    ),
    Case(
        "length-too-short",
        "RFC 9112 §6.3",
        (post(b"Content-Length: 3", body=HELLO + b"\r\n\r\n"),),
        (ok_then(Seen(body=b"hel"), 400),),
        "The rest is read as the next request.",
    ),
    Case(
        "length-0-with-body",
        "RFC 9112 §6.3",
        (post(b"Content-Length: 0", body=b"X\r\n\r\n"),),
        (ok_then(Seen(body=b""), 400),),
    ),
    Case(
        "length-missing-with-body",
        "RFC 9112 §6.3",
        (post(body=b"a=1&b=2\r\n\r\n"),),
        (ok_then(Seen(body=b""), 400), *refused(411)),
    ),
)

CASES = (*RIGHT, *INVALID, *REPEATED, *INCOMPLETE)
