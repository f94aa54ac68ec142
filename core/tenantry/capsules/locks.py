"""Locks on folders and files: held while a process works in them, let go of when it dies.

So whoever comes next can tell what a killed process left from what another one works in.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait for the lock of a folder, and hold it: what is in it is made, locked and swept by turns.

    Without turns, what one has made and not locked yet would be swept by another.
    """
    opened = open_folder(folder)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def lock(path: Path) -> int:
    """Lock a file or a folder; return the descriptor that holds the lock until it is closed.

    Raises:
        BlockingIOError: somebody else holds it.
        OSError: it cannot be opened.
    """
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(opened)
        raise
    return opened


def open_folder(folder: Path) -> int:
    """Return a descriptor of a folder, for the caller to close.

    Raises:
        OSError: it is none, or cannot be read.
    """
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def sync_folder(folder: Path) -> None:
    """Have the system write the names in a folder to the disk."""
    opened = open_folder(folder)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
