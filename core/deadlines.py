"""Deadlines: which requests run in this process, and the watchdog that tells of the overdue ones.

A request over its deadline is reported once, with the live stack of its own thread, and counts as
stuck until it ends. Knows threads and WSGI; says where code stands, never what its variables hold.
"""

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from core.board import Row, Tag, tag
from core.problem import ENDPOINT, REQUEST_ID

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

TICK_S = 0.25
"""Between two looks at what runs: a report comes that much late at most. One takes some 10 µs."""

STACK_FRAMES = 30
"""As many are told, the innermost first; those of Flask and the layers around it are some 15."""

_AROUND = frozenset({__name__, "core.containment"})
"""Modules whose frames are the server's side of a request."""

_logger = logging.getLogger(__name__)


class Running:
    """A request from the app's call to its body's `close()`; of the thread that began it."""

    __slots__ = (
        "begun",
        "cell",
        "deadline_s",
        "environ",
        "is_reported",
        "lock",
        "tenant",
        "thread",
    )

    def __init__(
        self, tenant: str, deadline_s: float, environ: "WSGIEnvironment", begun: float
    ) -> None:
        self.tenant = tenant
        self.deadline_s = deadline_s
        self.environ = environ
        self.begun = begun
        self.thread = threading.get_ident()
        self.is_reported = False
        # Held while somebody looks at the thread: the request cannot end, and the thread begin
        # another one, before the look is over.
        self.lock = threading.Lock()


class Requests:
    """What runs in one process. Thread-safe; `watch` is for one thread, which the host starts."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
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

    def watch(self, stopping: threading.Event) -> None:
        """Look at what runs until `stopping` is set; a look that fails is logged."""
        while not stopping.wait(TICK_S):
            try:
                self.check()
            except Exception:
                _logger.exception("watchdog.failed")

    def check(self) -> None:
        """Report what is overdue and has not been reported."""
        now = self._clock()
        for running in list(self._running):
            if not running.is_reported and now - running.begun >= running.deadline_s:
                self._report(running, now - running.begun)

    def _report(self, running: Running, age_s: float) -> None:
        with running.lock:
            if running not in self._running:
                return
            running.is_reported = True
            stack = _stack_of(running.thread)
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
        row: this process's place on the board of what is in flight, if it has one.
    """

    def __init__(
        self,
        app: "WSGIApplication",
        requests: Requests,
        tenant: str,
        deadline_s: float,
        row: Row | None = None,
    ) -> None:
        self._app = app
        self._requests = requests
        self._tenant = tenant
        self._deadline_s = deadline_s
        self._row = row
        self._tag: Tag = tag(tenant)

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Call the app; the response's `close()` ends the request."""
        cell = None if self._row is None else self._row.enter(self._tag)
        running = self._requests.begin(self._tenant, self._deadline_s, environ)
        try:
            return _WatchedBody(self._app(environ, start_response), self, running, cell)
        except BaseException:
            self.end(running, cell)
            raise

    def end(self, running: Running, cell: int | None) -> None:
        """Note that a request has ended; once."""
        self._requests.end(running)
        if cell is not None and self._row is not None:
            self._row.leave(cell)


class _WatchedBody:
    """A response's body that ends its request when it is closed, however often that is."""

    __slots__ = ("_body", "_cell", "_layer", "_running")

    def __init__(
        self, body: Iterable[bytes], layer: Deadlines, running: Running, cell: int | None
    ) -> None:
        self._body = body
        self._layer = layer
        self._cell = cell
        self._running = [running]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        try:
            running = self._running.pop()  # atomic: of two that close it, one gets it
        except IndexError:
            return
        try:
            getattr(self._body, "close", lambda: None)()
        finally:
            self._layer.end(running, self._cell)


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
