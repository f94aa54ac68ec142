"""The processes that migrations run in, as they are started, talked to and ended.

One process imports what migrations need; those that migrate are forks of it, some milliseconds
each. What they say and are told is `migration_process`'s and `migrator`'s.
"""

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any, Self

from core.loader import ending, python_executable

START_TIMEOUT_S = 30.0
"""How long the first process may take to start: it imports Alembic, in 0.6 s on an idle machine."""


class SilentError(Exception):
    """A process has ended, or does not answer in time."""


class Nursery:
    """Where the processes come from, until the end of a `with` block. Thread-safe."""

    def __init__(self) -> None:
        self._drivers: list[str] = []
        self._lock = threading.Lock()  # one question at a time; protects what is written below
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, drivers: Collection[str]) -> None:
        """Begin to import, if it has not been begun; `fork` does it and waits for it.

        Args:
            drivers: dialect and driver of the databases, as in their URLs: imported once for all.
        """
        with self._lock:
            self._drivers = sorted(drivers)
            self._start()

    def _start(self) -> socket.socket:
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        self._close()
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = control
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [python_executable(), "-m", f"{__package__}.migration_process", *self._drivers],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                # What this process can import, the other can.
                env=os.environ | {"PYTHONPATH": os.pathsep.join(one or "." for one in sys.path)},
                start_new_session=True,
            )
        control.settimeout(START_TIMEOUT_S)
        return control

    def fork(self) -> "Child":
        """Return a new process.

        Raises:
            SilentError: there is none.
        """
        mine, theirs = socket.socketpair()
        said = b""
        try:
            with self._lock, theirs:
                control = self._start()
                socket.send_fds(control, [b"fork"], [theirs.fileno()])
                said = control.recv(100)
        except OSError as error:
            self.close()  # an answer that comes late would be taken for that to the next question
            raise SilentError from error
        finally:
            if not said:
                mine.close()
        if not said:
            raise SilentError
        return Child(self, int(said), mine)

    def end(self, pid: int) -> int | None:
        """End a process, with whatever it started; return its exit status, None if unknown."""
        with self._lock, suppress(OSError):
            if self._control is not None:
                self._control.send(str(pid).encode())
                said = self._control.recv(100)
                return int(said) if said else None
        return None

    def close(self) -> None:
        """End all of them. Idempotent."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        control, self._control = self._control, None
        process, self._process = self._process, None
        if control is not None:
            control.close()  # it ends its forks, and itself
        if process is not None:
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Child:
    """A process that migrates, until it is killed; for one thread."""

    def __init__(self, nursery: Nursery, pid: int, line: socket.socket) -> None:
        self._nursery = nursery
        self._pid = pid
        self._line = line
        self._received = bytearray()

    def write(self, message: dict[str, Any]) -> None:
        """Send one line.

        Raises:
            SilentError: the process has ended.
        """
        try:
            self._line.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise SilentError from error

    def read(self, timeout_s: float) -> dict[str, Any]:
        """Return the next line.

        Raises:
            SilentError: none comes in time, or ever.
        """
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._line.fileno(), select.POLLIN)
        while b"\n" not in self._received:
            if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
                raise SilentError
            try:
                part = self._line.recv(1 << 16)
            except ConnectionError as error:  # it ended with a line of ours unread
                raise SilentError from error
            if not part:
                raise SilentError
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return said

    def has_ended(self) -> bool:
        """Whether it has let go of its line, without anything more to read."""
        poll = select.poll()
        poll.register(self._line.fileno(), select.POLLIN)
        with suppress(ConnectionError):
            return bool(poll.poll(0)) and not self._line.recv(1, socket.MSG_PEEK)
        return True

    def kill(self) -> str:
        """End it, with whatever a migration started; return in words how it ended."""
        status = self._nursery.end(self._pid)
        self._line.close()
        return "in an unknown way" if status is None else ending(status)
