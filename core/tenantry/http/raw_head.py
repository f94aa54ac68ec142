"""A request's head before it is parsed: whose it is, and an answer that needs no parser.

For the server's main loop, so each look takes a microsecond or two. Who is in doubt says so: then
the request goes the long way, through the parser and a thread.
"""

import os
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from tenantry.http.problem import REQUEST_ID, ProblemAnswer

NOBODY = ""
"""Stands for the tenant where a head leaves in doubt whose a request is: all of these together get
what one tenant gets. Let in without a limit, twelve clients that asked for a path that is nobody's
took every thread of a worker."""

LIVENESS = "/-/livez"
"""Stands for the tenant of requests for this page."""

_SEGMENT = rb"/[a-z0-9][a-z0-9_-]{0,62}"
_PLACE = re.compile(rb"[A-Z]{1,16} ((?:%s){1,4})(?=[/? ])" % _SEGMENT)
"""Method, and what a prefix may be of the path; nothing of it is escaped, so it is what it says."""

_LINE = re.compile(rb"[A-Z]+ [!-~]+ HTTP/1\.1\r\n")
_KEPT = b"\nconnection: keep-alive\r\n"
_REQUEST_ID = re.compile(
    rb"\r\nx-request-id:[ \t]*([A-Za-z0-9._-]{1,128})[ \t]*\r\n", re.IGNORECASE
)

Found = TypeVar("Found")


def place(head: bytes, at: Callable[[str], Found | None]) -> Found | None:
    """Return what is at the prefix that a head's path begins with; None where that is in doubt.

    Args:
        head: from its first byte on.
        at: what is at a prefix, if there is anything.
    """
    match = _PLACE.match(head)
    prefix = match[1].decode() if match else ""
    while prefix:
        found = at(prefix)
        if found is not None:
            return found
        prefix = prefix.rpartition("/")[0]
    return None


def is_whole_request(head: bytes) -> bool:
    """Whether a whole head is surely a whole request, after which another may follow.

    Not where a body may follow, the connection may be meant to close, or a line is none.
    """
    lower = head.lower()  # and `in`: a regular expression that ignores case takes 10 µs more
    return (
        b"content-length" not in lower
        and b"transfer-encoding" not in lower
        and lower.count(b"\nconnection") == lower.count(_KEPT)
        and lower.count(b"\n") == lower.count(b"\r\n")
        and _LINE.match(head) is not None
    )


def answer(
    problem: ProblemAnswer, head: bytes, headers: Sequence[tuple[str, str]] = (), *, is_kept: bool
) -> bytes:
    """Return the whole response, as the host gives it from a thread.

    Args:
        problem: what it says.
        head: of the request.
        headers: in addition.
        is_kept: whether the connection stays open.
    """
    found = _REQUEST_ID.search(head) if b"x-request-id" in head.lower() else None
    request_id = found[1].decode() if found else os.urandom(16).hex()
    body = problem.body({REQUEST_ID: request_id})
    status, own = problem.head(len(body))
    lines = [f"{name}: {value}\r\n" for name, value in (*own, *headers)]
    connection = "keep-alive" if is_kept else "close"
    start = (
        f"HTTP/1.1 {status}\r\n{''.join(lines)}X-Request-ID: {request_id}\r\n"
        f"Connection: {connection}\r\n\r\n"
    )
    return start.encode("latin-1") + (b"" if head.startswith(b"HEAD ") else body)
