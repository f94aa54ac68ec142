"""The pool of threads that serve requests.

With `ThreadPoolExecutor`, each job wakes a second thread without need and creates a future, which
took a tenth of a small request's CPU time. In `ThreadPool`, each idle thread waits for its own
lock, and the thread that became idle last gets the next item, because the memory of the last thread
is still cached.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")

_logger = logging.getLogger(__name__)


class _IdleThread(Generic[Item]):
    """The state of one idle thread: its wake-up lock and its next item."""

    __slots__ = ("item", "wake")

    def __init__(self, item: Item | None) -> None:
        self.item = item
        # The lock protects no data. An idle thread waits for the locked lock, and releasing the
        # lock wakes the thread.
        self.wake = threading.Lock()
        self.wake.acquire()


class ThreadPool(Generic[Item]):
    """At most `size` daemon threads, started when needed. Thread-safe.

    Args:
        size: maximum number of items that are served at once.
        serve: called with each item in a thread. The pool logs exceptions of `serve`.
    """

    def __init__(self, size: int, serve: Callable[[Item], None]) -> None:
        self._size = size
        self._serve = serve
        self._lock = threading.RLock()  # protects threads and items; re-entered by signal handlers
        self._count = 0
        self._idle: list[_IdleThread[Item]] = []
        self._queue: deque[Item] = deque()
        self._is_closed = False

    def do(self, item: Item, *, is_first: bool = False) -> None:
        """Serve an item as soon as a thread is free.

        Args:
            item: the item.
            is_first: whether the item comes before all items that wait for a thread.
        """
        with self._lock:
            if self._idle:
                idle_thread = self._idle.pop()
                idle_thread.item = item
                idle_thread.wake.release()
            elif self._count == self._size or not self._start(item):
                (self._queue.appendleft if is_first else self._queue.append)(item)

    def close(self) -> None:
        """End idle threads at once, and busy threads after their current item. Idempotent.

        A worker's process ends without `close`, because a thread may hang.
        """
        with self._lock:
            self._is_closed = True
            self._queue.clear()
            for idle_thread in self._idle:
                idle_thread.wake.release()
            self._idle.clear()

    def _start(self, item: Item) -> bool:
        """Start another thread with an item; return False if no thread is available.

        Raises:
            RuntimeError: the pool has no thread and cannot start a thread.
        """
        name = f"request-{self._count}"
        thread = threading.Thread(
            target=self._run, args=(_IdleThread(item),), name=name, daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            if not self._count:
                raise
            return False
        self._count += 1
        return True

    def _run(self, idle_thread: _IdleThread[Item]) -> None:
        item = idle_thread.item
        while item is not None:
            idle_thread.item = None
            try:
                self._serve(item)
            except BaseException:  # the pool must not lose a thread
                _logger.exception("worker.request_lost")
            item = None  # an idle thread must not keep the item alive
            item = self._next(idle_thread)

    def _next(self, idle_thread: _IdleThread[Item]) -> Item | None:
        with self._lock:
            if self._queue:
                return self._queue.popleft()
            if self._is_closed:
                return None
            self._idle.append(idle_thread)
        idle_thread.wake.acquire()
        return idle_thread.item
