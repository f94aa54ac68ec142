"""How much a tenant's folder may hold: `QUOTA_BYTES`.

Walking the folder for every upload would cost the more, the more a tenant has. So it is measured
at most once a minute; what uploads add meanwhile is added to a ledger, one small file in the
folder, which all threads and processes share under its lock. Growth that nobody announces, a
database's, say, shows with the next measurement. A ledger that is lost or cut is measured anew.

What is still coming in is not in the folder yet, or only in part: until then a file without content
stands for it, as long as all of it will be. A measurement meanwhile counts rather too much than too
little, until the next one.
"""

import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

MEASURED_FOR_S = 60.0
"""Seconds that a measurement holds: walking 100,000 files took 2 s on a busy machine."""

REFUSED_FOR_S = 10.0
"""Seconds that it holds where uploads would be refused for it: room that was made is soon seen, and
a client that goes on asking does not keep the disk busy."""

LEDGER = ".quota"

RESERVATION = ".quota-"
"""How the names of the files begin that stand for what is coming in; each is locked as long as its
process lives."""

_ENTRY = struct.Struct("<qd")  # bytes held, when that was measured (seconds since 1970)


class QuotaExceededError(Exception):
    """A tenant's folder would hold more than it may. The text is for the client."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        text = f"There is no room for this: all files together may have {limit_bytes:,} bytes."
        super().__init__(text)


class FolderQuota:
    """The quota of one folder. Keeps no state but the ledger; made as often as one likes.

    Args:
        folder: it is there.
        limit_bytes: what it may hold, its subfolders included; None: whatever it likes.
        clock: seconds since 1970.
    """

    def __init__(
        self, folder: Path, limit_bytes: int | None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._clock = clock

    @contextmanager
    def adding(self, size_bytes: int) -> Iterator[None]:
        """Count bytes that the block adds to the folder; not, if it fails.

        Raises:
            QuotaExceededError: they have no room.
        """
        if self._limit_bytes is None:
            yield
            return
        reservation = self._reserve(size_bytes, self._limit_bytes)
        is_added = False
        try:
            yield
            is_added = True
        finally:
            with self._ledger() as ledger:
                reservation.close()  # and with it its file is gone
                used, measured_at = _read(ledger)
                _write(ledger, used if is_added else max(0, used - size_bytes), measured_at)

    def _reserve(self, size_bytes: int, limit_bytes: int) -> IO[bytes]:
        with self._ledger() as ledger:
            used, measured_at = _read(ledger)
            age_s = abs(self._clock() - measured_at)  # a clock set back must not make it last
            is_full = used + size_bytes > limit_bytes
            holds_s = REFUSED_FOR_S if is_full else MEASURED_FOR_S
            if not age_s < holds_s:  # also if it is no number
                _remove_left(self._folder)
                used, measured_at = measure(self._folder), self._clock()
            is_full = used + size_bytes > limit_bytes
            _write(ledger, used if is_full else used + size_bytes, measured_at)
            if is_full:
                raise QuotaExceededError(limit_bytes)
            return _reservation(self._folder, size_bytes)

    @contextmanager
    def _ledger(self) -> Iterator[int]:
        """Hold the ledger's lock, which ends with the file descriptor, or with its process."""
        ledger = os.open(self._folder / LEDGER, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(ledger, fcntl.LOCK_EX)
            yield ledger
        finally:
            os.close(ledger)


def measure(folder: Path) -> int:
    """Return the bytes of all files in a folder and below; files may come and go meanwhile."""
    size = 0
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                size += measure(Path(entry.path))
            else:
                with suppress(FileNotFoundError):
                    size += entry.stat(follow_symlinks=False).st_size
    return size


def _reservation(folder: Path, size_bytes: int) -> IO[bytes]:
    """Return a file of this length that takes no room on the disk; gone when it is closed."""
    file = NamedTemporaryFile(dir=folder, prefix=RESERVATION)  # noqa: SIM115 - the caller closes it
    fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(size_bytes)
    return file


def _remove_left(folder: Path) -> None:
    """Remove the reservations of processes that were killed: nobody holds their locks."""
    for path in folder.glob(f"{RESERVATION}*"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _read(ledger: int) -> tuple[int, float]:
    entry = os.pread(ledger, _ENTRY.size, 0)
    if len(entry) != _ENTRY.size:
        return 0, 0.0
    used, measured_at = _ENTRY.unpack(entry)
    return used, measured_at


def _write(ledger: int, used: int, measured_at: float) -> None:
    os.pwrite(ledger, _ENTRY.pack(used, measured_at), 0)
