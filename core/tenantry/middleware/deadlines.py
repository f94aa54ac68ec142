"""Deadlines: which requests run in this process, and a watchdog that looks after the overdue ones.

A request over its deadline is reported once, with the live stack of its own thread, and counts as
stuck until it ends. A tenant may have it interrupted, too: the client gets 504, from the thread or
past it. Knows threads and WSGI; says where code stands, never what its variables hold.
"""

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from tenantry.http.environ import ENDPOINT, REQUEST_ID, SENT_STATUS
from tenantry.http.problem import TIMED_OUT
from tenantry.http.response_close import on_close
from tenantry.middleware.interrupts import DeadlineExceededError, Interruption

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

TICK_S = 0.25
"""Between two looks at what runs: a report comes that much late at most. One takes some 10 µs."""

ANSWER_AFTER_S = 0.5
"""What an interrupted thread gets to answer by itself; then its client is answered past it."""

STACK_FRAMES = 30
"""As many are told, the innermost first; those of Flask and the layers around it are some 15."""

_AROUND = frozenset({__name__, "tenantry.middleware.containment"})
"""Modules whose frames are the server's side of a request."""

_SOCKETS = frozenset({"tenantry.server.client_socket", "socket", "ssl"})
"""Modules of a connection: who calls them tells whose it is, the client's or one of the app."""

_logger = logging.getLogger(__name__)


class Running:
    """A request from the app's call to its body's `close()`; of the thread that began it."""

    __slots__ = (
        "begun", "deadline_s", "environ", "interruption", "is_reported", "is_settled",
        "lock", "moved_at", "sent_bytes", "tenant", "thread",
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
        self.moved_at = begun
        """When it was last seen that more of its answer had gone out; looked at once overdue."""
        self.sent_bytes = 0
        """How much had then."""
        self.interruption: Interruption | None = None
        """Set where it may be interrupted."""
        self.is_settled = False
        """Whether there is nothing more to be done to end it."""
        # Held while somebody looks at the thread: the request cannot end, and the thread begin
        # another one, before the look is over.
        self.lock = threading.Lock()


class RunningRequests:
    """What runs in one process. Thread-safe; `watch` is for one thread, which the host starts."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        note_overdue: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._note_overdue = note_overdue  # told of the tenant of each request that is reported
        self._running: dict[Running, None] = {}  # its own methods are atomic

    def begin(self, tenant: str, deadline_s: float, environ: "WSGIEnvironment") -> Running:
        """Note that a request has begun on this thread."""
        running = Running(tenant, deadline_s, environ, self._clock())
        self._running[running] = None
        return running

    def end(self, running: Running) -> None:
        """Note that it has ended. Idempotent."""
        with running.lock:
            self._running.pop(running, None)

    def stuck(self) -> Counter[str]:
        """Return how many requests of each tenant have been reported and have not ended."""
        return Counter(one.tenant for one in list(self._running) if one.is_reported)

    def held_threads(self) -> int:
        """Return how many threads stuck requests hold, but for those that wait for their clients.

        A crowd of clients that send or read slowly must not look like a tenant that hangs; nor
        must a stream of which another part goes out before its deadline has passed once more.
        """
        frames = sys._current_frames()  # noqa: SLF001 - no other way
        now = self._clock()
        stuck = [one for one in list(self._running) if one.is_reported]
        still = [one for one in stuck if now - one.moved_at >= one.deadline_s]
        return sum(not _waits_for_client(frames.get(one.thread)) for one in still)

    def watch(
        self, stopping: threading.Event, note_running: Callable[[], None] = lambda: None
    ) -> None:
        """Look at what runs until `stopping` is set, and call `note_running` as often.

        A look that fails is logged.
        """
        while not stopping.wait(TICK_S):
            try:
                note_running()
                self.check()
            except Exception:
                _logger.exception("watchdog.failed")

    def check(self) -> None:
        """Report what is overdue and has not been reported; interrupt what may be."""
        now = self._clock()
        for running in list(self._running):
            late_s = now - running.begun - running.deadline_s
            if late_s < 0:
                continue
            if not running.is_reported:
                self._report(running, now - running.begun)
            sent_bytes = getattr(running.environ.get("gunicorn.socket"), "sent_bytes", 0)
            if sent_bytes != running.sent_bytes:
                running.sent_bytes, running.moved_at = sent_bytes, now
            if running.interruption is not None and not running.is_settled:
                self._interrupt(running, running.interruption, late_s)

    def _interrupt(self, running: Running, interruption: Interruption, late_s: float) -> None:
        answer = _http(running.environ) if late_s >= ANSWER_AFTER_S else None
        with running.lock:
            if running in self._running:
                running.is_settled = interruption.act(answer=answer)
                if interruption.is_answered:
                    running.environ[SENT_STATUS] = str(TIMED_OUT.status.value)

    def _report(self, running: Running, age_s: float) -> None:
        with running.lock:
            if running not in self._running:
                return
            running.is_reported = True
            stack = _stack_of(running.thread)
        self._note_overdue(running.tenant)
        environ = running.environ
        facts = {
            "tenant": running.tenant,
            "request_id": environ.get(REQUEST_ID, ""),
            "endpoint": environ.get(ENDPOINT, ""),
            "method": environ.get("REQUEST_METHOD"),
            "path": environ.get("PATH_INFO"),
            "age_s": round(age_s, 2),
            "deadline_s": running.deadline_s,
            "stack": stack,
        }
        _logger.warning("request.overdue", extra=facts)


class Deadlines:
    """WSGI middleware: notes each request of one tenant while it runs. Safe in any thread.

    Args:
        app: what answers.
        requests: where it notes them.
        tenant: its name.
        deadline_s: seconds after which a request of it is overdue.
        find_uses: returns what cancels each query of a thread; None where an overdue request is
            only reported.
    """

    __slots__ = ("_app", "_deadline_s", "_find_uses", "_requests", "_tenant")

    def __init__(
        self,
        app: "WSGIApplication",
        requests: RunningRequests,
        tenant: str,
        deadline_s: float,
        *,
        find_uses: Callable[[int], Iterable[Callable[[], None]]] | None = None,
    ) -> None:
        self._app = app
        self._requests = requests
        self._tenant = tenant
        self._deadline_s = deadline_s
        self._find_uses = find_uses

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Call the app; the response's `close()` ends the request."""
        running = self._requests.begin(self._tenant, self._deadline_s, environ)
        try:
            body = (
                self._app(environ, start_response)
                if self._find_uses is None
                else self._call(running, start_response, self._find_uses)
            )
            return on_close(body, partial(self._requests.end, running))
        except BaseException:
            self._requests.end(running)
            raise

    def _call(
        self,
        running: Running,
        start_response: "StartResponse",
        find_uses: Callable[[int], Iterable[Callable[[], None]]],
    ) -> "_InterruptibleBody":
        """Call the app; an interrupt that comes outside of it is answered here."""
        environ = running.environ
        window = Interruption(environ, start_response, find_uses, running.lock)
        running.interruption = window
        try:
            window.open()
            try:
                return _InterruptibleBody(self._app(environ, window.start), environ, window)
            finally:
                window.shut()
        except DeadlineExceededError:
            window.shut()
            return _InterruptibleBody(_TimedOut(environ, window), environ, window)


class _TimedOut:
    """The answer to a request that was interrupted outside of its app; begun when it is asked."""

    def __init__(self, environ: "WSGIEnvironment", window: Interruption) -> None:
        self._environ = environ
        self._window = window

    def __iter__(self) -> Iterator[bytes]:
        yield from TIMED_OUT(self._environ, self._window.start)


class _InterruptibleBody:
    """A body that may be interrupted while its first part is made: then the head goes out."""

    __slots__ = ("_body", "_chunks", "_environ", "_window")

    def __init__(
        self, body: Iterable[bytes], environ: "WSGIEnvironment", window: Interruption
    ) -> None:
        self._body = body
        self._environ = environ
        self._window = window
        self._chunks = iter(body)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        window = self._window
        if window.is_head_out:
            return next(self._chunks)
        try:
            window.open()
            try:
                return next(self._chunks)
            finally:
                window.shut()
        except DeadlineExceededError:
            window.shut()
            self._chunks = iter(_TimedOut(self._environ, window))
            return next(self._chunks)

    def close(self) -> None:
        getattr(self._body, "close", lambda: None)()


def _http(environ: "WSGIEnvironment") -> bytes:
    """Return the answer that is sent past the server."""
    body = TIMED_OUT.body(environ)
    status, headers = TIMED_OUT.head(len(body))
    headers += [("Connection", "close"), ("X-Request-ID", environ.get(REQUEST_ID, ""))]
    head = "".join(f"{name}: {value}\r\n" for name, value in headers)
    shown = b"" if environ.get("REQUEST_METHOD") == "HEAD" else body
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1") + shown


def _waits_for_client(frame: FrameType | None) -> bool:
    """Whether a thread stands in the server's own code: it reads a body that does not come."""
    while frame is not None and frame.f_globals.get("__name__") in _SOCKETS:
        frame = frame.f_back
    return frame is None or str(frame.f_globals.get("__name__")).startswith("gunicorn.")


def _stack_of(thread: int) -> str:
    """Return where a thread stands, the innermost frame first, up to the layers around the app.

    On one line, and of files and functions only: a line of source may hold a secret.
    """
    frame: FrameType | None = sys._current_frames().get(thread)  # noqa: SLF001 - no other way
    places: list[str] = []
    while frame is not None and len(places) < STACK_FRAMES:
        if frame.f_globals.get("__name__") in _AROUND and places:
            break
        code = frame.f_code
        places.append(f"{code.co_filename}:{frame.f_lineno} in {code.co_name}")
        frame = frame.f_back
    return " < ".join(places)
