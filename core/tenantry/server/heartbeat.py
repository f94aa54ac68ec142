"""The heartbeat of a worker, and the search for a request that blocks the heartbeat.

A thread that holds the interpreter lock stops the leader and all other threads of a worker. The
master can see in `/proc` that only the blocking thread uses the processor.
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
"""Minimum seconds between two touches of the heartbeat file; each touch is a system call."""

SILENT_S = 1.5
"""Seconds without a heartbeat after which the master searches for the blocking thread. The leader
of a healthy worker calls `notify` every half second."""

STRUCK_PATIENCE_S = 3.0
"""Seconds that a tenant that recently ended a worker may hold the interpreter lock; for another
tenant, gunicorn's `timeout` applies."""

_CLEAR_TICKS = 5
"""Minimum CPU time of a blocking thread between two checks, in clock ticks (0.05 s). Two checks are
about a second apart."""

_CLEAR_LEAD = 2
"""Minimum ratio between the CPU time of the blocking thread and of every other thread. If two
threads take turns, neither thread blocks the leader."""

_USER, _SYSTEM = 11, 12
"""Positions of utime and stime in `/proc/<pid>/task/<tid>/stat`, counted from the state
(proc(5))."""


class Heartbeat(WorkerTmp):  # type: ignore[misc]
    """The file that a worker touches and that the master checks every second.

    Args:
        cfg: gunicorn's configuration.
        worker: the worker object, which has a `pid` after the fork.
        row: the worker's row on the scoreboard, or None.
        has_struck: returns whether a tenant recently ended a worker.
    """

    def __init__(
        self, cfg: Any, worker: Any, row: Row | None, has_struck: Callable[[str], bool]
    ) -> None:
        super().__init__(cfg)
        self._worker = worker
        self._row = row
        self._has_struck = has_struck
        self._timeout_s: float = cfg.timeout
        self._touch_at = 0.0  # seconds of the monotonic clock
        self._ticks: dict[int, int] = {}
        self.silent_s = 0.0
        """Seconds without a heartbeat at the last check of the master."""
        self.culprit: InFlight | None = None
        """The request or build on the blocking thread, or None."""

    @property
    def has_held_worker(self) -> bool:
        """Whether the worker was silent for so long that the master ended it."""
        return self.culprit is not None or 0 < self._timeout_s <= self.silent_s

    def notify(self) -> None:
        """Touch the heartbeat file in the worker, at most every `TOUCH_S`."""
        now = time.monotonic()
        if now >= self._touch_at:
            self._touch_at = now + TOUCH_S
            super().notify()

    def last_update(self) -> float:
        """Return the monotonic time of the last touch, and search for a blocking thread."""
        touched: float = super().last_update()
        with suppress(Exception):  # the master must keep running
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
                # gunicorn sends SIGABRT first, but Python cannot handle SIGABRT without the
                # interpreter lock.
                os.kill(self._worker.pid, signal.SIGKILL)


def _busiest(before: dict[int, int], after: dict[int, int]) -> int | None:
    """Return the thread that has used most CPU time, or None if no thread clearly stands out."""
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
