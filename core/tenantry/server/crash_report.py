"""Reports of the thread that crashed a worker, from `faulthandler` to the master.

`faulthandler` writes a report into memory that worker and master share. Only fatal signals leave a
report (SIGSEGV, SIGFPE, SIGABRT, SIGBUS, SIGILL); `os._exit` and SIGKILL leave no report.
"""

import faulthandler
import os
import re

_READ_BYTES = 1 << 20
_CURRENT = re.compile(rb"Current thread 0x([0-9a-f]+)")


class CrashReport:
    """The crash report of one worker. The master creates, reads and closes the report."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("tenantry-crash-report")

    def enable(self) -> None:
        """Write a report when the calling process crashes, and then run its own signal handlers."""
        faulthandler.enable(self._fd)

    def thread(self) -> int | None:
        """Return the thread that crashed (`threading.get_ident`), or None without a report."""
        found = _CURRENT.findall(os.pread(self._fd, _READ_BYTES, 0))
        return int(found[-1], 16) if found else None

    def close(self) -> None:
        """Free the memory of the report. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
