"""Bodies that the app does not read, or that hide a request: they never become a request."""

from case import CLOSED, EITHER, REFUSED, Case, Seen, get, ok, ok_then, post

END = b"0\r\n\r\n"
HELLO = b"5\r\nhello\r\n" + END
_EVIL = get(b"/evil")
_SEES_HELLO = Seen(method="POST", path="/", body=b"hello")
_BODY = _EVIL + b"X" * 20
_DESYNC = "The bytes belong to the body, even if the app does not read it."


def _unread(name: str, *fields: bytes, body: bytes) -> Case:
    sent = (post(*fields, body=body, target=b"/unread"),)
    answers = (ok(Seen(path="/unread"), end=EITHER),)
    return Case(f"unread-{name}", "RFC 9112 §9.3", sent, answers, _DESYNC)


CASES = (
    _unread("length", b"Content-Length: %d" % len(_BODY), body=_BODY),
    _unread(
        "chunked",
        b"Transfer-Encoding: chunked",
        body=b"%x\r\n%s\r\n" % (len(_BODY), _BODY) + END,
    ),
    _unread("1-mib", b"Content-Length: 1048576", body=get(b"/evil/1").ljust(64) * 16384),
    _unread(
        "many-requests",
        b"Content-Length: %d" % (len(_EVIL) * 200),
        body=_EVIL * 200,
    ),
    Case(
        "unread-invalid-chunk",
        "RFC 9112 §9.3",
        (post(b"Transfer-Encoding: chunked", body=b"x\r\n" + _EVIL, target=b"/unread"),),
        (ok(Seen(path="/unread"), end=CLOSED), *REFUSED),
        "The end of a malformed body is unknown, so the connection closes.",
    ),
    Case(
        "unread-then-request",
        "RFC 9112 §9.3",
        (post(b"Content-Length: 5", body=b"hello", target=b"/unread") + get(b"/next"),),
        (
            ok(Seen(path="/unread"), Seen(method="GET", path="/next")),
            ok(Seen(path="/unread"), end=CLOSED),
        ),
    ),
    Case(
        "length-0-then-request",
        "RFC 9112 §6.3",
        (post(b"Content-Length: 0", body=get(b"/next")),),
        (ok(Seen(method="POST", path="/", body=b""), Seen(method="GET", path="/next")),),
    ),
    Case(
        "te-request-in-chunk",
        "RFC 9112 §7.1",
        (post(b"Transfer-Encoding: chunked", body=b"%x\r\n%s\r\n" % (len(_EVIL), _EVIL) + END),),
        (ok(Seen(method="POST", path="/", body=_EVIL)),),
    ),
    Case(
        "te-zero-before-next-request",
        "RFC 9112 §7.1",
        (post(b"Transfer-Encoding: chunked", body=HELLO + b"0" + _EVIL),),
        (
            ok_then(_SEES_HELLO, 400),
            ok_then(_SEES_HELLO, 501),
            ok(_SEES_HELLO, Seen(method="0GET", path="/evil")),
        ),
        "The next method is 0GET, a valid token.",
    ),
)
