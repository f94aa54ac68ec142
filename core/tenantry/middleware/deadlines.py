"""Deadlines: the running requests of a process, and a watchdog that reports overdue requests.

The watchdog reports each request over its deadline once, with the stack of the request's thread. A
reported request counts as stuck until the end of the request. With `DEADLINE_ACTION = "answer"`,
the client of an overdue request gets 504 if the host has sent nothing yet; the request keeps
running. A report has the position of the code, never the values of variables.
"""

import errno
import logging
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from tenantry.http.environ import REQUEST_ID, SENT_STATUS, matched_endpoint
from tenantry.http.problem import TIMED_OUT
from tenantry.http.response_close import on_close

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

TICK_S = 0.25
"""Seconds between two checks of the watchdog, and the longest delay of a report. A check takes
about 10 µs."""

STACK_FRAMES = 30
"""Maximum number of stack frames in a report, innermost first. Flask and the layers around Flask
account for about 15 frames."""

_OUTERMOST = frozenset({__name__, "tenantry.middleware.containment"})
"""Modules at which a reported stack ends, because the outer frames belong to the server."""

_SOCKETS = frozenset({"tenantry.server.client_socket", "socket", "ssl"})
"""Modules that read and write a socket. The caller of the module determines whether a socket
belongs to the client."""

_logger = logging.getLogger(__name__)


class RunningRequest:
    """One request, from the call of the app to the `close()` of the response body."""

    __slots__ = (
        "begun", "deadline_s", "environ", "has_started", "is_answered", "is_answering",
        "is_reported", "lock", "progress_at", "sent_bytes", "tenant", "thread",
    )  # fmt: skip

    def __init__(
        self, tenant: str, deadline_s: float, environ: "WSGIEnvironment", begun: float
    ) -> None:
        self.tenant = tenant
        self.deadline_s = deadline_s
        self.environ = environ
        self.begun = begun
        self.thread = threading.get_ident()
        self.is_reported = False
        self.is_answering = False
        """Whether the client gets 504 once the request is overdue."""
        self.progress_at = begun
        """When the watchdog last saw the response grow after the deadline, on the monotonic
        clock."""
        self.sent_bytes = 0
        """Number of response bytes sent at `progress_at`."""
        # The lock keeps the request from ending while the watchdog inspects the thread, and decides
        # whether the app (`has_started`) or the watchdog (`is_answered`) answers.
        self.lock = threading.Lock()
        self.has_started = False
        self.is_answered = False

    def start_response(
        self,
        start_response: "StartResponse",
        status: str,
        headers: list[tuple[str, str]],
        exc_info: Any = None,
    ) -> Callable[[bytes], object]:
        """Pass the app's response head to the server, unless the watchdog has answered.

        Raises:
            ConnectionResetError: the client already has a 504.
        """
        with self.lock:
            if self.is_answered:
                raise ConnectionResetError(errno.ECONNRESET, "the deadline was answered with 504")
            self.has_started = True
        if exc_info is None:
            return start_response(status, headers)
        return start_response(status, headers, exc_info)


class RunningRequests:
    """The running requests of one process. Thread-safe; one thread runs `watch`."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        note_overdue: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._note_overdue = note_overdue  # gets the tenant of each reported request
        self._running: dict[RunningRequest, None] = {}  # single dict operations are atomic

    def begin(self, tenant: str, deadline_s: float, environ: "WSGIEnvironment") -> RunningRequest:
        """Record that a request has begun on the calling thread."""
        request = RunningRequest(tenant, deadline_s, environ, self._clock())
        self._running[request] = None
        return request

    def end(self, request: RunningRequest) -> None:
        """Record that a request has ended. Idempotent."""
        with request.lock:
            self._running.pop(request, None)

    def stuck(self) -> Counter[str]:
        """Return, per tenant, the number of reported requests that have not ended."""
        return Counter(request.tenant for request in list(self._running) if request.is_reported)

    def held_threads(self) -> int:
        """Return the number of threads that stuck requests hold.

        A thread that waits for its client does not count, because a slow client must not look like
        an app that hangs. A stream that sends bytes within each deadline does not count either.
        """
        frames = sys._current_frames()  # noqa: SLF001 - documented; the only way to read the stack of another thread
        now = self._clock()
        stuck = [request for request in list(self._running) if request.is_reported]
        silent = [one for one in stuck if now - one.progress_at >= one.deadline_s]
        return sum(not _waits_for_client(frames.get(one.thread)) for one in silent)

    def watch(
        self, stopping: threading.Event, note_running: Callable[[], None] = lambda: None
    ) -> None:
        """Call `note_running` and check all requests every `TICK_S`, until `stopping` is set."""
        while not stopping.wait(TICK_S):
            try:
                note_running()
                self.check()
            except Exception:
                _logger.exception("watchdog.failed")

    def check(self) -> None:
        """Report and answer the requests that are newly overdue."""
        now = self._clock()
        for request in list(self._running):
            age_s = now - request.begun
            if age_s < request.deadline_s:
                continue
            if not request.is_reported:
                self._report(request, age_s)
            sent_bytes = getattr(request.environ.get("gunicorn.socket"), "sent_bytes", 0)
            if sent_bytes != request.sent_bytes:
                request.sent_bytes, request.progress_at = sent_bytes, now

    def _report(self, request: RunningRequest, age_s: float) -> None:
        with request.lock:
            if request not in self._running:
                return
            request.is_reported = True
            stack = _stack_of(request.thread)
            if request.is_answering and not request.has_started:
                request.is_answered = _send_timeout(request.environ)
        self._note_overdue(request.tenant)
        environ = request.environ
        if request.is_answered:
            environ[SENT_STATUS] = str(TIMED_OUT.status.value)
        facts = {
            "tenant": request.tenant,
            "request_id": environ.get(REQUEST_ID, ""),
            "endpoint": matched_endpoint(environ),
            "method": environ.get("REQUEST_METHOD"),
            "path": environ.get("PATH_INFO"),
            "age_s": round(age_s, 2),
            "deadline_s": request.deadline_s,
            "answered": request.is_answered,
            "stack": stack,
        }
        _logger.warning("request.overdue", extra=facts)


class Deadlines:
    """WSGI middleware: records the requests of one tenant while they run. Thread-safe.

    Args:
        app: the wrapped application.
        requests: the running requests of this process.
        tenant: the tenant's name.
        deadline_s: seconds after which a request is overdue.
        is_answering: whether an overdue request gets 504 if nothing has been sent. Only Tenantry's
            gunicorn worker can send the 504; under another server, the watchdog only reports the
            request.
    """

    __slots__ = ("_app", "_deadline_s", "_is_answering", "_requests", "_tenant")

    def __init__(
        self,
        app: "WSGIApplication",
        requests: RunningRequests,
        tenant: str,
        deadline_s: float,
        *,
        is_answering: bool = False,
    ) -> None:
        self._app = app
        self._requests = requests
        self._tenant = tenant
        self._deadline_s = deadline_s
        self._is_answering = is_answering

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Record the request and call the app; the `close()` of the body ends the record."""
        request = self._requests.begin(self._tenant, self._deadline_s, environ)
        if self._is_answering:
            request.is_answering = True
            start_response = partial(request.start_response, start_response)
        try:
            return on_close(
                self._app(environ, start_response), partial(self._requests.end, request)
            )
        except BaseException:
            self._requests.end(request)
            raise


def _send_timeout(environ: "WSGIEnvironment") -> bool:
    """Send a 504 to the client and end the connection; False without a plain HTTP/1 connection.

    `_send_timeout` never blocks. When the server writes to the connection later, the server gets an
    error and closes the connection.
    """
    connection: Any = environ.get("gunicorn.socket")
    connection = getattr(connection, "raw", connection)
    is_plain = type(connection) is socket.socket  # not TLS
    if not is_plain or not str(environ.get("SERVER_PROTOCOL")).startswith("HTTP/1"):
        return False
    try:
        os.write(connection.fileno(), _timeout_message(environ))
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the client has left or does not read
    return True


def _timeout_message(environ: "WSGIEnvironment") -> bytes:
    body = TIMED_OUT.body(environ)
    status, headers = TIMED_OUT.head(len(body))
    headers += [("Connection", "close"), ("X-Request-ID", environ.get(REQUEST_ID, ""))]
    head = "".join(f"{name}: {value}\r\n" for name, value in headers)
    shown = b"" if environ.get("REQUEST_METHOD") == "HEAD" else body
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1") + shown


def _waits_for_client(frame: FrameType | None) -> bool:
    """Whether a thread is reading from or writing to its client's socket."""
    while frame is not None and frame.f_globals.get("__name__") in _SOCKETS:
        frame = frame.f_back
    return frame is None or str(frame.f_globals.get("__name__")).startswith("gunicorn.")


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
