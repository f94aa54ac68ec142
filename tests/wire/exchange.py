"""Sends the cases of the wire corpus to a server, and judges the answers.

No step sleeps. Between two segments, another connection sends a whole request and reads the
response, so that the server has had time to read the first segment. One more request, the probe,
shows whether a connection is still open: a server that waits for more bytes of the previous request
does not answer the probe.
"""

import contextlib
import hashlib
import json
import re
import secrets
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

from case import Answer, Case, End, Seen, Step
from response_reader import CutResponseError, MalformedResponseError, Response, ResponseReader

Address = tuple[str, int]

PROXY_LINE = b"PROXY TCP4 192.0.2.7 198.51.100.1 5555 80\r\n"


@dataclass
class Outcome:
    """What a server did with the bytes of a case."""

    statuses: list[int] = field(default_factory=list)
    """The status of each response, without the response to the probe."""
    finals: list[Response] = field(default_factory=list)
    end: str = ""
    """A value of `End`; or `dropped`, `reset`, `silent` or `malformed`, which are always wrong."""
    detail: str = ""

    def seen(self) -> list[dict[str, Any]]:
        """Return what the echo app saw, for each response with a status of 200."""
        return [_json(one) for one in self.finals if one.status == 200]


def _json(response: Response) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.loads(response.body)
        if isinstance(found, dict):
            return found
    return {}


# -- sending --------------------------------------------------------------------------------------


class _Exchange:
    """One connection that plays a case. The code that creates an exchange closes `connection`."""

    def __init__(self, case: Case, connection: socket.socket, address: Address) -> None:
        self._case = case
        self._connection = connection
        self._address = address
        self._reader = ResponseReader(connection)
        self._probe_path = f"/probe-{secrets.token_hex(8)}"
        self._is_half_closed = False
        self._is_over = False
        self._is_head = _first_bytes(case).startswith(b"HEAD ")
        self.outcome = Outcome()

    def play(self, deadline_s: float) -> None:
        """Send everything, and read until the end of the connection or the probe's response."""
        try:
            self._send_steps()
            self._read()
        except MalformedResponseError as error:
            self._finish("malformed", str(error))
        except CutResponseError as error:
            self._finish(End.CUT.value, str(error))
        except TimeoutError:
            self._finish("silent", f"nothing happened for {deadline_s:g} s")
        except OSError as error:
            self._finish("reset", str(error))

    def _send_steps(self) -> None:
        is_first = True
        with contextlib.ExitStack() as stack:
            ping = None
            for step in self._case.sent:
                if step is Step.HALF_CLOSE:
                    self._half_close()
                elif step is Step.AWAIT_CONTINUE:
                    if not self._await_continue():
                        return
                elif isinstance(step, bytes):
                    if not is_first:
                        ping = ping or stack.enter_context(_Ping(self._address, self._case))
                        ping.send()
                    is_first = False
                    self._send(step)

    def _send(self, data: bytes) -> None:
        # The server may have answered and closed already; its response is still to be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.sendall(data)

    def _half_close(self) -> None:
        self._is_half_closed = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def _await_continue(self) -> bool:
        response = self._next()
        return response is not None and response.status == 100

    def _read(self) -> None:
        least = min(len(answer.statuses) for answer in self._case.answers)
        while not self._is_over and (self._is_half_closed or len(self.outcome.statuses) < least):
            self._next()
        if not self._is_over and not self._is_closing():
            head = f"GET {self._probe_path} HTTP/1.1\r\nHost: acme.test\r\n\r\n"
            self._send(head.encode())
        while not self._is_over:
            self._next()

    def _next(self) -> Response | None:
        response = self._reader.next(is_head=self._is_head)
        if response is None:
            is_right = self._is_half_closed or self._is_closing() or not self.outcome.finals
            self._finish(End.CLOSED.value if is_right else "dropped")
        elif _json(response).get("PATH_INFO") == self._probe_path:
            self._finish(End.OPEN.value)
        else:
            self.outcome.statuses.append(response.status)
            if not response.is_interim:
                self.outcome.finals.append(response)
        return response

    def _is_closing(self) -> bool:
        return bool(self.outcome.finals) and self.outcome.finals[-1].announces_close

    def _finish(self, end: str, detail: str = "") -> None:
        self._is_over = True
        self.outcome.end, self.outcome.detail = end, detail


class _Ping:
    """A second connection that gives the server time between two segments."""

    def __init__(self, address: Address, case: Case) -> None:
        self._connection = socket.create_connection(address, timeout=10)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = ResponseReader(self._connection)
        self._next = PROXY_LINE if case.listener == "proxy" else b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def send(self) -> None:
        self._connection.sendall(self._next + b"GET /pid HTTP/1.1\r\nHost: acme.test\r\n\r\n")
        self._next = b""
        response = self._reader.next()
        if response is None or response.status != 200:
            raise MalformedResponseError(f"the ping got {response}")


def _first_bytes(case: Case) -> bytes:
    return next((step for step in case.sent if isinstance(step, bytes)), b"")


def play(case: Case, address: Address, deadline_s: float = 10.0) -> Outcome:
    """Send one case to a server, and return what happened.

    Args:
        case: the case.
        address: the server that the case needs.
        deadline_s: seconds without an event after which the server counts as silent.
    """
    with socket.create_connection(address, timeout=deadline_s) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        exchange = _Exchange(case, connection, address)
        exchange.play(deadline_s)
        return exchange.outcome


def play_all(
    cases: Iterable[Case],
    addresses: dict[str, Address],
    *,
    at_once: int = 16,
    deadline_s: float = 10.0,
) -> dict[str, Outcome]:
    """Send cases over parallel connections, and return the outcome of each case by name.

    Args:
        cases: the cases; a case without a listener in `addresses` is left out.
        addresses: the address for each kind of listener.
        at_once: number of parallel connections.
        deadline_s: seconds without an event after which the server counts as silent.
    """
    chosen = [case for case in cases if case.listener in addresses]
    with ThreadPoolExecutor(at_once) as pool:
        outcomes = pool.map(lambda one: play(one, addresses[one.listener], deadline_s), chosen)
        return {case.name: outcome for case, outcome in zip(chosen, outcomes, strict=True)}


# -- judging --------------------------------------------------------------------------------------


def problems(case: Case, outcome: Outcome) -> list[str]:
    """Return why an outcome differs from the nearest correct answer; empty if equal."""
    return min((_differences(one, outcome) for one in case.answers), key=len)


def _differences(answer: Answer, outcome: Outcome) -> list[str]:
    found = []
    if list(answer.statuses) != outcome.statuses:
        found.append(f"statuses {outcome.statuses}, not {list(answer.statuses)}")
    ends = sorted(end.value for end in answer.ends)
    if outcome.end not in ends:
        detail = f" ({outcome.detail})" if outcome.detail else ""
        found.append(f"{outcome.end}{detail}, not {' or '.join(ends)}")
    for response in outcome.finals:
        found += [f"no {name}" for name in answer.has if name not in response.headers]
        found += [f"with {name}" for name in answer.lacks if name in response.headers]
    for wanted, seen in zip(answer.seen, outcome.seen(), strict=False):
        found += _unlike(wanted, seen)
    return found


def _unlike(wanted: Seen, seen: dict[str, Any]) -> list[str]:
    expected = {
        "REQUEST_METHOD": wanted.method,
        "PATH_INFO": wanted.path,
        "RAW_URI": wanted.raw,
        "QUERY_STRING": wanted.query,
    }
    pairs = [(key, value) for key, value in expected.items() if value is not None]
    found = [
        f"{key} is {_short(seen.get(key))}, not {_short(value)}"
        for key, value in (*pairs, *wanted.environ.items())
        if seen.get(key) != value
    ]
    if wanted.body is not None and not _is_body(wanted.body, seen):
        found.append(f"the body is {_short(seen.get('body'))} ({seen.get('body_bytes')} bytes)")
    return found


def _is_body(body: bytes, seen: dict[str, Any]) -> bool:
    if seen.get("body") is not None:
        return bool(seen["body"] == body.decode("latin-1"))
    return bool(seen.get("body_sha256") == hashlib.sha256(body).hexdigest())


def _short(value: object) -> str:
    text = re.sub(r"(.{40}).+(.{20})", r"\1…\2", repr(value))
    return "absent" if value is None else text
