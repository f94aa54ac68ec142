"""Sizes and segments of heads.

The contract limits the request line to 8,190 bytes (414), each of 100 fields to 8,190 bytes, and
the whole head to 64 KiB (431). The contract does not say whether a limit includes a line's CRLF, so
sizes differ from the limit by more than two bytes. Only the request line is counted without CRLF.
"""

from case import (
    HALF_CLOSE,
    HOST,
    NO_ANSWER,
    Case,
    Seen,
    Sent,
    chunked,
    each_byte,
    get,
    lines,
    ok,
    ok_then,
    post,
    refused,
)

_FRAME_BYTES = len(b"GET  HTTP/1.1")
_CONTRACT = "Limits of the contract"


def _line_of(size: int) -> bytes:
    """Return a target that makes the request line of a GET `size` bytes long."""
    return b"/".ljust(size - _FRAME_BYTES, b"a")


def _fields(count: int, name: bytes = b"X-%d: a") -> list[bytes]:
    return [name % number for number in range(count)]


def _size(name: str, sent: Sent, *statuses: int, spec: str = _CONTRACT, why: str = "") -> Case:
    return Case(f"size-{name}", spec, sent, refused(*statuses) if statuses else (ok(),), why)


_8000 = b"X-%d: " + b"a" * 7990

SIZES = (
    Case(
        "size-line-8000",
        "RFC 9112 §3",
        (get(_line_of(8000)),),
        (ok(Seen(path=_line_of(8000).decode())),),
        "RECOMMENDED: at least 8,000 bytes.",
    ),
    _size("line-8190", (get(_line_of(8190)),)),
    _size("line-8191", (get(_line_of(8191)),), 414),
    _size("line-100000", (get(_line_of(100_000)),), 414),
    _size("line-query-9000", (get(b"/?" + b"a" * 9000),), 414),
    _size(
        "line-without-end",
        (b"GET /" + b"a" * 70_000, HALF_CLOSE),
        414,
        431,
        400,
        why="The server does not wait for the end of a line that is too long.",
    ),
    _size("line-without-end-open", (b"GET /" + b"a" * 70_000,), 414, 431, 400),
    _size("method-9000", (lines(b"A" * 9000 + b" / HTTP/1.1", HOST),), 414, 400, 501),
    _size("version-9000", (lines(b"GET / HTTP/1.1" + b"1" * 9000, HOST),), 414, 400, 505),
    _size("field-8180", (get(b"/", b"X-A: " + b"a" * 8175),)),
    _size("field-8200", (get(b"/", b"X-A: " + b"a" * 8195),), 431),
    _size("field-name-9000", (get(b"/", b"X" * 9000 + b": a"),), 431),
    _size("field-without-end", (b"GET / HTTP/1.1\r\nX-A: " + b"a" * 70_000,), 431, 400),
    _size("cookie-8000", (get(b"/", b"Cookie: a=" + b"b" * 8000),)),
    _size("fields-100", (get(b"/", *_fields(99)),)),
    _size("fields-101", (get(b"/", *_fields(100)),), 431),
    _size("fields-1000", (get(b"/", *_fields(1000)),), 431),
    _size("fields-1000-same", (get(b"/", *[b"X-A: a"] * 1000),), 431),
    _size("fields-1000-empty", (get(b"/", *[b"a:"] * 1000),), 431),
    _size(
        "fields-101-dropped",
        (get(b"/", *_fields(101, b"X_%d: a")),),
        431,
        why="Fields with '_' count, too.",
    ),
    _size("fields-20000-dropped", (get(b"/", *_fields(20_000, b"X_%d: a")),), 431),
    _size("head-64000", (get(b"/", *_fields(8, _8000)),)),
    _size("head-72000", (get(b"/", *_fields(9, _8000)),), 431),
    _size("head-800000", (get(b"/", *_fields(98, _8000)),), 431),
    _size("head-endless", (b"GET / HTTP/1.1\r\n" + b"X-A: aaaaaaaaaa\r\n" * 10_000,), 431),
    _size(
        "head-of-dropped-endless", (b"GET / HTTP/1.1\r\n" + b"X_A: aaaaaaaaaa\r\n" * 10_000,), 431
    ),
    _size("line-8190-and-100-fields", (get(_line_of(8190), *_fields(99)),)),
    Case(
        "size-second-head-72000",
        _CONTRACT,
        (get(b"/a") + get(b"/b", *_fields(9, _8000)),),
        (ok_then(Seen(path="/a"), 431),),
    ),
    Case(
        "size-head-limit-with-body",
        _CONTRACT,
        (post(b"Content-Length: 200000", body=b"x" * 200_000),),
        (ok(Seen(body=b"x" * 200_000)),),
        "The limit of a head does not hold for its body.",
    ),
    Case(
        "size-413-or-read",
        "RFC 9110 §15.5.14",
        (post(b"Content-Length: 4194304", body=b"y" * 4_194_304),),
        (ok(Seen(body=b"y" * 4_194_304)), *refused(413)),
    ),
    Case(
        "size-many-small-chunks",
        "RFC 9112 §7.1.1",
        (chunked(b"1;a=b\r\nx\r\n" * 5000 + b"0\r\n\r\n"),),
        (ok(Seen(body=b"x" * 5000)), *refused(400, 413)),
    ),
)

_WHOLE = get(b"/a?b=c", b"X-A: b")


def _segments(name: str, *sent: bytes, seen: tuple[Seen, ...] = (Seen(path="/a"),)) -> Case:
    return Case(f"segment-{name}", "RFC 9112 §2.2", sent, (ok(*seen),), "TCP is a stream.")


SEGMENTS = (
    _segments(
        "head-of-one-byte-each", *(step for step in each_byte(_WHOLE) if isinstance(step, bytes))
    ),
    _segments("between-cr-and-lf", b"GET /a HTTP/1.1\r", b"\nHost: acme.test\r", b"\n\r\n"),
    _segments("before-empty-line", b"GET /a HTTP/1.1\r\nHost: acme.test\r\n", b"\r\n"),
    _segments("before-last-lf", b"GET /a HTTP/1.1\r\nHost: acme.test\r\n\r", b"\n"),
    _segments("after-first-end-byte", b"GET /a HTTP/1.1\r\nHost: acme.test\r", b"\n\r", b"\n"),
    _segments("in-method", b"G", b"ET /a HTTP/1.1\r\nHost: acme.test\r\n\r\n"),
    _segments("in-version", b"GET /a HTTP/1", b".1\r\nHost: acme.test\r\n\r\n"),
    _segments("leading-crlf-apart", b"\r", b"\n", b"GET /a HTTP/1.1\r\nHost: acme.test\r\n\r\n"),
    _segments(
        "body-of-one-byte-each",
        post(b"Content-Length: 5", target=b"/a"),
        *(b"%c" % byte for byte in b"hello"),
        seen=(Seen(path="/a", body=b"hello"),),
    ),
    _segments(
        "chunks-of-one-byte-each",
        post(b"Transfer-Encoding: chunked"),
        *(b"%c" % byte for byte in b"5;a=b\r\nhello\r\n0\r\nX-T: a\r\n\r\n"),
        seen=(Seen(body=b"hello"),),
    ),
    _segments(
        "end-of-one-next",
        get(b"/a") + b"GET /b HTTP/1.1\r\nHo",
        b"st: a\r\n\r\n",
        seen=(Seen(path="/a"), Seen(path="/b")),
    ),
    _segments(
        "head-end-inside-body-start",
        post(b"Content-Length: 5", target=b"/a") + b"he",
        b"llo" + get(b"/b"),
        seen=(Seen(path="/a", body=b"hello"), Seen(path="/b")),
    ),
    Case(
        "segment-bare-lf-apart",
        "RFC 9112 §2.2",
        (b"GET /a HTTP/1.1\r\nHost: acme.test", b"\n\r\n"),
        refused(400),
        "A bare LF stays a bare LF, wherever a segment ends.",
    ),
    Case(
        "segment-half-close-after-pieces",
        "RFC 9112 §8",
        (b"GET", b" /a", HALF_CLOSE),
        (*refused(400), *NO_ANSWER),
    ),
)

CASES = (*SIZES, *SEGMENTS)
