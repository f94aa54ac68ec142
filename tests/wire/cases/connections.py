"""Whether a connection stays open: Connection lists, HTTP/1.0, pipelining (RFC 9112 §9)."""

from case import (
    CLOSED,
    EITHER,
    HALF_CLOSE,
    HOST,
    NO_ANSWER,
    REFUSED,
    REFUSED_OR_NO_ANSWER,
    Case,
    End,
    Seen,
    Sent,
    chunked,
    get,
    lines,
    ok,
    ok_then,
    post,
    refused,
)

_LINE_10 = b"GET /a HTTP/1.0"


def _list(name: str, *fields: bytes, end: End | frozenset[End] = CLOSED, why: str = "") -> Case:
    sent = (get(b"/a", *fields),)
    return Case(f"connection-{name}", "RFC 9112 §9.3", sent, (ok(Seen(path="/a"), end=end),), why)


def _old(name: str, *fields: bytes, end: End | frozenset[End] = CLOSED, why: str = "") -> Case:
    sent = (lines(_LINE_10, HOST, *fields),)
    seen = Seen(path="/a")
    return Case(f"connection-1.0-{name}", "RFC 9112 §9.3", sent, (ok(seen, end=end),), why)


_OPTION = "Any element of the list counts, not the whole value."

LISTS = (
    _list("default", end=End.OPEN),
    _list("keep-alive", b"Connection: keep-alive", end=End.OPEN),
    _list("close", b"Connection: close"),
    _list("close-in-other-case", b"connection: Close"),
    _list("keep-alive-and-close", b"Connection: keep-alive, close", why=_OPTION),
    _list("close-and-keep-alive", b"Connection: close, keep-alive", why=_OPTION),
    _list("te-and-close", b"TE: trailers", b"Connection: TE, close", why=_OPTION),
    _list("close-without-space", b"Connection: TE,close,x", why=_OPTION),
    _list("close-with-tab", b"Connection: x\t,\tclose\t", why=_OPTION),
    _list("two-fields", b"Connection: keep-alive", b"Connection: close", why=_OPTION),
    _list("two-fields-close-first", b"Connection: close", b"Connection: keep-alive", why=_OPTION),
    _list("empty-elements", b"Connection: , ,close, ,", why="Empty elements are ignored."),
    _list("last-of-50", b"Connection: " + b"x, " * 49 + b"close", why=_OPTION),
    _list("upgrade-and-close", b"Upgrade: x", b"Connection: upgrade, close", why=_OPTION),
    _list("empty", b"Connection:", end=End.OPEN),
    _list("unknown", b"Connection: x-foo", end=End.OPEN),
    _list("not-quite-close", b"Connection: closed, xclose", end=End.OPEN),
    _list("quoted-close", b'Connection: "close"', end=EITHER, why="Not the grammar."),
    _list("close-with-parameter", b"Connection: close;a=b", end=EITHER, why="Not the grammar."),
    _list("proxy-connection", b"Proxy-Connection: close", end=End.OPEN, why="Not a field of HTTP."),
    _list(
        "keep-alive-field", b"Keep-Alive: timeout=1, max=1", end=EITHER, why="Not a field of HTTP."
    ),
    Case(
        "connection-names-host",
        "RFC 9110 §7.6.1",
        (get(b"/a", b"Connection: host, cookie", b"Cookie: a=1"),),
        (ok(Seen(path="/a", environ={"HTTP_HOST": "acme.test"})), *REFUSED),
        "A server that is not a proxy keeps the fields that Connection names.",
    ),
    _old("keep-alive", b"Connection: keep-alive", end=EITHER),
    _old("keep-alive-in-other-case", b"Connection: Keep-Alive", end=EITHER),
    _old("keep-alive-and-close", b"Connection: keep-alive, close", why=_OPTION),
    _old("close-and-keep-alive", b"Connection: close, keep-alive", why=_OPTION),
    _old("two-fields", b"Connection: keep-alive", b"Connection: close", why=_OPTION),
    _old("unknown", b"Connection: x"),
    _old("proxy-connection", b"Proxy-Connection: keep-alive"),
    _old("keep-alive-field", b"Keep-Alive: timeout=5"),
)


def _pipeline(name: str, sent: Sent, *paths: str, end: End = End.OPEN, why: str = "") -> Case:
    """Return a case of several requests; the app sees these paths in this order."""
    answers = (ok(*(Seen(path=path) for path in paths), end=end),)
    return Case(f"pipeline-{name}", "RFC 9112 §9.3.2", sent, answers, why)


_ONE = "No request after the close is answered."
_NEXT = get(b"/next")

PIPELINING = (
    _pipeline("two", (get(b"/1") + get(b"/2"),), "/1", "/2"),
    _pipeline(
        "100",
        (b"".join(get(b"/%d" % number) for number in range(100)),),
        *(f"/{number}" for number in range(100)),
    ),
    _pipeline(
        "three-in-pieces",
        (get(b"/1") + b"GET /2 HT", b"TP/1.1\r\nHost: a\r\n\r", b"\n"),
        "/1",
        "/2",
    ),
    _pipeline("after-post", (post(b"Content-Length: 5", body=b"hello") + _NEXT,), "/", "/next"),
    _pipeline("after-empty-post", (post() + _NEXT,), "/", "/next"),
    _pipeline("after-chunks", (chunked(b"1\r\na\r\n0\r\n\r\n") + _NEXT,), "/", "/next"),
    _pipeline(
        "after-large-post",
        (post(b"Content-Length: 100000", body=b"x" * 100_000) + _NEXT,),
        "/",
        "/next",
    ),
    _pipeline(
        "posts",
        (post(b"Content-Length: 1", body=b"a", target=b"/1") + chunked(b"0\r\n\r\n") + _NEXT,),
        "/1",
        "/",
        "/next",
    ),
    _pipeline("empty-line-between", (get(b"/1") + b"\r\n" + get(b"/2"),), "/1", "/2"),
    _pipeline(
        "empty-line-after-post",
        (post(b"Content-Length: 5", body=b"hello\r\n") + _NEXT,),
        "/",
        "/next",
        why="Old clients send CRLF after a body.",
    ),
    _pipeline(
        "after-close", (get(b"/1", b"Connection: close") + _NEXT,), "/1", end=CLOSED, why=_ONE
    ),
    _pipeline(
        "after-list-with-close",
        (get(b"/1", b"Connection: keep-alive, close") + _NEXT,),
        "/1",
        end=CLOSED,
        why=_ONE,
    ),
    _pipeline("after-1.0", (lines(_LINE_10, HOST) + _NEXT,), "/a", end=CLOSED, why=_ONE),
    _pipeline(
        "last-closes", (get(b"/1") + get(b"/2", b"Connection: close"),), "/1", "/2", end=CLOSED
    ),
    _pipeline("last-is-1.0", (get(b"/1") + lines(_LINE_10, HOST),), "/1", "/a", end=CLOSED),
    Case(
        "pipeline-after-large-response",
        "RFC 9112 §9.3.2",
        (get(b"/large") + _NEXT,),
        (ok(Seen(), Seen(path="/next")),),
    ),
    Case(
        "pipeline-after-stream",
        "RFC 9112 §9.3.2",
        (get(b"/stream") + _NEXT,),
        (ok(Seen(), Seen(path="/next")),),
    ),
    Case("pipeline-after-bad-request", "RFC 9112 §9.6", (b"GET\r\n\r\n" + _NEXT,), REFUSED, _ONE),
    Case(
        "pipeline-after-bad-header",
        "RFC 9112 §9.6",
        (get(b"/", b"X A: b") + _NEXT,),
        REFUSED,
        _ONE,
    ),
    Case(
        "pipeline-good-then-bad",
        "RFC 9112 §9.3.2",
        (_NEXT + b"?\r\n\r\n",),
        (ok_then(Seen(), 400),),
    ),
    Case(
        "pipeline-good-bad-good",
        "RFC 9112 §9.6",
        (_NEXT + b"? ? ?\r\n\r\n" + _NEXT,),
        (ok_then(Seen(path="/next"), 400), ok_then(Seen(path="/next"), 501)),
        _ONE,
    ),
    Case(
        "pipeline-then-part",
        "RFC 9112 §9.3.2",
        (_NEXT + b"GET /par", HALF_CLOSE),
        (ok(Seen(path="/next"), end=CLOSED), ok_then(Seen(path="/next"), 400)),
        "An incomplete request is not answered, and does not affect an earlier one.",
    ),
    Case(
        "pipeline-too-long-line",
        "RFC 9112 §3",
        (_NEXT + get(b"/" + b"a" * 9000) + _NEXT,),
        (ok_then(Seen(path="/next"), 414),),
    ),
)


def _half(name: str, *sent: bytes, answered: bool = False) -> Case:
    """Return a case of a client that closes its side after these bytes."""
    answers = (ok(Seen(), end=CLOSED),) if answered else (*REFUSED_OR_NO_ANSWER, *refused(408))
    why = "The client still reads." if answered else "The request is incomplete."
    return Case(f"half-close-{name}", "RFC 9112 §8", (*sent, HALF_CLOSE), answers, why)


HALF_CLOSES = (
    Case("half-close-at-once", "RFC 9112 §8", (HALF_CLOSE,), NO_ANSWER),
    _half("after-get", get(), answered=True),
    _half("after-post", post(b"Content-Length: 5", body=b"hello"), answered=True),
    _half("after-chunks", chunked(b"5\r\nhello\r\n0\r\n\r\n"), answered=True),
    _half("after-large-response", get(b"/large"), answered=True),
    _half("after-method", b"GET"),
    _half("in-request-line", b"GET / HTT"),
    _half("after-request-line", b"GET / HTTP/1.1\r\n"),
    _half("in-field", b"GET / HTTP/1.1\r\nHost: acm"),
    _half("after-field", b"GET / HTTP/1.1\r\nHost: acme.test\r\n"),
    _half("before-last-lf", b"GET / HTTP/1.1\r\nHost: acme.test\r\n\r"),
    _half("head-in-pieces", b"GET / HTTP/1.1\r\n", b"Host: acme.test\r\n"),
    _half("after-one-cr", b"\r"),
    Case(
        "half-close-after-two",
        "RFC 9112 §9.3.2",
        (get(b"/1") + get(b"/2"), HALF_CLOSE),
        (ok(Seen(path="/1"), Seen(path="/2"), end=CLOSED),),
    ),
    Case(
        "half-close-after-20",
        "RFC 9112 §9.3.2",
        (get(b"/1") * 20, HALF_CLOSE),
        (ok(*[Seen(path="/1")] * 20, end=CLOSED),),
    ),
    Case(
        "half-close-body-in-pieces",
        "RFC 9112 §8",
        (post(b"Content-Length: 5"), b"hel", b"lo", HALF_CLOSE),
        (ok(Seen(body=b"hello"), end=CLOSED),),
    ),
    Case(
        "half-close-second-body-incomplete",
        "RFC 9112 §8",
        (_NEXT + post(b"Content-Length: 5", body=b"he"), HALF_CLOSE),
        (ok(Seen(path="/next"), end=CLOSED), ok_then(Seen(path="/next"), 400)),
    ),
)

CASES = (*LISTS, *PIPELINING, *HALF_CLOSES)
