"""The processes that migrations run in, as they are started, talked to and ended.

One process imports what migrations need; those that migrate are forks of it, some milliseconds
each. What they say and are told is `process`'s and `migrator`'s.
"""

import json
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Self

from tenantry.python_process import describe_exit, python_command

START_TIMEOUT_S = 30.0
"""How long the first process may take to start: it imports Alembic, in 0.6 s on an idle machine."""


UNKNOWN = b"unknown"
"""What the first process answers about a fork that it has not, or has ended before."""


class SilentError(Exception):
    """A process has ended, or does not answer in time."""


class _Home:
    """A process that forks those that migrate; they end with it. For one thread at a time."""

    def __init__(self, drivers: Collection[str]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, ExitStack() as undo:
            undo.enter_context(self._control)
            self.process = subprocess.Popen(  # noqa: S603 - our own module
                python_command(f"from {__package__}.process import main; main()", *drivers),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
            undo.pop_all()
        self._control.settimeout(START_TIMEOUT_S)

    def ask(self, question: bytes, fds: Sequence[int] = ()) -> bytes:
        """Return the answer; empty if the process has ended.

        Raises:
            OSError: it has ended, or there is none in time: one that comes late would be taken for
                that to the next question.
        """
        socket.send_fds(self._control, [question], fds)
        return self._control.recv(100)

    def close(self) -> None:
        """End it and its forks."""
        self._control.close()
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Nursery:
    """Where the processes come from, until the end of a `with` block. Thread-safe."""

    def __init__(self) -> None:
        self._drivers: list[str] = []
        self._lock = threading.Lock()  # one question at a time; protects what is written below
        self._home: _Home | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, drivers: Collection[str]) -> None:
        """Begin to import, if it has not been begun; `fork` does it and waits for it.

        Args:
            drivers: dialect and driver of the databases, as in their URLs: imported once for all.
        """
        with self._lock, suppress(OSError):  # the next one to want it is told
            self._drivers = sorted(drivers)
            self._start()

    def _start(self) -> _Home:
        if self._home is not None and self._home.process.poll() is not None:
            self._close()
        if self._home is None:
            self._home = _Home(self._drivers)
        return self._home

    def fork(self) -> "Child":
        """Return a new process.

        Raises:
            SilentError: there is none.
        """
        mine, theirs = socket.socketpair()
        said = b""
        try:
            with self._lock, theirs:
                home = self._start()
                said = self._ask(home, b"fork", theirs.fileno())
        except OSError as error:
            raise SilentError from error
        finally:
            if not said:
                mine.close()
        if not said:
            raise SilentError
        return Child(lambda: self._end(home, said), mine)

    def _end(self, home: _Home, number: bytes) -> int | None:
        """End a process, with whatever it started; return its exit status, None if unknown."""
        with self._lock:
            if home is not self._home:  # it has ended: the number is another's in the next one
                return None
            said = self._ask(home, number)
        return None if said in (b"", UNKNOWN) else int(said)

    def _ask(self, home: _Home, question: bytes, *fds: int) -> bytes:
        try:
            return home.ask(question, fds)
        except OSError:
            self._close()
            return b""

    def close(self) -> None:
        """End all of them. Idempotent."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        home, self._home = self._home, None
        if home is not None:
            home.close()


class Child:
    """A process that migrates, until it is killed; for one thread."""

    def __init__(self, end: Callable[[], int | None], line: socket.socket) -> None:
        self._end = end
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
        """End it, with whatever a migration started; return in words how it ended. Idempotent."""
        status = self._end()
        self._line.close()  # whoever could not be asked to end it: it does so itself
        return "in an unknown way" if status is None else describe_exit(status)
