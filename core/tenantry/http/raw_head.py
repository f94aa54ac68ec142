"""Functions that read an unparsed request head, and render a response without a parser.

The server's main loop calls the functions of this module, so each function takes one or two
microseconds. A request with an ambiguous head goes to a thread, which parses the head.
"""

import os
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from tenantry.grammar import PREFIX_SEGMENT, PREFIX_SEGMENTS
from tenantry.http.environ import REQUEST_ID
from tenantry.http.problem import ProblemResponse

NO_TENANT = ""
"""The tenant of requests with a head that does not clearly name a tenant.

All requests of `NO_TENANT` together get the share of one tenant. Without a limit, twelve clients
that requested unknown paths took every thread of a worker.
"""

LIVENESS = "/-/livez"
"""The path of the liveness page, and the tenant of requests for the liveness page."""

_PREFIX = re.compile(
    rf"[A-Z]{{1,16}} ((?:/{PREFIX_SEGMENT}){{1,{PREFIX_SEGMENTS}}})(?=[/? ])".encode()
)
"""The method of a request, and the part of the path that can be a URL prefix, without escapes."""

_REQUEST_LINE = re.compile(rb"[A-Z]+ [!-~]+ HTTP/1\.1\r\n")
_KEEP_ALIVE = b"\nconnection: keep-alive\r\n"
_REQUEST_ID = re.compile(
    rb"\r\nx-request-id:[ \t]*([A-Za-z0-9._-]{1,128})[ \t]*\r\n", re.IGNORECASE
)

Found = TypeVar("Found")


def match_prefix(head: bytes, look_up: Callable[[str], Found | None]) -> Found | None:
    """Return the result of `look_up` for the longest known prefix of the path, or None.

    Args:
        head: the request head from the first byte on; the head can be incomplete.
        look_up: returns the value for a URL prefix, or None for an unknown prefix.
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
    """Whether a complete request head is certainly a complete request without a body.

    The result is False if a body may follow the head, if the connection may close after the
    request, or if a line is malformed.
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
    """Return the complete response to an unparsed request.

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
