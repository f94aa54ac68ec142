"""Responses: bodies that must not exist, framing, Date, and bodies that contradict headers."""

from case import CLOSED, EITHER, HOST, Answer, Case, End, Seen, Sent, get, lines, ok, post

_FRAMING = ("content-length", "transfer-encoding")
_OPEN = frozenset({End.OPEN})


def _answer(
    status: int,
    *,
    end: frozenset[End] = _OPEN,
    has: tuple[str, ...] = (),
    lacks: tuple[str, ...] = (),
) -> Answer:
    return Answer((status,), end, (), has, lacks)


def _case(name: str, spec: str, sent: Sent, *answers: Answer, why: str = "") -> Case:
    return Case(f"response-{name}", spec, sent, answers, why)


def _head(target: bytes) -> Sent:
    return (lines(b"HEAD " + target + b" HTTP/1.1", HOST),)


_NO_BODY = "Body bytes would be read as the next response."
_CUT_ANSWER = Answer((), frozenset({End.CUT}))
_SHORTER = "The server cannot send the declared bytes, so it closes the connection."

BODILESS = (
    _case(
        "head",
        "RFC 9110 §9.3.2",
        _head(b"/"),
        _answer(200, lacks=("transfer-encoding",)),
        why=_NO_BODY,
    ),
    _case("head-stream", "RFC 9110 §9.3.2", _head(b"/stream"), _answer(200), why=_NO_BODY),
    _case(
        "head-then-get", "RFC 9110 §9.3.2", (*_head(b"/a"), get(b"/b")), ok(Seen(), Seen(path="/b"))
    ),
    _case(
        "head-with-body",
        "RFC 9110 §9.3.2",
        (lines(b"HEAD / HTTP/1.1", HOST, b"Content-Length: 5") + b"hello",),
        _answer(200),
        why="The body has been read, so the connection can continue.",
    ),
    _case("204", "RFC 9110 §15.3.5", (get(b"/204"),), _answer(204, lacks=_FRAMING), why=_NO_BODY),
    _case("304", "RFC 9110 §15.4.5", (get(b"/304"),), _answer(304, has=("etag",)), why=_NO_BODY),
    _case(
        "204-then-get",
        "RFC 9112 §6.3",
        (get(b"/204") + get(b"/304") + get(b"/b"),),
        Answer((204, 304, 200), _OPEN, (Seen(path="/b"),)),
    ),
    _case(
        "204-http-1.0",
        "RFC 9112 §6.3",
        (lines(b"GET /204 HTTP/1.0", HOST),),
        _answer(204, end=frozenset({CLOSED}), lacks=_FRAMING),
    ),
)

FRAMING = (
    _case("length", "RFC 9112 §6.3", (get(),), _answer(200, has=("content-length",))),
    _case("stream", "RFC 9112 §7.1", (get(b"/stream"),), _answer(200, has=("transfer-encoding",))),
    _case(
        "stream-http-1.0",
        "RFC 9112 §6.1",
        (lines(b"GET /stream HTTP/1.0", HOST),),
        _answer(200, end=frozenset({CLOSED}), lacks=("transfer-encoding",)),
        why="HTTP/1.0 has no chunks; the close ends the body.",
    ),
    _case(
        "stream-http-1.0-keep-alive",
        "RFC 9112 §6.1",
        (lines(b"GET /stream HTTP/1.0", HOST, b"Connection: keep-alive"),),
        _answer(200, end=frozenset({CLOSED}), lacks=("transfer-encoding",)),
    ),
    _case(
        "stream-close",
        "RFC 9112 §9.6",
        (get(b"/stream", b"Connection: close"),),
        _answer(200, end=frozenset({CLOSED}), has=("connection",)),
    ),
    _case("1-mib", "RFC 9112 §6.3", (get(b"/large"),), _answer(200)),
    _case(
        "1-mib-http-1.0",
        "RFC 9112 §6.3",
        (lines(b"GET /large HTTP/1.0", HOST),),
        _answer(200, end=frozenset({CLOSED})),
    ),
)

_MUST = "A server with a clock MUST send Date in 2xx, 3xx and 4xx responses."

DATES = (
    _case("date", "RFC 9110 §6.6.1", (get(b"/date"),), _answer(200, has=("date",)), why=_MUST),
    _case(
        "date-of-400",
        "RFC 9110 §6.6.1",
        (b"?\r\n\r\n",),
        _answer(400, end=frozenset({CLOSED}), has=("date",)),
        why=_MUST,
    ),
    _case(
        "date-of-414",
        "RFC 9110 §6.6.1",
        (get(b"/" + b"a" * 20_000),),
        _answer(414, end=frozenset({CLOSED}), has=("date",)),
        why=_MUST,
    ),
    _case(
        "date-of-431",
        "RFC 9110 §6.6.1",
        (get(b"/", b"X-A: " + b"a" * 20_000),),
        _answer(431, end=frozenset({CLOSED}), has=("date",)),
        why=_MUST,
    ),
)

FAULTS = (
    _case("short-body", "RFC 9112 §8", (get(b"/short"),), _CUT_ANSWER, why=_SHORTER),
    _case(
        "short-body-then-get",
        "RFC 9112 §8",
        (get(b"/short") + get(b"/b"),),
        _CUT_ANSWER,
        why=_SHORTER,
    ),
    _case(
        "long-body",
        "RFC 9112 §6.3",
        (get(b"/long") + get(b"/b"),),
        ok(Seen(), Seen(path="/b")),
        ok(Seen(), end=CLOSED),
        why="Bytes after the promised length are never sent.",
    ),
    _case(
        "error-in-stream",
        "RFC 9112 §7.1",
        (get(b"/broken-stream"),),
        _CUT_ANSWER,
        why="The last chunk would say that the body is whole.",
    ),
    _case(
        "error",
        "RFC 9110 §15.6.1",
        (get(b"/error"),),
        _answer(500, end=EITHER, has=("content-length",)),
    ),
    _case(
        "error-with-unread-body",
        "RFC 9110 §15.6.1",
        (post(b"Content-Length: 5", body=b"hello", target=b"/error"),),
        _answer(500, end=EITHER),
    ),
    _case(
        "header-with-line-end",
        "RFC 9110 §5.5",
        (get(b"/split-header"),),
        _answer(500, end=EITHER, lacks=("x-a", "x-b")),
        why="A value with CRLF would split the response.",
    ),
)

CASES = (*BODILESS, *FRAMING, *DATES, *FAULTS)
