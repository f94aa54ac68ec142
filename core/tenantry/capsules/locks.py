"""Advisory locks on files and folders, by `flock`.

A process holds a lock while it works in a folder; the kernel releases it when the process dies.
So the next process can tell what a killed process left from what another one is working on.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Wait for a folder's lock and hold it during the block.

    Processes hold it while they create, lock or remove entries of the folder. Otherwise, one could
    remove an entry that another has created but not yet locked.
    """
    fd = open_folder(folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def lock_exclusively(path: Path) -> int:
    """Lock a file or a folder; return the descriptor, which holds the lock until it is closed.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_folder(folder: Path) -> int:
    """Return a descriptor of a folder; the caller closes it.

    Raises:
        OSError: the path is not a folder, or it cannot be read.
    """
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk."""
    fd = open_folder(folder)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
