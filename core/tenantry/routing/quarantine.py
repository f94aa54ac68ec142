"""Quarantine: a parked tenant gets no requests except an occasional trial request.

Each process measures the quarantine with its own monotonic clock, from the moment when the process
learns that the tenant is parked. A change of the system time therefore releases no tenant. Only one
process of a host runs a trial at a time.
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
"""Seconds until the first trial request. A client that repeats its request usually gives up within
a minute."""

MAX_QUARANTINE_S = 3600.0
"""Maximum seconds between two trial requests. Each failed trial doubles the wait, up to this
maximum."""

MAX_TRIAL_S = 30.0
"""Maximum seconds that a trial request may take. A trial that takes longer has failed, even if the
response is good."""

MIN_RETRY_AFTER_S = 1.0
"""`Retry-After` in seconds for a request that is refused while another request is the trial."""

_INCONCLUSIVE = {"401", "403", "413", "429", "503"}
"""Statuses that a middleware layer can send without calling the app. If a trial request gets one of
these statuses, the next request is another trial."""

_logger = logging.getLogger(__name__)


class Quarantine:
    """The quarantine of one parked tenant in one process. Thread-safe.

    Args:
        reason: why the tenant is parked.
        times: number of consecutive times that the tenant was parked.
        lock_file: a file that is locked while a process runs a trial.
        report: called with the result of a trial, which `report` publishes to all processes.
        clock: returns monotonic seconds.
    """

    __slots__ = ("_clock", "_due_at", "_lock_file", "_report", "_saw_trial", "reason", "times")

    def __init__(
        self,
        reason: str,
        times: int,
        lock_file: Path,
        report: Callable[[bool], object],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reason = reason
        self.times = times
        self._lock_file = lock_file
        self._report = report
        self._clock = clock
        self._saw_trial = False  # whether the lock file showed an unfinished trial
        self._due_at = clock() + quarantine_s(times)

    @property
    def retry_after_s(self) -> float:
        """Seconds until the next trial, for `Retry-After`."""
        return max(self._due_at - self._clock(), MIN_RETRY_AFTER_S)

    def begin_trial(self) -> "Trial | None":
        """Begin a trial and return it, or return None if the request must be refused."""
        if self._clock() < self._due_at:
            return None
        try:
            fd = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None  # the folder is not writable, so the trial could not report its result
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_allowed = self._mark_trial(fd)
        except OSError:
            is_allowed = False
        if not is_allowed:
            os.close(fd)
            return None
        self._due_at = self._clock() + quarantine_s(self.times)
        return Trial(fd, self._end_trial, self._clock)

    def _mark_trial(self, fd: int) -> bool:
        """Mark in the lock file that a trial begins. Return whether the trial may begin.

        If the lock file already has the mark, an earlier trial has ended its process. The master is
        about to park the tenant for longer; if it does not, the next due request is a trial.
        """
        mark = str(self.times).encode()
        if os.pread(fd, 64, 0) == mark and not self._saw_trial:
            self._saw_trial = True
            self._due_at = self._clock() + quarantine_s(self.times)
            return False
        os.ftruncate(fd, 0)
        os.pwrite(fd, mark, 0)
        return True

    def _end_trial(self, is_good: bool | None) -> None:
        if is_good is None:
            self._due_at = self._clock()
            return
        try:
            self._report(is_good)
        except (TenantryError, OSError) as error:  # the tenant stays parked until the next trial
            _logger.error("quarantine.report_failed", extra={"reason": str(error)})


class Trial:
    """One request that tests a parked tenant. The `close()` of the response body ends the trial.

    Args:
        fd: descriptor of the locked file, which the trial closes.
        note_end: called at the end with True if the trial succeeded, False if it failed, and None
            if the app was not called.
        clock: returns monotonic seconds.
    """

    def __init__(
        self, fd: int, note_end: Callable[[bool | None], None], clock: Callable[[], float]
    ) -> None:
        self._fds = [fd]  # only the first call of `_end` gets the item
        self._note_end = note_end
        self._clock = clock
        self._started_at = clock()
        self._status = ""

    def answer(
        self, app: "WSGIApplication", environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Call the app, and record the status of its response."""

        def start(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
            self._status = status[:3]
            return start_response(status, headers, exc_info)

        try:
            return on_close(app(environ, start), self._end)
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        try:
            fd = self._fds.pop()
        except IndexError:
            return
        is_good: bool | None = self._clock() - self._started_at <= MAX_TRIAL_S
        if self._status in _INCONCLUSIVE and is_good:
            is_good = None
        try:
            self._note_end(is_good)
            os.ftruncate(fd, 0)
        finally:
            os.close(fd)  # closing also unlocks the file


def quarantine_s(times: int) -> float:
    """Return the seconds until the next trial after `times` consecutive parkings."""
    return min(FIRST_WAIT_S * 2.0 ** min(max(times - 1, 0), 10), MAX_QUARANTINE_S)
