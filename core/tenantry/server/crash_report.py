"""Reports from a worker to the master, which name the thread that ended the worker.

The reports are in memory that the worker and the master share. `faulthandler` writes a report at a
fatal signal (SIGSEGV, SIGFPE, SIGABRT, SIGBUS, SIGILL). Before `os._exit` and `os.kill` end their
own process, these functions write a report. A worker that is killed from outside leaves no report.
"""

import faulthandler
import os
import re
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

CGROUPS = Path("/sys/fs/cgroup")
"""The folder where cgroup v2 is mounted (cgroups(7))."""

_READ_BYTES = 1 << 20
_CURRENT = re.compile(rb"Current thread 0x([0-9a-f]+)")


class CrashReport:
    """The crash report of one worker. The master creates, reads and closes the report."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("tenantry-crash-report")
        self._oom_counter = oom_counter()
        self._oom_kills = _count_oom_kills(self._oom_counter)

    def enable(self) -> None:
        """Write a report when the calling process crashes or ends itself."""
        faulthandler.enable(self._fd)
        pid, fd, exit_now, kill = os.getpid(), self._fd, os._exit, os.kill

        def note_thread() -> None:
            os.pwrite(fd, b"Current thread 0x%x\n" % threading.get_ident(), 0)

        def exit_after_report(status: int) -> NoReturn:
            if os.getpid() == pid:  # a forked child process writes no report
                note_thread()
            exit_now(status)

        def kill_after_report(target: int, signum: int, /) -> None:
            if target == pid == os.getpid() and signum == signal.SIGKILL:
                note_thread()
            kill(target, signum)

        os._exit, os.kill = exit_after_report, kill_after_report

    @property
    def has_run_out_of_memory(self) -> bool:
        """Whether the kernel has killed a process for lack of memory since the worker started.

        Processes outside the worker's cgroup do not count, if `oom_counter` finds the cgroup.
        """
        return _count_oom_kills(self._oom_counter) > self._oom_kills

    def thread(self) -> int | None:
        """Return the thread that crashed (`threading.get_ident`), or None without a report."""
        found = _CURRENT.findall(os.pread(self._fd, _READ_BYTES, 0))
        return int(found[-1], 16) if found else None

    def close(self) -> None:
        """Free the memory of the report. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def oom_counter(proc: Path = Path("/proc"), cgroups: Path = CGROUPS) -> Path:
    """Return the file that counts the processes that the kernel killed for lack of memory.

    With cgroup v2, the counter of the nearest cgroup with a memory controller covers a container or
    a service. Otherwise, `vmstat` counts for the whole machine (proc(5)).
    """
    with suppress(OSError, StopIteration):
        lines = (proc / "self/cgroup").read_text().splitlines()
        own = next(line for line in lines if line.startswith("0::/"))
        cgroup = cgroups / own.removeprefix("0::/")
        for folder in (cgroup, *cgroup.parents):
            if (folder / "memory.events").is_file():
                return folder / "memory.events"
            if folder == cgroups:
                break
    return proc / "vmstat"


def _count_oom_kills(counter: Path) -> int:
    with suppress(OSError):
        for line in counter.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0
