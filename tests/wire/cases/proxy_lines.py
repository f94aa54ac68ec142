"""The PROXY protocol, version 1, on a server that requires it (HAProxy's proxy-protocol.txt).

A receiver "MUST not try to guess whether the protocol header is present or not".
"""

from case import (
    CLOSED,
    HALF_CLOSE,
    HOST,
    REFUSED_OR_NO_ANSWER,
    Case,
    Seen,
    Sent,
    each_byte,
    get,
    lines,
    ok,
    ok_then,
    post,
    refused,
)

_SPEC = "PROXY protocol §2.1"
_TCP4 = b"PROXY TCP4 192.0.2.7 198.51.100.1 5555 80\r\n"
_TCP6 = b"PROXY TCP6 2001:db8::7 2001:db8::1 65535 443\r\n"
_CLIENT = {"REMOTE_ADDR": "192.0.2.7", "REMOTE_PORT": "5555"}
_PEER = {"REMOTE_ADDR": "127.0.0.1"}


def _seen(path: str = "/a", environ: dict[str, str | None] | None = None) -> Seen:
    return Seen(path=path, environ={**(_CLIENT if environ is None else environ)})


def _right(name: str, sent: Sent, *seen: Seen, why: str = "") -> Case:
    return Case(f"proxy-{name}", _SPEC, sent, (ok(*seen or (_seen(),)),), why, "proxy")


def _wrong(name: str, line: bytes, why: str = "") -> Case:
    sent = (line + get(b"/a"),)
    return Case(f"proxy-{name}", _SPEC, sent, REFUSED_OR_NO_ANSWER, why, "proxy")


def _line(name: str, text: bytes, why: str = "") -> Case:
    return _wrong(name, text + b"\r\n", why)


_UNKNOWN = "The receiver ignores the rest of the line and uses the addresses of the connection."
_ZEROS = '"Heading zeroes are not permitted".'

RIGHT = (
    _right("tcp4", (_TCP4 + get(b"/a"),)),
    _right(
        "tcp6",
        (_TCP6 + get(b"/a"),),
        _seen(environ={"REMOTE_ADDR": "2001:db8::7", "REMOTE_PORT": "65535"}),
    ),
    _right(
        "ports-0",
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 0 0\r\n" + get(b"/a"),),
        _seen(environ={"REMOTE_ADDR": "192.0.2.7", "REMOTE_PORT": "0"}),
    ),
    _right("unknown", (b"PROXY UNKNOWN\r\n" + get(b"/a"),), _seen(environ=_PEER), why=_UNKNOWN),
    _right(
        "unknown-with-addresses",
        (
            b"PROXY UNKNOWN "
            + b"ffff:" * 7
            + b"ffff "
            + b"ffff:" * 7
            + b"ffff 65535 65535\r\n"
            + get(b"/a"),
        ),
        _seen(environ=_PEER),
        why=_UNKNOWN,
    ),
    _right(
        "unknown-with-text",
        (b"PROXY UNKNOWN x y\r\n" + get(b"/a"),),
        _seen(environ=_PEER),
        why=_UNKNOWN,
    ),
    _right(
        "second-request",
        (_TCP4 + get(b"/a") + get(b"/b"),),
        _seen(),
        _seen("/b"),
        why="A line holds for its whole connection.",
    ),
    _right("request-apart", (_TCP4, get(b"/a"))),
    _right("of-one-byte-each", (*each_byte(_TCP4), get(b"/a"))),
    _right("cr-and-lf-apart", (_TCP4[:-1], b"\n" + get(b"/a"))),
    _right(
        "post",
        (_TCP4 + post(b"Content-Length: 5", body=b"hello", target=b"/a"),),
        Seen(path="/a", body=b"hello", environ=_CLIENT),
    ),
    _right(
        "forwarded-for",
        (_TCP4 + get(b"/a", b"X-Forwarded-For: 203.0.113.9"),),
        why="A header field does not replace the line.",
    ),
    Case(
        "proxy-close",
        _SPEC,
        (_TCP4 + get(b"/a", b"Connection: close"),),
        (ok(_seen(), end=CLOSED),),
        listener="proxy",
    ),
)

WRONG = (
    _wrong("missing", b"", "A line is required, so that no client invents or omits an address."),
    _wrong("missing-and-empty-line", b"\r\n"),
    _wrong("empty-line-first", b"\r\n" + _TCP4),
    _wrong("space-first", b" " + _TCP4),
    _line("lower-case", b"proxy TCP4 192.0.2.7 198.51.100.1 5555 80"),
    _line("without-protocol", b"PROXY"),
    _line("without-protocol-but-space", b"PROXY "),
    _line("unknown-protocol", b"PROXY TCP5 192.0.2.7 198.51.100.1 5555 80"),
    _line("udp", b"PROXY UDP4 192.0.2.7 198.51.100.1 5555 80"),
    _line("lower-case-protocol", b"PROXY tcp4 192.0.2.7 198.51.100.1 5555 80"),
    _line("unknown-and-more", b"PROXY UNKNOWNX"),
    _line("only-protocol", b"PROXY TCP4"),
    _line("one-address", b"PROXY TCP4 192.0.2.7"),
    _line("without-ports", b"PROXY TCP4 192.0.2.7 198.51.100.1"),
    _line("one-port", b"PROXY TCP4 192.0.2.7 198.51.100.1 5555"),
    _line("seven-words", b"PROXY TCP4 192.0.2.7 198.51.100.1 5555 80 x"),
    _line("two-spaces", b"PROXY TCP4  192.0.2.7 198.51.100.1 5555 80"),
    _line("tab", b"PROXY\tTCP4 192.0.2.7 198.51.100.1 5555 80"),
    _line("space-last", b"PROXY TCP4 192.0.2.7 198.51.100.1 5555 80 "),
    _line("bad-ipv4", b"PROXY TCP4 192.0.2.256 198.51.100.1 5555 80"),
    _line("short-ipv4", b"PROXY TCP4 192.0.2 198.51.100.1 5555 80"),
    _line("zeros-in-ipv4", b"PROXY TCP4 192.0.02.007 198.51.100.1 5555 80", _ZEROS),
    _line("name-for-ipv4", b"PROXY TCP4 localhost 198.51.100.1 5555 80"),
    _line("ipv6-in-tcp4", b"PROXY TCP4 2001:db8::7 2001:db8::1 5555 80"),
    _line("ipv4-in-tcp6", b"PROXY TCP6 192.0.2.7 198.51.100.1 5555 80"),
    _line("bad-ipv6", b"PROXY TCP6 2001:db8::7::1 2001:db8::1 5555 80"),
    _line("ipv6-with-zone", b"PROXY TCP6 fe80::1%eth0 2001:db8::1 5555 80"),
    _line("ipv6-in-brackets", b"PROXY TCP6 [2001:db8::7] 2001:db8::1 5555 80"),
    _line("port-65536", b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 80"),
    _line("port-negative", b"PROXY TCP4 192.0.2.7 198.51.100.1 -1 80"),
    _line("port-plus", b"PROXY TCP4 192.0.2.7 198.51.100.1 +5555 80"),
    _line("port-underscore", b"PROXY TCP4 192.0.2.7 198.51.100.1 5_555 80"),
    _line("port-letters", b"PROXY TCP4 192.0.2.7 198.51.100.1 http 80"),
    _line("port-empty", b"PROXY TCP4 192.0.2.7 198.51.100.1  80"),
    _line("port-zeros", b"PROXY TCP4 192.0.2.7 198.51.100.1 0555 80", _ZEROS),
    _line("port-no-break-space", b"PROXY TCP4 192.0.2.7 198.51.100.1 5555\xa0 80"),
    _line("destination-port-bad", b"PROXY TCP4 192.0.2.7 198.51.100.1 5555 x"),
    _line("high-byte", b"PROXY TCP4 192.0.2.7\xff 198.51.100.1 5555 80"),
    _line("nul", b"PROXY TCP4 192.0.2.7\0 198.51.100.1 5555 80"),
    _line("108-bytes", b"PROXY UNKNOWN " + b"x" * 92, "A line has at most 107 bytes with CRLF."),
    _wrong("bare-lf", b"PROXY TCP4 192.0.2.7 198.51.100.1 5555 80\n"),
    _wrong("bare-cr", b"PROXY TCP4 192.0.2.7 198.51.100.1 5555 80\r"),
    _wrong("two-lines", _TCP4 + _TCP4, "The second line is not a request line."),
    _wrong(
        "version-2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01\x15\xb3\0\x50"
    ),
    Case(
        "proxy-endless",
        _SPEC,
        (b"PROXY UNKNOWN " + b"x" * 100_000,),
        (*refused(431), *REFUSED_OR_NO_ANSWER),
        "A line is rejected after 107 bytes, without waiting for more.",
        "proxy",
    ),
    Case(
        "proxy-half-close-in-line",
        _SPEC,
        (b"PROXY TCP4 192.0.2.7", HALF_CLOSE),
        REFUSED_OR_NO_ANSWER,
        listener="proxy",
    ),
    Case(
        "proxy-half-close-after-line",
        _SPEC,
        (_TCP4, HALF_CLOSE),
        REFUSED_OR_NO_ANSWER,
        listener="proxy",
    ),
    Case(
        "proxy-line-before-second-request",
        _SPEC,
        (_TCP4 + get(b"/a") + _TCP6 + get(b"/b"),),
        (ok_then(_seen(), 400),),
        "Only the first bytes of a connection are a PROXY line.",
        "proxy",
    ),
    Case(
        "proxy-line-then-bad-request",
        _SPEC,
        (_TCP4 + lines(b"GET", HOST),),
        refused(400),
        listener="proxy",
    ),
    Case(
        "proxy-line-not-expected",
        "RFC 9112 §3",
        (_TCP4 + get(b"/a"),),
        refused(400),
        "Without the setting, a PROXY line is a malformed request line.",
    ),
)

CASES = (*RIGHT, *WRONG)
