"""Counts calls of Tenantry's own functions in all threads. Tests and benchmarks use this module."""

import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import tenantry
from servers import DEADLINE_S, wait_until
from stepped_server import leading, stepping
from tenantry.host import Host

SERVED = 20
"""Number of requests that `count_served_calls` sends."""

_PACKAGE = str(Path(str(tenantry.__file__)).parent)


@contextmanager
def counting_calls() -> Iterator[Counter[str]]:
    """Count calls by `module.function` until the end of the block, except calls of endpoint code.

    The function does not count calls in threads that started before the block.
    """
    counts: Counter[str] = Counter()
    seen_names: dict[object, str] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        name = seen_names.get(code)
        if name is None:
            name = seen_names[code] = _name_of(frame)
        if name:
            counts[name] += 1

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield counts
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def count_served_calls(host: Host, request: bytes) -> Counter[str]:
    """Return the calls of one request over a kept connection to Tenantry's server.

    The host serves in this process, with all threads of a worker. The result includes the calls in
    all threads. The function sends `SERVED` requests, and returns the calls of the request with the
    fewest calls, because the server sometimes also checks time limits.
    """
    seen: list[Counter[str]] = []
    with counting_calls() as calls:
        host.start("gunicorn", threads=8)
        with (
            stepping(host.admission.app, host.admission) as server,
            leading(server),
            socket.create_connection(server.address, timeout=DEADLINE_S) as client,
        ):
            for _ in range(SERVED):
                wait_until(lambda: server.loop._is_polling)
                calls.clear()
                _request(client, request)
                wait_until(lambda: server.loop._is_polling)
                seen.append(calls.copy())
    return min(seen, key=Counter.total)


def _request(client: socket.socket, request: bytes) -> None:
    """Send a request, and receive its response, which fits into one packet."""
    client.sendall(request)
    received = client.recv(65536)
    assert received.startswith(b"HTTP/1.1 201 "), received


def _name_of(frame: FrameType) -> str:
    """Return `package.module.function` for a function of Tenantry; "" for any other function."""
    path = frame.f_code.co_filename
    if not path.startswith(_PACKAGE) or "/endpoints/" in path:
        return ""
    module = path.removeprefix(_PACKAGE).removesuffix(".py").strip("/").replace("/", ".")
    return f"{module}.{frame.f_code.co_qualname}"
