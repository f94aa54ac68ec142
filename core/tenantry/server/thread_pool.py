"""The threads that serve requests. Knows nothing of what it gives them.

With Python's `ThreadPoolExecutor` a job wakes a second thread, which waits in the same queue and
goes on waiting, and makes a future with a condition of its own: of a small request's processor
time that was a tenth. Here each thread has a lock to wait for, and who was idle last goes first:
its stack and its memory are warm.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")

_logger = logging.getLogger(__name__)


class _Seat(Generic[Item]):
    """Where one thread waits."""

    __slots__ = ("item", "wake")

    def __init__(self, item: Item | None) -> None:
        self.item = item
        self.wake = threading.Lock()
        self.wake.acquire()


class ThreadPool(Generic[Item]):
    """At most `size` threads; each starts when it is needed and no other is idle. Thread-safe.

    They are daemons: one that hangs does not keep the process from its end.

    Args:
        size: how many items are served at once.
        serve: called with each item, in a thread; what it raises is logged.
    """

    def __init__(self, size: int, serve: Callable[[Item], None]) -> None:
        self._size = size
        self._serve = serve
        self._lock = threading.RLock()  # protects all below; a signal handler may come in between
        self._count = 0
        self._idle: list[_Seat[Item]] = []
        self._queue: deque[Item] = deque()
        self._is_shut = False

    def do(self, item: Item) -> bool:
        """Have an item served, as soon as a thread is free; whether it will be."""
        with self._lock:
            if self._is_shut:
                return False
            if self._idle:
                seat = self._idle.pop()
                seat.item = item
                seat.wake.release()
            elif self._count == self._size or not self._start(item):
                self._queue.append(item)
        return True

    def shutdown(self, wait: bool = False) -> list[Item]:
        """Serve nothing more; return what no thread has begun. Nobody is waited for."""
        del wait
        with self._lock:
            self._is_shut = True
            left = list(self._queue)
            self._queue.clear()
            for seat in self._idle:
                seat.wake.release()
            self._idle.clear()
        return left

    def _start(self, item: Item) -> bool:
        """Start another thread with an item; False if there is none to be had, but others are.

        Raises:
            RuntimeError: there is none at all.
        """
        name = f"request-{self._count}"
        thread = threading.Thread(target=self._run, args=(_Seat(item),), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._count:
                raise
            return False
        self._count += 1
        return True

    def _run(self, seat: _Seat[Item]) -> None:
        item = seat.item
        while item is not None:
            seat.item = None
            try:
                self._serve(item)
            except BaseException:  # a thread that is lost is missed for ever
                _logger.exception("worker.request_lost")
            item = None  # which nobody keeps while its thread waits
            item = self._next(seat)

    def _next(self, seat: _Seat[Item]) -> Item | None:
        with self._lock:
            if self._queue:
                return self._queue.popleft()
            if self._is_shut:
                return None
            self._idle.append(seat)
        seat.wake.acquire()
        return seat.item
