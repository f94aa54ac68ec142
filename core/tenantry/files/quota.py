"""Enforces the quota of a tenant's data folder, `QUOTA_BYTES`.

Measuring a folder takes time, so each folder is measured at most once a minute. Between two
measurements, reservations are added to a ledger, which is a small file in the folder. All threads
and processes share the ledger, and lock it for each change. Growth without a reservation, such as
the growth of a database, counts from the next measurement on. If the ledger is lost or damaged, the
folder is measured again.

While an upload is being written, only a part of it is in the folder. Therefore, a sparse file of
the upload's full size reserves the space. Because a measurement counts both files, the result can
be too large, but never too small.
"""

import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

from werkzeug.exceptions import HTTPException

MEASUREMENT_AGE_S = 60.0
"""How long a measurement is valid. Measuring 100,000 files took 2 s on a busy machine."""

FULL_MEASUREMENT_AGE_S = 10.0
"""How long a measurement is valid while the quota is exceeded.

With a short time, the host soon notices deleted files. A shorter time would let a client that
retries keep the disk busy.
"""

LEDGER = ".quota"

RESERVATION = ".quota-"
"""Prefix of the names of sparse files. Each sparse file is locked until its process ends."""

_ENTRY = struct.Struct("<qd")  # size in bytes, and time of the measurement (seconds since 1970)


class QuotaExceededError(HTTPException):
    """A tenant's folder would exceed its quota. The client gets 507 (RFC 4918 §11.5)."""

    code = HTTPStatus.INSUFFICIENT_STORAGE.value

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        super().__init__(
            f"The storage quota is exceeded: all files together may have {limit_bytes:,} bytes."
        )


class FolderQuota:
    """The quota of one folder. Creating a `FolderQuota` is cheap, because all state is in a file.

    Args:
        folder: an existing folder.
        limit_bytes: maximum size of all files in the folder and its subfolders; None for no limit.
        clock: a function that returns the seconds since 1970.
    """

    def __init__(
        self, folder: Path, limit_bytes: int | None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._clock = clock

    @contextmanager
    def reserve(self, size_bytes: int) -> Iterator[None]:
        """Reserve space for what the `with` block writes to the folder.

        If the `with` block raises an exception, the reservation is cancelled.

        Raises:
            QuotaExceededError: the folder would exceed the quota.
        """
        if self._limit_bytes is None:
            yield
            return
        reservation = self._begin(size_bytes, self._limit_bytes)
        is_added = False
        try:
            yield
            is_added = True
        finally:
            with self._locked_ledger() as ledger:
                reservation.close()  # closing the sparse file deletes it
                used, measured_at = _read(ledger)
                _write(ledger, used if is_added else max(0, used - size_bytes), measured_at)

    def _begin(self, size_bytes: int, limit_bytes: int) -> IO[bytes]:
        with self._locked_ledger() as ledger:
            used, measured_at = _read(ledger)
            # If the clock has been set back, the age is negative.
            age_s = abs(self._clock() - measured_at)
            is_full = used + size_bytes > limit_bytes
            is_valid = age_s < (FULL_MEASUREMENT_AGE_S if is_full else MEASUREMENT_AGE_S)
            if not is_valid:
                _remove_abandoned(self._folder)
                used, measured_at = measure(self._folder), self._clock()
            is_full = used + size_bytes > limit_bytes
            _write(ledger, used if is_full else used + size_bytes, measured_at)
            if is_full:
                raise QuotaExceededError(limit_bytes)
            return _sparse_file(self._folder, size_bytes)

    @contextmanager
    def _locked_ledger(self) -> Iterator[int]:
        """Lock the ledger during the `with` block, and yield its file descriptor."""
        ledger = os.open(self._folder / LEDGER, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(ledger, fcntl.LOCK_EX)
            yield ledger
        finally:
            os.close(ledger)


def measure(folder: Path) -> int:
    """Return the total size of all files in a folder and its subfolders."""
    size = 0
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                size += measure(Path(entry.path))
            else:
                with suppress(FileNotFoundError):
                    size += entry.stat(follow_symlinks=False).st_size
    return size


def _sparse_file(folder: Path, size_bytes: int) -> IO[bytes]:
    """Return a locked file that takes no disk space. Closing the file deletes the file."""
    file = NamedTemporaryFile(dir=folder, prefix=RESERVATION)  # noqa: SIM115 - closed by the caller
    fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(size_bytes)
    return file


def _remove_abandoned(folder: Path) -> None:
    """Remove the sparse files that are not locked, because their processes were killed."""
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
