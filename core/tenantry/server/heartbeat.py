"""A worker's heartbeat, as the master sees it, and the request that holds it up.

A thread that holds the interpreter lock stops the main loop and all other threads. Then only this
thread uses the processor, which the master can see in `/proc`.
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
"""Minimum time between two touches of the file. The main loop asks for two with each request, and
each is a system call while a request thread waits for the interpreter lock."""

SILENT_S = 1.5
"""Seconds of silence after which the master checks which thread works. A healthy worker beats at
least every 1.25 s: `TOUCH_S`, and one second in which the main loop waits for events."""

STRUCK_PATIENCE_S = 3.0
"""How long a tenant that recently ended a worker may hold the lock; for others, `timeout`
applies."""

_CLEAR_TICKS = 5
"""Minimum CPU time of a thread between two checks, which are about a second apart: 0.05 s."""

_CLEAR_LEAD = 2
"""The blamed thread must use this many times the CPU time of the next one. If two threads take
turns, neither does, and the main loop gets turns, too."""

_USER, _SYSTEM = 11, 12
"""Positions of utime and stime in `/proc/<pid>/task/<tid>/stat`, counted from the state
(proc(5))."""


class Heartbeat(WorkerTmp):  # type: ignore[misc]
    """The file that a worker touches. The master checks it every second.

    Args:
        cfg: gunicorn's configuration.
        worker: the worker; it has its `pid` once it is forked.
        row: its row on the scoreboard, if it has one.
        has_struck: whether a tenant recently ended a worker.
    """

    def __init__(
        self, cfg: Any, worker: Any, row: Row | None, has_struck: Callable[[str], bool]
    ) -> None:
        super().__init__(cfg)
        self._worker = worker
        self._row = row
        self._has_struck = has_struck
        self._timeout_s: float = cfg.timeout
        self._touch_at = 0.0  # on the monotonic clock
        self._ticks: dict[int, int] = {}
        self.silent_s = 0.0
        """Seconds without a heartbeat when the master checked last."""
        self.culprit: InFlight | None = None
        """The request or build whose thread alone works while there is no heartbeat."""

    def notify(self) -> None:
        """Touch the file, in the worker, at most every `TOUCH_S`."""
        now = time.monotonic()
        if now >= self._touch_at:
            self._touch_at = now + TOUCH_S
            super().notify()

    def last_update(self) -> float:
        """Return when it was touched last (monotonic clock), and check on a silent worker."""
        touched: float = super().last_update()
        with suppress(Exception):  # the master must go on
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
            has_struck = self._has_struck(self.culprit.tenant)
            patience_s = STRUCK_PATIENCE_S if has_struck else self._timeout_s
            if silent_s > min(patience_s, self._timeout_s):
                # gunicorn sends SIGABRT first, but Python needs the lock to handle it.
                os.kill(self._worker.pid, signal.SIGKILL)


def _busiest(before: dict[int, int], after: dict[int, int]) -> int | None:
    """Return the thread that alone has worked, or None if that is not clear."""
    used = sorted((after[one] - before[one], one) for one in after.keys() & before.keys())
    if not used or used[-1][0] < _CLEAR_TICKS:
        return None
    second = used[-2][0] if len(used) > 1 else 0
    return used[-1][1] if used[-1][0] >= _CLEAR_LEAD * second else None


def _thread_ticks(pid: int) -> dict[int, int]:
    """Return the CPU time of each thread of a process, in clock ticks."""
    found = {}
    for stat in Path(f"/proc/{pid}/task").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):  # the thread has just ended
            facts = stat.read_bytes().rpartition(b")")[2].split()
            found[int(stat.parent.name)] = int(facts[_USER]) + int(facts[_SYSTEM])
    return found
