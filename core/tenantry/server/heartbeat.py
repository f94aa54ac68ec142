"""A worker's heartbeat as the master hears it, and who is to blame when it stands still.

A thread that holds the interpreter lock stops the main loop's heart, and all other threads too:
then it alone uses the processor, which the system tells from outside.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gunicorn.workers.workertmp import WorkerTmp

from tenantry.observability.scoreboard import InFlight, Row

TOUCH_S = 0.25
"""Between two touches of the file at least: the main loop asks for two with each request, and each
is a word with the system while a thread that has been given a request waits for the interpreter."""

SILENT_S = 1.5
"""A heart that is well beats every 1.25 s at least: `TOUCH_S`, and a second in which the main loop
waits for events. From here on the master looks who works."""

KNOWN_PATIENCE_S = 3.0
"""How long a tenant that has ended a worker lately may hold the lock; others gunicorn's timeout."""

_CLEAR_TICKS = 5
"""0.05 s of processor time between two looks, about a second apart: less says nothing."""

_CLEAR_LEAD = 2
"""Who holds the lock works at least so many times as much as the next; two that take turns do
not, and with turns the heart beats."""

_REQUEST = "a request of it"

_USER, _SYSTEM = 11, 12
"""Places of the times in `/proc/<pid>/task/<tid>/stat`, from the state on (proc(5): 14 and 15)."""


class Heartbeat(WorkerTmp):  # type: ignore[misc]
    """The file that a worker touches; the master asks for it every second.

    Args:
        cfg: gunicorn's configuration.
        worker: whose it is; has `pid` once it is forked.
        row: its place on the board, if it has one.
        is_known: whether a tenant has ended a worker lately.
    """

    def __init__(
        self, cfg: Any, worker: Any, row: Row | None, is_known: Callable[[str], bool]
    ) -> None:
        super().__init__(cfg)
        self._worker = worker
        self._row = row
        self._is_known = is_known
        self._timeout_s: float = cfg.timeout
        self._touch_at = 0.0  # on the monotonic clock
        self._ticks: dict[int, int] = {}
        self.silent_s = 0.0
        """How long the heart had stood still when the master looked last."""
        self.culprit: InFlight | None = None
        """The request whose thread alone works while the heart stands still."""

    def notify(self) -> None:
        """Touch the file, in the worker; a few times a second however often it is called."""
        now = time.monotonic()
        if now >= self._touch_at:
            self._touch_at = now + TOUCH_S
            super().notify()

    def last_update(self) -> float:
        """Return when it was touched last, on the monotonic clock; look at a silent worker."""
        touched: float = super().last_update()
        with suppress(Exception):  # the master's round goes on
            self._look(time.monotonic() - touched)
        return touched

    def _look(self, silent_s: float) -> None:
        self.silent_s = silent_s
        if silent_s < SILENT_S:
            self._ticks, self.culprit = {}, None
            return
        before, self._ticks = self._ticks, _thread_ticks(self._worker.pid)
        thread = _busiest(before, self._ticks)
        if thread is not None and self._row is not None:
            found = [one for one in self._row.in_flight() if one.thread_id == thread]
            self.culprit = found[0] if found else None
        if self.culprit is not None and self._timeout_s:
            is_known = self._is_known(self.culprit.tenant)
            patience_s = KNOWN_PATIENCE_S if is_known else self._timeout_s
            if silent_s > min(patience_s, self._timeout_s):
                # gunicorn would send SIGABRT first, for which Python needs the lock.
                os.kill(self._worker.pid, signal.SIGKILL)


def blame(row: Row, heartbeat: Heartbeat, ended_by: int | None = None) -> tuple[list[str], str]:
    """Return who may have ended a worker, and how; nobody if it was to end, or had no request.

    It is known where the thread that ended it is (`ended_by`), or who held the lock. A build that
    had not ended is suspected before all requests: it runs for milliseconds, and the code of an
    import that ends its process is met by nobody but the builder.
    """
    running = [] if row.is_stopping else row.in_flight()
    for one in running:
        if one.ident == ended_by:
            return [one.tenant], f"{'its build' if one.is_build else _REQUEST} ended a worker"
    culprit = heartbeat.culprit
    if culprit is not None and culprit in running:
        held_s, what = round(heartbeat.silent_s), "its build" if culprit.is_build else _REQUEST
        return [culprit.tenant], f"{what} held the interpreter lock for {held_s} s"
    builders = sorted({one.tenant for one in running if one.is_build})
    names = builders or sorted({one.tenant for one in running})
    others = "" if len(names) < 2 else f" with those of {len(names) - 1} others"  # noqa: PLR2004 - it was alone
    what = "it was being built" if builders else f"{_REQUEST} was in flight"
    return names, f"a worker ended while {what}{others}"


def _busiest(before: dict[int, int], after: dict[int, int]) -> int | None:
    """Return the thread that alone has worked; None where that is not clear."""
    used = sorted((after[one] - before[one], one) for one in after.keys() & before.keys())
    if not used or used[-1][0] < _CLEAR_TICKS:
        return None
    second = used[-2][0] if len(used) > 1 else 0
    return used[-1][1] if used[-1][0] >= _CLEAR_LEAD * second else None


def _thread_ticks(pid: int) -> dict[int, int]:
    """Return the processor time that each thread of a process has used, in the system's ticks."""
    found = {}
    for stat in Path(f"/proc/{pid}/task").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):  # it has just ended
            facts = stat.read_bytes().rpartition(b")")[2].split()
            found[int(stat.parent.name)] = int(facts[_USER]) + int(facts[_SYSTEM])
    return found
