"""One case of the wire corpus: the bytes that a client sends, and every correct answer.

The tables in `cases/` use the short names of this module. A case states what the specifications
say, not what a server does today. Where a specification allows several answers, the case lists all
of them. Where a specification allows a strict and a lenient reading, only the strict reading is
correct if another server can read the bytes differently: the difference lets a client smuggle a
request past a proxy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Step(Enum):
    """A step of a client between two segments."""

    HALF_CLOSE = "close the sending side"
    AWAIT_CONTINUE = "wait for a response; end the steps if the response is final"


class End(Enum):
    """The state of a connection after the last response."""

    OPEN = "open"
    """The server answers another request on the connection."""
    CLOSED = "closed"
    """The server closed, and announced the close unless the client had closed its side."""
    CUT = "cut"
    """The server closed in the middle of a response, because the rest does not exist."""


EITHER = frozenset({End.OPEN, End.CLOSED})

Sent = tuple[bytes | Step, ...]
"""The segments and steps of a client. A server reads each segment before the next is sent."""


@dataclass(frozen=True)
class Seen:
    """What the app saw of one request. None means that any value is correct."""

    method: str | None = None
    path: str | None = None
    """PATH_INFO."""
    raw: str | None = None
    """RAW_URI."""
    query: str | None = None
    body: bytes | None = None
    environ: Mapping[str, str | None] = field(default_factory=dict)
    """Values of other keys of the environ. None means that the key is absent."""


@dataclass(frozen=True)
class Answer:
    """A correct answer to all bytes of a case."""

    statuses: tuple[int, ...]
    """The status of each response in order, interim responses included."""
    ends: frozenset[End]
    seen: tuple[Seen, ...] = ()
    """What the app saw, in order, of the requests with a status of 200."""
    has: tuple[str, ...] = ()
    """Names of header fields that each final response has, in lower case."""
    lacks: tuple[str, ...] = ()
    """Names of header fields that no final response has, in lower case."""


@dataclass(frozen=True)
class Case:
    """The bytes of one connection, and the correct answers."""

    name: str
    spec: str
    """The section that decides, such as "RFC 9112 §6.3"."""
    sent: Sent
    answers: tuple[Answer, ...]
    why: str = ""
    """Why the answers are correct, if the section alone does not say so."""
    listener: str = "plain"
    """The server that the case needs: `plain`, or `proxy` with a required PROXY line."""


# -- bytes --------------------------------------------------------------------------------------

HOST = b"Host: acme.test"
HALF_CLOSE = Step.HALF_CLOSE
AWAIT_CONTINUE = Step.AWAIT_CONTINUE


def lines(*all_lines: bytes) -> bytes:
    """Return a request head of these lines."""
    return b"".join(line + b"\r\n" for line in (*all_lines, b""))


def get(target: bytes = b"/", *headers: bytes, host: bytes = HOST) -> bytes:
    """Return a GET request."""
    return lines(b"GET " + target + b" HTTP/1.1", host, *headers)


def post(*headers: bytes, body: bytes = b"", target: bytes = b"/") -> bytes:
    """Return a POST request. The caller gives all framing headers."""
    return lines(b"POST " + target + b" HTTP/1.1", HOST, *headers) + body


def chunked(body: bytes, *headers: bytes) -> bytes:
    """Return a POST request with a chunked body, given as its bytes on the wire."""
    return post(b"Transfer-Encoding: chunked", *headers, body=body)


def each_byte(data: bytes) -> Sent:
    """Return segments of one byte."""
    return tuple(data[at : at + 1] for at in range(len(data)))


# -- answers ------------------------------------------------------------------------------------


def ok(
    *seen: Seen,
    end: End | frozenset[End] = End.OPEN,
    has: tuple[str, ...] = (),
    lacks: tuple[str, ...] = (),
) -> Answer:
    """Return the answer of an app that sees these requests, or one request of any content."""
    ends = end if isinstance(end, frozenset) else frozenset({end})
    seen = seen or (Seen(),)
    return Answer((200,) * len(seen), ends, seen, has, lacks)


def refused(*statuses: int) -> tuple[Answer, ...]:
    """Return one answer for each status; after each answer, the server closes."""
    return tuple(Answer((status,), frozenset({End.CLOSED})) for status in statuses or (400,))


def declined(*statuses: int) -> tuple[Answer, ...]:
    """Return one answer for each status; the end of the request is known, so it may stay open."""
    return tuple(Answer((status,), EITHER) for status in statuses or (400,))


CLOSED = End.CLOSED
OPEN = End.OPEN
NO_ANSWER = (Answer((), frozenset({End.CLOSED})),)
REFUSED = refused(400)
DECLINED = declined(400)
REFUSED_OR_NO_ANSWER = (*REFUSED, *NO_ANSWER)


def ok_then(seen: Seen | tuple[Seen, ...], *statuses: int) -> Answer:
    """Return the answer of an app that sees requests, and then the refusal of the next request."""
    all_seen = seen if isinstance(seen, tuple) else (seen,)
    return Answer((200,) * len(all_seen) + statuses, frozenset({End.CLOSED}), all_seen)


def with_header(key: str, value: str | None) -> Seen:
    """Return a request with this value of the environ key `HTTP_<key>`, or without the key."""
    return Seen(environ={f"HTTP_{key}": value})
