"""Interrupts: an exception that ends a request from outside, raised in the request's own thread.

Python raises it between two steps of the thread's code: what waits in C (`time.sleep`, a driver)
first returns. It must never be left to the thread's next request, so each request has a window in
which it may be interrupted, and who closes that takes a pending exception back.
"""

import ctypes
import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_WAITING = frozenset({"concurrent.futures", "queue", "threading"})
_UNSAFE = _WAITING | frozenset({
    "tenantry.database.circuit_breaker",
    "tenantry.database.budget",
    "tenantry.routing.worker_pool",
    "tenantry.database.session",
    "tenantry.endpoints.images.room",
    "tenantry.migrations.guard",
    "tenantry.database.guards",
    "tenantry.middleware.issuer",
    "tenantry.observability.usage_counters",
    "tenantry.database.permits",
    "tenantry.database.pool",
    "tenantry.database.checkouts",
    "importlib._bootstrap",
    "importlib._bootstrap_external",
    "logging",
    "sqlalchemy.pool",
    "sqlalchemy.util",
    "structlog",
})  # fmt: skip
"""Modules that would leave a lock held or a count wrong. Python's own: 3.11's `logging` takes a
lock one step before the `try` that gives it back, and so does whoever enters a `Condition`."""

_EDGE = "tenantry.middleware.deadlines"
"""Where an interrupt ends: what is farther out, pools of threads for example, never sees it."""

_HOLD_S = 0.1
"""The switch interval while a thread must not run between the look at it and the interrupt: more
than both take. The worker's own is 0.5 ms, in which the system may well run something else."""

_turn = threading.Lock()  # the interval is the whole process's: one at a time raises it

_set_exception = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)


class DeadlineExceededError(BaseException):
    """Ends a request that runs too long. No `Exception`: an endpoint must not go on with it."""


_ERROR_ADDRESS = id(DeadlineExceededError)  # in CPython; the class lives as long as the process


def is_deadline(error: BaseException | None) -> bool:
    """Whether an exception is the end of a request, or was raised while that went through."""
    while error is not None:
        if isinstance(error, DeadlineExceededError):
            return True
        error = error.__context__
    return False


class Interruption:
    """The window of one request. `open`, `shut` and `start` are for its thread, `act` for another.

    Args:
        environ: the request's.
        start_response: the server's.
        find_uses: returns what its thread waits for in a database, each to be called to cancel it.
        lock: held while somebody looks at the thread, and when the window changes.
    """

    __slots__ = (
        "_environ", "_find_uses", "_is_head_out", "_is_open", "_is_sent", "_lock",
        "_start_response", "_thread", "is_answered",
    )  # fmt: skip

    def __init__(
        self,
        environ: "WSGIEnvironment",
        start_response: "StartResponse",
        find_uses: Callable[[int], Iterable[Callable[[], None]]],
        lock: threading.Lock,
    ) -> None:
        self._environ = environ
        self._start_response = start_response
        self._find_uses = find_uses
        self._lock = lock
        self._thread = threading.get_ident()
        self._is_open = self._is_sent = self._is_head_out = False
        self.is_answered = False
        """Whether the client has its answer already: whatever the app says goes nowhere."""

    def open(self) -> None:
        """From here on the thread may be interrupted, once, until the head is out."""
        with self._lock:
            self._is_open = not self._is_head_out

    def shut(self) -> None:
        """Allow no interrupt from here on, and take back one that has not come yet. Idempotent.

        One that comes while this runs is raised in it: the caller calls again, and then none can.
        """
        with self._lock:
            self._is_open = False
            if self._is_sent:
                _set_exception(self._thread, None)

    def start(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        """Be `start_response`: a response that has begun is not interrupted any more.

        Raises:
            ConnectionResetError: the client has its answer.
        """
        self.shut()
        with self._lock:
            if self.is_answered:
                raise ConnectionResetError(errno.ECONNRESET, "the host has answered the request")
            self._is_head_out = True
        if exc_info is None:
            return self._start_response(status, headers)
        return self._start_response(status, headers, exc_info)

    @property
    def is_head_out(self) -> bool:
        """Whether the response has begun."""
        return self._is_head_out

    def act(self, *, answer: bytes | None = None) -> bool:
        """Interrupt the thread if that can be done now; whether there is no more to do.

        The caller holds the lock, and the request has not ended.

        Args:
            answer: what to send to the client meanwhile, where the connection is known.
        """
        if self._is_head_out:
            return True
        if not self._is_sent and self._is_open and self._interrupt():
            uses = list(self._find_uses(self._thread))
            if uses:  # cancelling asks the server: not on this thread
                threading.Thread(target=_cancel, args=(uses,), daemon=True).start()
        if answer is not None and not self.is_answered:
            self.is_answered = _send(self._environ, answer)
        return self._is_sent and (self.is_answered or answer is not None)

    def _interrupt(self) -> bool:
        with _undisturbed():
            self._is_sent = _is_safe(self._thread) and (
                _set_exception(self._thread, _ERROR_ADDRESS) == 1
            )
        return self._is_sent


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no other thread run a step of Python until the end of the block, which takes some 50 µs.

    Threads that wait for the interpreter lock ask for it when the interval has passed with which
    they began to wait: so they get it before, and begin anew.
    """
    with _turn:
        time.sleep(1e-6)
        before = sys.getswitchinterval()
        sys.setswitchinterval(_HOLD_S)
        try:
            yield
        finally:
            sys.setswitchinterval(before)


def _cancel(uses: Iterable[Callable[[], None]]) -> None:
    for cancel in uses:
        cancel()


def _is_safe(thread: int) -> bool:
    """Whether no frame of the thread is in code that an exception from outside would harm."""
    frame: FrameType | None = sys._current_frames().get(thread)  # noqa: SLF001 - no other way
    if frame is not None and _is_in_wait(frame):
        while frame is not None and _is_of(frame, _WAITING):
            frame = frame.f_back
    while frame is not None and frame.f_globals.get("__name__") != _EDGE:
        if _is_of(frame, _UNSAFE):
            return False
        frame = frame.f_back
    return True


def _is_of(frame: FrameType, modules: frozenset[str]) -> bool:
    name = str(frame.f_globals.get("__name__"))
    return name in modules or name.rpartition(".")[0] in modules


def _is_in_wait(frame: FrameType) -> bool:
    """Whether it stands in the part of `Condition.wait` that bears an exception.

    All that waits without an end, for an event or what a queue brings, stands there.
    """
    is_wait = frame.f_code.co_name == "wait" and frame.f_globals.get("__name__") == "threading"
    return is_wait and "gotit" in frame.f_locals  # which is set when the lock has been let go


def _send(environ: "WSGIEnvironment", answer: bytes) -> bool:
    """Send an answer past the server and end the connection; False where that cannot be done.

    The server gets an error when it writes to it later, and drops it.
    """
    connection: Any = environ.get("gunicorn.socket")
    connection = getattr(connection, "raw", connection)
    is_plain = type(connection) is socket.socket  # no TLS
    if not is_plain or not str(environ.get("SERVER_PROTOCOL")).startswith("HTTP/1"):
        return False
    try:
        os.write(connection.fileno(), answer)  # which never waits
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the client has gone, or does not read
    return True
