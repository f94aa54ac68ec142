"""Whether somebody has a file open for writing, as far as Linux tells it.

It helps against a writer that pauses in the middle of a file, where its first half is a valid one.
"""

import fcntl
import os
import signal


def is_being_written(path: str) -> bool:
    """Whether somebody has the file open for writing now.

    False where that cannot be known: the file is another user's, or its file system has no leases.
    Thread-safe.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # A read lease is refused while a writer has the file open. One that opens it in the few
        # microseconds of ours waits for the end of it, and the kernel tells us so by a signal:
        # SIGIO would end the process, SIGURG is ignored unless somebody handles it.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)  # a forked process may share the lease
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False
