"""A worker's last words: which of its threads ended the process, where that can be known.

The worker writes them into memory that the master made for it before the fork: when it crashes
(SIGSEGV and its like), by `faulthandler`; when code of it calls `os._exit`, or kills its own
process, by functions that stand in the place of those two. Of what comes from outside there are
none. Knows threads, not whose they are.
"""

import contextlib
import faulthandler
import os
import re
import signal
from collections.abc import Callable
from threading import get_ident
from typing import NoReturn

HALTING = frozenset({3, 4})
"""Exit codes by which a worker tells gunicorn that it cannot be started: gunicorn then ends
altogether, so that no code of a tenant may exit by them."""

_READ_BYTES = 1 << 20
_CURRENT = re.compile(rb"Current thread 0x([0-9a-f]+)")


class LastWords:
    """Made in the master for one worker; `listen` is for the worker, the rest for the master."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("tenantry-last-words")
        self._pid = 0

    def listen(self) -> None:
        """From now on note who ends this process; for a worker, once, behind its signal handlers.

        What those do at SIGABRT is done afterwards.
        """
        self._pid = os.getpid()
        faulthandler.enable(self._fd)
        os._exit = self._exit_noted(os._exit)  # type: ignore[assignment]
        os.kill = self._kill_noted(os.kill)

    def thread(self) -> int | None:
        """Return the thread that ended the process (`threading.get_ident`); None: not known."""
        found = _CURRENT.findall(os.pread(self._fd, _READ_BYTES, 0))
        return int(found[-1], 16) if found else None

    def close(self) -> None:
        """Let the memory go. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _note(self) -> None:
        if os.getpid() == self._pid:  # and not a child of it
            with contextlib.suppress(OSError):
                os.write(self._fd, f"Current thread 0x{get_ident():x}\n".encode())

    def _exit_noted(self, real: Callable[[int], NoReturn]) -> Callable[[int], NoReturn]:
        def _exit(status: int) -> NoReturn:
            self._note()
            real(1 if status in HALTING and os.getpid() == self._pid else status)

        return _exit

    def _kill_noted(self, real: Callable[[int, int], None]) -> Callable[[int, int], None]:
        def kill(pid: int, sig: int, /) -> None:
            if sig == signal.SIGKILL and pid == os.getpid():
                self._note()
            real(pid, sig)

        return kill
