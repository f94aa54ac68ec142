"""Advisory locks on files and folders, by `flock`.

A process holds the lock of a folder while the process works in the folder. The kernel releases the
locks of a killed process. An unlocked folder is therefore abandoned, and a locked folder is in use.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Wait for the lock of a folder and hold the lock during the `with` block.

    A process holds the folder's lock while the process creates, locks or removes entries of the
    folder. Without the lock, a process could remove an entry that another process has created but
    not yet locked.
    """
    fd = open_folder(folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def lock_exclusively(path: Path) -> int:
    """Lock a file or folder; return a file descriptor. Closing the descriptor releases the lock.

    Raises:
        BlockingIOError: another process holds the lock of the file.
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
    """Return a file descriptor of a folder. The caller closes the descriptor.

    Raises:
        OSError: the path is not a folder, or the folder cannot be read.
    """
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk."""
    fd = open_folder(folder)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
