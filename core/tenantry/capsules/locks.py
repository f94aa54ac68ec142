"""Locks files and folders with `flock`.

While a process uses a folder, the process holds the lock of the folder. When a process is killed,
the kernel releases the locks of the process. Therefore, a locked folder is in use, and an unlocked
folder is abandoned.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Wait for the lock of a folder, and hold the lock during the `with` block.

    A process must hold the lock of a folder while it creates, locks or removes entries of the
    folder. Without the lock, another process could remove a new entry before the entry is locked.
    """
    fd = open_folder(folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def lock_exclusively(path: Path) -> int:
    """Lock a file or folder until the returned file descriptor is closed.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file or folder cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_folder(folder: Path) -> int:
    """Return a file descriptor of a folder, which the caller must close.

    Raises:
        OSError: the path is not a folder, or the folder cannot be read.
    """
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def sync_folder(folder: Path) -> None:
    """Write the list of a folder's entries to disk, as `fsync` does."""
    fd = open_folder(folder)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
