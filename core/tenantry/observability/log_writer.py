"""The writer of log lines: a bounded queue, and a thread that writes the queue to stderr.

A request must not wait for the reader of stderr. If the reader stalls, or the disk is full, the
queue fills. While the queue is full, further lines are dropped and counted, and requests continue.

Only a process that serves starts the thread. In other processes, such as commands and gunicorn's
master, the caller writes the line. A forked process begins with an empty queue and without a
thread.
"""

import logging
import os
import select
import stat
import threading
from collections import deque
from collections.abc import Callable

MAX_QUEUED = 10_000
"""Maximum number of lines in the queue: a few MB, or a second of full load."""

PAUSE_S = 0.1
"""Seconds between two checks of the queue while lines arrive, so that a request makes no system
call for its line."""

FLUSH_S = 1.0
"""Maximum seconds that an ending process waits for the reader of stderr."""

PIPE_BYTES = 4096
"""Maximum bytes of one write to a pipe or a socket. Writes of this size (`PIPE_BUF`) are not mixed
with lines of other processes."""

FILE_BYTES = 16 << 10
"""Maximum bytes of one write to a file. Rendering this many bytes takes less than 1 ms, during
which the thread may hold the interpreter lock."""

Item = str | tuple[Callable[..., str], object, object] | threading.Event
"""A line; or a function that renders the line, with its arguments; or an event to set when all
earlier lines are written. A line has a line end."""

_STDERR = 2

_logger = logging.getLogger(__name__)


class LogWriter:
    """Writes log lines to a file descriptor in their order. Thread-safe. `close` ends the thread.

    Args:
        fd: the file descriptor, which stays open.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.forget()

    def forget(self) -> None:
        """Drop the queue and the thread of the parent, in a forked process."""
        self.queue: deque[Item] = deque()
        self.is_awake = False
        """Whether the thread checks the queue without `wake`."""
        self.dropped_total = 0
        """Approximate number of dropped lines, incremented without a lock."""
        self._reported_total = 0
        self._is_failing = False
        self._is_closing = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # protects the start and the end of the thread
        self._write_lock = threading.Lock()  # keeps the order of lines without a thread

    @property
    def is_running(self) -> bool:
        """Whether the thread writes the lines."""
        return self._thread is not None

    # -- lines ----------------------------------------------------------------------------------

    def put(self, line: Item) -> None:
        """Queue a line, and let the thread write the queue at once."""
        if len(self.queue) < MAX_QUEUED:
            self.queue.append(line)
        else:
            self.dropped_total += 1
        self.wake()

    def wake(self) -> None:
        """Let the thread write the queue; without a thread, write the queue."""
        if self._thread is None:
            self._write_queued()
        else:
            self._wake.set()

    def flush(self) -> None:
        """Wait until all lines so far are written, at most `FLUSH_S`."""
        written = threading.Event()
        self.queue.append(written)
        self.wake()
        written.wait(FLUSH_S)

    # -- the thread -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread of this process. Idempotent."""
        with self._lock:
            if self._thread is None:
                self._is_closing = False
                self._thread = threading.Thread(target=self._run, name="tenantry-log", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Write the queue and end the thread, if the reader reads the lines within `FLUSH_S`.

        After `close`, callers write lines. If the reader stalls, the thread and the queue stay, so
        that an ending process does not wait again.
        """
        with self._lock:
            if self._thread is None:
                return
            self._is_closing = True
            self._wake.set()
            self._thread.join(FLUSH_S)
            if self._thread.is_alive():
                return
            self._thread = None
        self._write_queued()  # lines that were added since the thread's last check

    def _run(self) -> None:
        while not self._is_closing:
            if not self.queue:
                self.is_awake = False
                # The second check finds a line that was added while `is_awake` was still true.
                if not self.queue:
                    self._wake.wait()
                self.is_awake = True
            self._wake.clear()
            self._write_queued()
            self._wake.wait(PAUSE_S)
        self.is_awake = False
        self._write_queued()

    def _write_queued(self) -> None:
        with self._write_lock:
            max_bytes = self._max_bytes()
            batch: list[bytes] = []
            size = 0
            for _ in range(len(self.queue)):  # only the holder of the lock takes items
                item = self.queue.popleft()
                if isinstance(item, threading.Event):
                    self._write(batch)
                    batch, size = [], 0
                    item.set()
                    continue
                try:
                    text = item if isinstance(item, str) else item[0](item[1], item[2])
                except Exception:  # noqa: BLE001 - a bad line must not end the thread
                    self.dropped_total += 1
                    continue
                line = text.encode("utf-8", "backslashreplace")
                if batch and size + len(line) > max_bytes:
                    self._write(batch)
                    batch, size = [], 0
                batch.append(line)
                size += len(line)
            self._write(batch)
        if self.dropped_total != self._reported_total and not self._is_failing:
            self._report_dropped()

    def _write(self, batch: list[bytes]) -> None:
        data = b"".join(batch)
        try:
            while data:  # a signal can interrupt a write
                if self._thread is None:
                    self._await_reader()
                data = data[os.write(self._fd, data) :]
                self._is_failing = False
        except OSError:  # no process reads stderr, or the disk is full
            self._is_failing = True
            self.dropped_total += len(batch)

    def _await_reader(self) -> None:
        """Wait until a write does not block: gunicorn's master must continue if the reader stalls.

        Raises:
            BlockingIOError: the reader has stalled.
        """
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if not poll.poll(0 if self._is_failing else FLUSH_S * 1000):
            raise BlockingIOError

    def _max_bytes(self) -> int:
        try:
            is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
        except OSError:  # stderr is closed
            return PIPE_BYTES
        return FILE_BYTES if is_file else PIPE_BYTES

    def _report_dropped(self) -> None:
        dropped = self.dropped_total - self._reported_total
        self._reported_total += dropped
        _logger.warning("log.lines_dropped", extra={"dropped": dropped})


STDERR = LogWriter(_STDERR)
"""The writer of all log lines of this process."""

os.register_at_fork(after_in_child=STDERR.forget)
