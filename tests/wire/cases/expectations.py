"""Expect and Upgrade (RFC 9110 §10.1.1 and §7.8)."""

from case import (
    AWAIT_CONTINUE,
    CLOSED,
    EITHER,
    HOST,
    REFUSED,
    Answer,
    Case,
    End,
    Seen,
    Sent,
    Step,
    declined,
    get,
    lines,
    ok,
    post,
    refused,
)

_EXPECT = b"Expect: 100-continue"
_SEES_HELLO = Seen(method="POST", body=b"hello")


def _with_100(*seen: Seen, end: frozenset[End] = frozenset({End.OPEN})) -> Answer:
    """Return the answer with an interim response before the first final response."""
    return Answer((100, *(200 for _ in seen)), end, seen)


def _continued(name: str, *sent: bytes | Step, spec: str = "RFC 9110 §10.1.1") -> Case:
    return Case(f"expect-{name}", spec, sent, (_with_100(_SEES_HELLO),))


def _maybe(name: str, sent: Sent, *seen: Seen, why: str) -> Case:
    return Case(f"expect-{name}", "RFC 9110 §10.1.1", sent, (ok(*seen), _with_100(*seen)), why)


_BODY_FIRST = "The server MAY omit 100 if part of the body has arrived."


def _failed(name: str, *fields: bytes, why: str = "") -> Case:
    return Case(f"expect-{name}", "RFC 9110 §10.1.1", (get(b"/", *fields),), declined(417), why)


EXPECTATIONS = (
    _continued("continue", post(_EXPECT, b"Content-Length: 5"), AWAIT_CONTINUE, b"hello"),
    _continued(
        "continue-in-other-case",
        post(b"expect: 100-CONTINUE", b"Content-Length: 5"),
        AWAIT_CONTINUE,
        b"hello",
    ),
    _continued(
        "continue-chunked",
        post(_EXPECT, b"Transfer-Encoding: chunked"),
        AWAIT_CONTINUE,
        b"5\r\nhello\r\n0\r\n\r\n",
    ),
    _continued(
        "continue-then-pieces",
        post(_EXPECT, b"Content-Length: 5"),
        AWAIT_CONTINUE,
        b"he",
        b"llo",
    ),
    _maybe(
        "body-at-once",
        (post(_EXPECT, b"Content-Length: 5", body=b"hello"),),
        _SEES_HELLO,
        why=_BODY_FIRST,
    ),
    _maybe(
        "without-body", (get(b"/a", _EXPECT),), Seen(path="/a"), why="There is nothing to wait for."
    ),
    _maybe("length-0", (post(_EXPECT, b"Content-Length: 0"),), Seen(), why="There is no body."),
    _maybe(
        "then-request",
        (post(_EXPECT, b"Content-Length: 5", body=b"hello") + get(b"/next"),),
        _SEES_HELLO,
        Seen(path="/next"),
        why=_BODY_FIRST,
    ),
    Case(
        "expect-http-1.0",
        "RFC 9110 §10.1.1",
        (lines(b"POST / HTTP/1.0", HOST, _EXPECT, b"Content-Length: 5") + b"hello",),
        (ok(_SEES_HELLO, end=CLOSED),),
        "A server MUST ignore this expectation of HTTP/1.0, and MUST NOT send 100.",
    ),
    Case(
        "expect-app-does-not-read",
        "RFC 9110 §10.1.1",
        (post(_EXPECT, b"Content-Length: 5", target=b"/unread"), AWAIT_CONTINUE, b"hello"),
        (ok(Seen(path="/unread"), end=CLOSED), _with_100(Seen(path="/unread"), end=EITHER)),
        "After a final response instead of 100, the client may omit the body, so close.",
    ),
    Case(
        "expect-malformed-request",
        "RFC 9110 §10.1.1",
        (post(_EXPECT, b"Content-Length: -5"),),
        REFUSED,
        "The server does not ask for the body of a request that it rejects.",
    ),
    Case(
        "expect-missing-host",
        "RFC 9112 §3.2",
        (lines(b"POST / HTTP/1.1", _EXPECT, b"Content-Length: 5"),),
        REFUSED,
    ),
    _failed("unknown", b"Expect: 200-ok"),
    _failed("unknown-and-continue", b"Expect: 100-continue, x"),
    _failed("not-quite-continue", b"Expect: 100-continued"),
    _failed("prefix", b"Expect: y 100-continue"),
    _failed("two-fields", _EXPECT, b"Expect: x"),
    Case(
        "expect-unknown-with-body",
        "RFC 9110 §10.1.1",
        (post(b"Expect: x", b"Content-Length: 5"), AWAIT_CONTINUE, b"hello"),
        refused(417),
    ),
    Case(
        "expect-empty",
        "RFC 9110 §10.1.1",
        (get(b"/", b"Expect:"),),
        (ok(), *declined(417)),
    ),
    Case(
        "expect-continue-twice",
        "RFC 9110 §10.1.1",
        (post(_EXPECT, _EXPECT, b"Content-Length: 5", body=b"hello"),),
        (ok(_SEES_HELLO), _with_100(_SEES_HELLO), *refused(400, 417)),
    ),
    Case(
        "expect-unknown-http-1.0",
        "RFC 9110 §10.1.1",
        (lines(b"GET / HTTP/1.0", HOST, b"Expect: x"),),
        (ok(end=CLOSED), *refused(417)),
    ),
)


def _ignored(name: str, *fields: bytes, why: str = "A server MAY ignore Upgrade.") -> Case:
    return Case(
        f"upgrade-{name}", "RFC 9110 §7.8", (get(b"/a", *fields),), (ok(Seen(path="/a")),), why
    )


_H2C = (
    b"Connection: Upgrade, HTTP2-Settings",
    b"Upgrade: h2c",
    b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
)
_WEBSOCKET = (
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version: 13",
)

UPGRADES = (
    _ignored("h2c", *_H2C, why="RFC 9113 §3.1: the upgrade to h2c is obsolete."),
    _ignored("websocket", *_WEBSOCKET),
    _ignored("tls", b"Connection: Upgrade", b"Upgrade: TLS/1.0"),
    _ignored("unknown", b"Connection: Upgrade", b"Upgrade: x/1, y"),
    _ignored("http-1.1", b"Connection: Upgrade", b"Upgrade: HTTP/1.1"),
    _ignored("without-connection", b"Upgrade: h2c"),
    _ignored("without-upgrade", b"Connection: Upgrade"),
    Case(
        "upgrade-http-1.0",
        "RFC 9110 §7.8",
        (lines(b"GET /a HTTP/1.0", HOST, *_WEBSOCKET),),
        (ok(Seen(path="/a"), end=CLOSED),),
        "A server MUST ignore Upgrade in HTTP/1.0.",
    ),
    Case(
        "upgrade-h2c-with-body",
        "RFC 9110 §7.8",
        (post(*_H2C, b"Content-Length: 5", body=b"hello"),),
        (ok(_SEES_HELLO),),
    ),
    Case(
        "upgrade-then-request",
        "RFC 9110 §7.8",
        (get(b"/a", *_WEBSOCKET) + get(b"/next"),),
        (ok(Seen(path="/a"), Seen(path="/next")), ok(Seen(path="/a"), end=CLOSED)),
        "Without a switch, the connection stays HTTP/1.1, or closes.",
    ),
    Case(
        "upgrade-then-frames",
        "RFC 9110 §7.8",
        (get(b"/a", *_H2C) + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",),
        (
            ok(Seen(path="/a"), end=CLOSED),
            *(Answer((200, status), frozenset({CLOSED})) for status in (400, 505)),
        ),
    ),
)

CASES = (*EXPECTATIONS, *UPGRADES)
