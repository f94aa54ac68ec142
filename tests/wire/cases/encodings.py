"""Transfer-Encoding, alone and beside Content-Length: request smuggling (RFC 9112 §6 and §11.2).

Each case that is rejected contains a second request. A server that reads the framing differently
answers the second request.
"""

from case import CLOSED, REFUSED, Case, Seen, get, lines, ok, post, refused

END = b"0\r\n\r\n"
HELLO = b"5\r\nhello\r\n" + END
_EVIL = get(b"/evil")
_SEES_HELLO = Seen(method="POST", path="/", body=b"hello")
_CODING = refused(400, 501)
_MUST_CLOSE = "The connection closes after a request with both fields, however it is answered."


def _both(name: str, *fields: bytes, body: bytes, seen: bytes) -> Case:
    """Return a case with both framing fields: rejected, or read by Transfer-Encoding and closed."""
    answers = (ok(Seen(path="/", body=seen), end=CLOSED), *REFUSED)
    return Case(f"both-{name}", "RFC 9112 §6.1", (post(*fields, body=body),), answers, _MUST_CLOSE)


BOTH = (
    _both(
        "cl-te",
        b"Content-Length: %d" % (len(END) + len(_EVIL)),
        b"Transfer-Encoding: chunked",
        body=END + _EVIL,
        seen=b"",
    ),
    _both(
        "te-cl",
        b"Transfer-Encoding: chunked",
        b"Content-Length: 4",
        body=b"%x\r\n%s\r\n" % (len(_EVIL), _EVIL) + END,
        seen=_EVIL,
    ),
    _both(
        "cl-0-te",
        b"Content-Length: 0",
        b"Transfer-Encoding: chunked",
        body=HELLO,
        seen=b"hello",
    ),
    _both(
        "cl-right",
        b"Content-Length: %d" % len(HELLO),
        b"Transfer-Encoding: chunked",
        body=HELLO,
        seen=b"hello",
    ),
    _both(
        "keep-alive",
        b"Connection: keep-alive",
        b"Transfer-Encoding: chunked",
        b"Content-Length: 6",
        body=END + b"G" + _EVIL,
        seen=b"",
    ),
    Case(
        "both-cl-invalid",
        "RFC 9112 §6.3",
        (post(b"Content-Length: x", b"Transfer-Encoding: chunked", body=HELLO),),
        (ok(_SEES_HELLO, end=CLOSED), *REFUSED),
    ),
    Case(
        "both-cl-twice",
        "RFC 9112 §6.3",
        (
            post(
                b"Content-Length: 5",
                b"Transfer-Encoding: chunked",
                b"Content-Length: 6",
                body=HELLO + _EVIL,
            ),
        ),
        (ok(_SEES_HELLO, end=CLOSED), *REFUSED),
    ),
    Case(
        "both-te-not-chunked",
        "RFC 9112 §6.3",
        (post(b"Content-Length: 5", b"Transfer-Encoding: identity", body=b"hello"),),
        _CODING,
        "Content-Length is never used beside Transfer-Encoding.",
    ),
    Case(
        "both-te-empty",
        "RFC 9112 §6.3",
        (post(b"Content-Length: 5", b"Transfer-Encoding:", body=b"hello"),),
        _CODING,
    ),
    Case(
        "both-underscore-te",
        "RFC 9112 §6.3",
        (post(b"Content-Length: 5", b"Transfer_Encoding: chunked", body=b"hello"),),
        (ok(Seen(body=b"hello", environ={"HTTP_TRANSFER_ENCODING": None})), *REFUSED),
        "A field with '_' is dropped, and frames nothing.",
    ),
    Case(
        "both-underscore-cl",
        "RFC 9112 §6.3",
        (post(b"Content_Length: 3", b"Transfer-Encoding: chunked", body=HELLO),),
        (ok(_SEES_HELLO), *REFUSED),
    ),
    Case(
        "both-te-in-fold",
        "RFC 9112 §5.2",
        (post(b"Content-Length: 5", b"X-A: a", b" Transfer-Encoding: chunked", body=b"hello"),),
        (ok(Seen(body=b"hello")), *REFUSED),
    ),
    Case(
        "both-te-after-lf",
        "RFC 9112 §2.2",
        (post(b"Content-Length: 5", b"X-A: a\nTransfer-Encoding: chunked", body=b"hello"),),
        REFUSED,
    ),
    Case(
        "both-te-after-cr",
        "RFC 9112 §2.2",
        (post(b"Content-Length: 5", b"X-A: a\rTransfer-Encoding: chunked", body=b"hello"),),
        (ok(Seen(body=b"hello")), *REFUSED),
        "A bare CR ends no line; it is rejected, or replaced with a space.",
    ),
)


def _te(name: str, *fields: bytes, why: str = "", spec: str = "RFC 9112 §6.1") -> Case:
    """Return a case with an invalid or unknown coding."""
    return Case(f"te-{name}", spec, (post(*fields, body=HELLO + _EVIL),), _CODING, why)


def _refused_te(name: str, field: bytes, spec: str = "RFC 9112 §5.1") -> Case:
    return Case(f"te-{name}", spec, (post(field, body=HELLO + _EVIL),), REFUSED)


_FINAL = "If chunked is not the final coding, the length is unknown: MUST respond with 400."
_TWICE = "A body is chunked at most once."
_SAME = "The coding is the whole token; nothing around it is removed but spaces and tabs."

CODINGS = (
    _te("identity", b"Transfer-Encoding: identity", why=_FINAL, spec="RFC 9112 §6.3"),
    _te("gzip", b"Transfer-Encoding: gzip", why=_FINAL, spec="RFC 9112 §6.3"),
    _te("chunked-then-gzip", b"Transfer-Encoding: chunked, gzip", why=_FINAL),
    _te("chunked-then-identity", b"Transfer-Encoding: chunked, identity", why=_FINAL),
    _te("chunked-twice", b"Transfer-Encoding: chunked, chunked", why=_TWICE),
    _te("two-fields", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", why=_TWICE),
    _te("two-fields-gzip", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", why=_FINAL),
    _te("two-fields-x", b"Transfer-Encoding: chunked", b"Transfer-Encoding: x", why=_FINAL),
    _te("x-then-chunked", b"Transfer-Encoding: x, chunked", why="The coding x is unknown."),
    _te("two-fields-x-first", b"Transfer-Encoding: x", b"Transfer-Encoding: chunked"),
    _te(
        "gzip-then-chunked",
        b"Transfer-Encoding: gzip, chunked",
        why="A server that does not decode gzip SHOULD send 501. The app would get gzip data.",
    ),
    _te("empty", b"Transfer-Encoding:", why=_FINAL),
    _te("prefix", b"Transfer-Encoding: xchunked", why=_SAME),
    _te("suffix", b"Transfer-Encoding: chunkedx", why=_SAME),
    _te("quotes", b'Transfer-Encoding: "chunked"', why=_SAME),
    _te("single-quotes", b"Transfer-Encoding: 'chunked'", why=_SAME),
    _te("parameter", b"Transfer-Encoding: chunked;q=1", why="chunked has no parameters."),
    _te("semicolon", b"Transfer-Encoding: chunked;", why=_SAME),
    _te("space-inside", b"Transfer-Encoding: chu nked", why=_SAME),
    _te("space-separated", b"Transfer-Encoding: x chunked", why=_SAME),
    _te("vertical-tab-first", b"Transfer-Encoding: \x0bchunked", why=_SAME),
    _te("vertical-tab-last", b"Transfer-Encoding: chunked\x0b", why=_SAME),
    _te("form-feed", b"Transfer-Encoding: chunked\x0c", why=_SAME),
    _te("no-break-space", b"Transfer-Encoding: chunked\xa0", why=_SAME),
    _te("next-line", b"Transfer-Encoding: \x85chunked", why=_SAME),
    _te("unit-separator", b"Transfer-Encoding: chunked\x1f", why=_SAME),
    _te(
        "kelvin-sign",
        b"Transfer-Encoding: chun\xe2\x84\xaaed",
        why="A k in lower case.",
    ),
    _te("nul", b"Transfer-Encoding: chunked\0", why=_SAME),
    _te("colon", b"Transfer-Encoding: : chunked", why=_SAME),
    _te("equals", b"Transfer-Encoding: =chunked", why=_SAME),
    _refused_te("space-before-colon", b"Transfer-Encoding : chunked"),
    _refused_te("tab-before-colon", b"Transfer-Encoding\t: chunked"),
    _refused_te("line-end-before-colon", b"Transfer-Encoding\r\n: chunked"),
    _refused_te("name-with-nul", b"Transfer-Encoding\0: chunked"),
    _refused_te("name-with-cr", b"Transfer-\rEncoding: chunked"),
    _refused_te("name-with-space", b"Transfer Encoding: chunked"),
    _refused_te("lf-before-name", b"X-A: a\nTransfer-Encoding: chunked", spec="RFC 9112 §2.2"),
    Case(
        "te-fold",
        "RFC 9112 §5.2",
        (post(b"Transfer-Encoding:", b" chunked", body=HELLO),),
        (ok(_SEES_HELLO), *REFUSED),
    ),
    Case(
        "te-fold-inside",
        "RFC 9112 §5.2",
        (post(b"Transfer-Encoding: chun", b" ked", body=HELLO + _EVIL),),
        _CODING,
    ),
)


def _chunked(name: str, field: bytes, why: str = "") -> Case:
    sent = (post(field, body=HELLO),)
    return Case(f"te-{name}", "RFC 9110 §5.6.1", sent, (ok(_SEES_HELLO), *_CODING), why)


RIGHT = (
    Case(
        "te-upper-case",
        "RFC 9112 §7",
        (post(b"Transfer-Encoding: CHUNKED", body=HELLO),),
        (ok(_SEES_HELLO),),
        "Names of codings are case-insensitive.",
    ),
    Case(
        "te-name-in-other-case",
        "RFC 9110 §5.1",
        (post(b"tRANSFER-eNCODING: chunKed", body=HELLO),),
        (ok(_SEES_HELLO),),
    ),
    Case(
        "te-tab-around",
        "RFC 9110 §5.5",
        (post(b"Transfer-Encoding:\t chunked \t", body=HELLO),),
        (ok(_SEES_HELLO),),
    ),
    _chunked(
        "comma-first", b"Transfer-Encoding: , chunked", "Empty elements of a list are ignored."
    ),
    _chunked(
        "comma-last", b"Transfer-Encoding: chunked ,", "Empty elements of a list are ignored."
    ),
    _chunked(
        "identity-then-chunked",
        b"Transfer-Encoding: identity, chunked",
        "identity is no longer registered, and changes nothing.",
    ),
    Case(
        "te-of-get",
        "RFC 9112 §6.3",
        (get(b"/", b"Transfer-Encoding: chunked") + HELLO,),
        (ok(Seen(method="GET", body=b"hello")), *REFUSED),
    ),
    Case(
        "te-then-request",
        "RFC 9112 §6.3",
        (post(b"Transfer-Encoding: chunked", body=HELLO) + get(b"/next"),),
        (ok(_SEES_HELLO, Seen(method="GET", path="/next", body=b"")),),
    ),
    Case(
        "te-field-of-other-name",
        "RFC 9110 §10.1.4",
        (get(b"/", b"TE: trailers, chunked;q=0", b"Connection: TE"),),
        (ok(Seen(body=b"")),),
        "TE describes the response, not the request.",
    ),
    Case(
        "te-content-encoding",
        "RFC 9110 §8.4",
        (post(b"Content-Encoding: chunked", b"Content-Length: 5", body=b"hello"),),
        (ok(Seen(body=b"hello")),),
        "A content coding frames nothing.",
    ),
)

_OLD = "Framing of HTTP/1.0 with Transfer-Encoding is faulty: the connection closes."

HTTP_1_0 = (
    Case(
        "te-http-1.0",
        "RFC 9112 §6.1",
        (lines(b"POST / HTTP/1.0", b"Host: a", b"Transfer-Encoding: chunked") + HELLO,),
        (ok(Seen(), end=CLOSED), *_CODING),
        _OLD,
    ),
    Case(
        "te-http-1.0-keep-alive",
        "RFC 9112 §6.1",
        (
            lines(
                b"POST / HTTP/1.0",
                b"Host: a",
                b"Connection: keep-alive",
                b"Transfer-Encoding: chunked",
                b"Content-Length: %d" % len(HELLO),
            )
            + HELLO
            + _EVIL,
        ),
        (ok(Seen(), end=CLOSED), *_CODING),
        _OLD,
    ),
)

CASES = (*BOTH, *CODINGS, *RIGHT, *HTTP_1_0)
