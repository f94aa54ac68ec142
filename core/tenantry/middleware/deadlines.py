"""Deadlines: a watchdog that reports overdue requests.

The watchdog reports each request over its deadline once, with the stack of the request's thread. A
reported request counts as stuck until the end of the request. With `DEADLINE_ACTION = "answer"`,
the client of an overdue request gets 504 if the host has sent nothing yet; the request keeps
running. A report contains positions in the code, but never the values of variables.
"""

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from types import FrameType

from tenantry.http.environ import REQUEST_ID, matched_endpoint
from tenantry.http.problem import TIMED_OUT
from tenantry.http.request_record import RequestRecord
from tenantry.middleware.in_flight import RequestsInFlight

TICK_S = 0.25
"""Seconds between two checks of the watchdog, and the longest delay of a report. A check takes
about 10 µs."""

STACK_FRAMES = 30
"""Maximum number of stack frames in a report, innermost first. Flask and the layers around Flask
account for about 15 frames."""

_OUTERMOST = frozenset({"tenantry.middleware.accounting", "tenantry.middleware.containment"})
"""Modules at which a reported stack ends, because the outer frames belong to the server."""

_logger = logging.getLogger(__name__)


class Watchdog:
    """Reports the requests of one process that are overdue. One thread runs `watch`.

    Args:
        in_flight: the requests in flight.
        clock_ns: nanoseconds of the monotonic clock.
        note_overdue: called with the tenant of each reported request.
    """

    def __init__(
        self,
        in_flight: RequestsInFlight,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        note_overdue: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._in_flight = in_flight
        self._clock_ns = clock_ns
        self._note_overdue = note_overdue

    def stuck(self) -> Counter[str]:
        """Return, per tenant, the number of reported requests that have not ended."""
        return Counter(one.tenant for one in self._in_flight.records() if one.is_reported)

    def held_threads(self) -> int:
        """Return the number of threads that stuck requests hold.

        A thread that waits for its client does not count, because a slow client must not look like
        an app that hangs. A stream that sends bytes within each deadline does not count as stuck.
        """
        now_ns = self._clock_ns()
        return sum(
            now_ns - one.progress_ns >= one.limits.deadline_s * 1e9
            and not (one.connection is not None and one.connection.is_waiting)
            for one in self._in_flight.records()
            if one.is_reported
        )

    def watch(self, stopping: threading.Event) -> None:
        """Check all requests every `TICK_S`, until `stopping` is set."""
        while not stopping.wait(TICK_S):
            try:
                self._in_flight.note_running()
                self.check()
            except Exception:
                _logger.exception("watchdog.failed")

    def check(self) -> None:
        """Report and answer the requests that are newly overdue."""
        now_ns = self._clock_ns()
        for record in self._in_flight.records():
            age_s = (now_ns - record.begun_ns) / 1e9
            if not record.begun_ns or age_s < record.limits.deadline_s:
                continue
            if record.connection is not None and record.connection.is_hijacked:
                continue  # a WebSocket stays open for hours
            if not record.is_reported:
                record.progress_ns = record.begun_ns
                self._report(record, age_s)
            connection = record.connection
            sent_bytes = 0 if connection is None else connection.sent_bytes
            if sent_bytes != record.sent_bytes:
                record.sent_bytes, record.progress_ns = sent_bytes, now_ns

    def _report(self, record: RequestRecord, age_s: float) -> None:
        environ, stack = record.environ, _stack_of(record.thread)
        if environ is None or not record.is_in_flight:
            return  # the stack may belong to the thread's next request
        record.is_reported = True
        is_answered = record.limits.is_answering and _answer(record)
        self._note_overdue(record.tenant)
        facts = {
            "tenant": record.tenant,
            "request_id": environ.get(REQUEST_ID, ""),
            "endpoint": matched_endpoint(environ),
            "method": environ.get("REQUEST_METHOD"),
            "path": record.path,
            "age_s": round(age_s, 2),
            "deadline_s": record.limits.deadline_s,
            "answered": is_answered,
            "stack": stack,
        }
        _logger.warning("request.overdue", extra=facts)


def _answer(record: RequestRecord) -> bool:
    """Send a 504 to the client and end the connection, unless the app has begun to answer.

    `_answer` never blocks. When the server writes to the connection later, the server gets an error
    and closes the connection.
    """
    connection, environ = record.connection, record.environ
    if connection is None or environ is None or connection.is_hijacked:
        return False
    if not record.claim_answer("watchdog"):
        return False
    status, headers, body = TIMED_OUT.render(environ)
    headers += [
        ("Date", formatdate(usegmt=True)),
        ("Connection", "close"),
        ("X-Request-ID", environ.get(REQUEST_ID, "")),
    ]
    head = "".join(f"{name}: {value}\r\n" for name, value in headers)
    shown = b"" if environ.get("REQUEST_METHOD") == "HEAD" else body
    record.status, record.bytes_out = TIMED_OUT.status.value, len(shown)
    connection.send_last(f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1") + shown)
    return True


def _stack_of(thread: int) -> str:
    """Return a thread's stack on one line, from the innermost frame to the host's layers.

    The stack contains only files, line numbers and functions, because a line of source code can
    contain a secret.
    """
    frame: FrameType | None = sys._current_frames().get(thread)  # noqa: SLF001 - documented
    places: list[str] = []
    while frame is not None and len(places) < STACK_FRAMES:
        if frame.f_globals.get("__name__") in _OUTERMOST and places:
            break
        code = frame.f_code
        places.append(f"{code.co_filename}:{frame.f_lineno} in {code.co_name}")
        frame = frame.f_back
    return " < ".join(places)
