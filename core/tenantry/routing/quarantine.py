"""Quarantine: a parked tenant gets no request, but for one now and then that tries it out.

Each process counts the time on its own monotonic clock, from when it heard that the tenant is
parked: a clock that jumps lets nobody out. Of all processes of a host one tries at a time.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenantry.errors import TenantryError
from tenantry.http.response_close import on_close

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

FIRST_WAIT_S = 60.0
"""Until the first try: a client that repeats its request has given up, or found another way."""

MAX_WAIT_S = 3600.0
"""Each try that fails doubles the wait, up to this."""

PROBE_S = 30.0
"""A try that takes longer has failed, whatever it answers."""

BUSY_S = 1.0
"""What clients are told to wait while another request is the try."""

_SAYS_NOTHING = {"401", "403", "413", "429", "503"}
"""Answers that may be given before the app is called: then another request is the next try."""

_logger = logging.getLogger(__name__)


class Quarantine:
    """A tenant's time in quarantine, as one process sees it. Thread-safe.

    Args:
        reason: why the tenant is parked.
        times: how often in a row.
        lock_file: what a process that tries has locked; in the tenant's own folder.
        settle: called with whether a try went well; tells all processes.
        clock: seconds.
    """

    __slots__ = ("_clock", "_due", "_has_seen_try", "_lock_file", "_settle", "reason", "times")

    def __init__(
        self,
        reason: str,
        times: int,
        lock_file: Path,
        settle: Callable[[bool], object],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reason = reason
        self.times = times
        self._lock_file = lock_file
        self._settle = settle
        self._clock = clock
        self._has_seen_try = False
        self._due = clock() + wait_s(times)

    @property
    def left_s(self) -> float:
        """Seconds until a request may try."""
        return max(self._due - self._clock(), BUSY_S)

    def begin_try(self) -> "Try | None":
        """Return the try that this request is; None where it is refused."""
        if self._clock() < self._due:
            return None
        try:
            fd = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None  # the folder cannot be written: nobody could be told how it went
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_mine = self._mark(fd)
        except OSError:
            is_mine = False
        if not is_mine:
            os.close(fd)
            return None
        self._due = self._clock() + wait_s(self.times)
        return Try(fd, self._end_try, self._clock)

    def _mark(self, fd: int) -> bool:
        """Note in the file that this round's try begins.

        False where it has begun before and nobody has ended it: its process is dead, and the
        master is about to park the tenant for longer. If that does not come, the next one tries.
        """
        mark = str(self.times).encode()
        if os.pread(fd, 64, 0) == mark and not self._has_seen_try:
            self._has_seen_try = True
            self._due = self._clock() + wait_s(self.times)
            return False
        os.ftruncate(fd, 0)
        os.pwrite(fd, mark, 0)
        return True

    def _end_try(self, is_good: bool | None) -> None:
        if is_good is None:
            self._due = self._clock()
            return
        try:
            self._settle(is_good)
        except (TenantryError, OSError) as error:  # it stays parked, and the next try comes
            _logger.error("quarantine.not_settled", extra={"reason": str(error)})


class Try:
    """The one request that tries a parked tenant out; it ends with its body, or its process."""

    def __init__(
        self, fd: int, note: Callable[[bool | None], None], clock: Callable[[], float]
    ) -> None:
        self._fd = [fd]
        self._note = note
        self._clock = clock
        self._begun = clock()
        self._status = ""

    def answer(
        self, app: "WSGIApplication", environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer with the app; the `close()` of the body ends the try."""

        def start(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
            self._status = status[:3]
            return start_response(status, headers, *([exc_info] if exc_info else []))

        try:
            return on_close(app(environ, start), self.end)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Note how it went: well, unless it took too long. Idempotent."""
        try:
            fd = self._fd.pop()  # atomic
        except IndexError:
            return
        is_good: bool | None = self._clock() - self._begun <= PROBE_S
        if self._status in _SAYS_NOTHING and is_good:
            is_good = None
        try:
            self._note(is_good)
            os.ftruncate(fd, 0)
        finally:
            os.close(fd)  # which unlocks it


def wait_s(times: int) -> float:
    """Return how long a tenant stays that is parked for the `times`-th time in a row."""
    return min(FIRST_WAIT_S * 2.0 ** min(max(times - 1, 0), 10), MAX_WAIT_S)
