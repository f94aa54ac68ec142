"""A request head before it is parsed: which mount it names, and a response that needs no parser.

The server's main loop calls these functions, so each takes one or two microseconds. When a head is
ambiguous, they say so, and the request takes the slow path through the parser and a thread.
"""

import os
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from tenantry.grammar import PREFIX_SEGMENT, PREFIX_SEGMENTS
from tenantry.http.environ import REQUEST_ID
from tenantry.http.problem import ProblemResponse

NO_TENANT = ""
"""Used as the tenant when a head does not clearly name one. All these requests together get the
share of one tenant. Without that limit, twelve clients that requested unknown paths took every
thread of a worker."""

LIVENESS = "/-/livez"
"""Used as the tenant of requests for this page."""

_PREFIX = re.compile(
    rf"[A-Z]{{1,16}} ((?:/{PREFIX_SEGMENT}){{1,{PREFIX_SEGMENTS}}})(?=[/? ])".encode()
)
"""The method, and the part of the path that can be a prefix. It contains no escapes."""

_REQUEST_LINE = re.compile(rb"[A-Z]+ [!-~]+ HTTP/1\.1\r\n")
_KEEP_ALIVE = b"\nconnection: keep-alive\r\n"
_REQUEST_ID = re.compile(
    rb"\r\nx-request-id:[ \t]*([A-Za-z0-9._-]{1,128})[ \t]*\r\n", re.IGNORECASE
)

Found = TypeVar("Found")


def match_prefix(head: bytes, look_up: Callable[[str], Found | None]) -> Found | None:
    """Return what the longest known prefix of the path leads to; None if that is not clear.

    Args:
        head: the head from its first byte on; it can be incomplete.
        look_up: returns what a prefix leads to, if anything.
    """
    match = _PREFIX.match(head)
    prefix = match[1].decode() if match else ""
    while prefix:
        found = look_up(prefix)
        if found is not None:
            return found
        prefix = prefix.rpartition("/")[0]
    return None


def is_whole_request(head: bytes) -> bool:
    """Whether this complete head is certainly a complete request, so that another may follow it.

    It is not if a body may follow, if the connection may be meant to close, or if a line is
    malformed.
    """
    lower = head.lower()  # a regular expression that ignores case takes 10 µs more
    return (
        b"content-length" not in lower
        and b"transfer-encoding" not in lower
        and lower.count(b"\nconnection") == lower.count(_KEEP_ALIVE)
        and lower.count(b"\n") == lower.count(b"\r\n")
        and _REQUEST_LINE.match(head) is not None
    )


def render_response(
    problem: ProblemResponse,
    head: bytes,
    headers: Sequence[tuple[str, str]] = (),
    *,
    keep_alive: bool,
) -> bytes:
    """Return the complete response to a request that is not parsed.

    Args:
        problem: the response.
        head: the head of the request.
        headers: headers to add.
        keep_alive: whether the connection stays open.
    """
    found = _REQUEST_ID.search(head) if b"x-request-id" in head.lower() else None
    request_id = found[1].decode() if found else os.urandom(16).hex()
    body = problem.body({REQUEST_ID: request_id})
    status, own_headers = problem.head(len(body))
    lines = [f"{name}: {value}\r\n" for name, value in (*own_headers, *headers)]
    connection = "keep-alive" if keep_alive else "close"
    response_head = (
        f"HTTP/1.1 {status}\r\n{''.join(lines)}X-Request-ID: {request_id}\r\n"
        f"Connection: {connection}\r\n\r\n"
    )
    return response_head.encode("latin-1") + (b"" if head.startswith(b"HEAD ") else body)
