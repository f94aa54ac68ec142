"""The quota of a tenant's data folder: `QUOTA_BYTES`.

Measuring a folder takes time, so a folder is measured at most once a minute. Between two
measurements, reservations are added to a ledger: a small file in the folder, which all threads and
processes share under the ledger's lock. Growth without a reservation, such as the growth of a
database, counts from the next measurement on. A lost or damaged ledger causes a new measurement.

While an upload is being written, the folder contains only a part of the upload. A sparse file of
the upload's full size reserves the space, so a measurement counts too much rather than too little.
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
"""Time for which a measurement is valid. Measuring 100,000 files took 2 s on a busy machine."""

FULL_MEASUREMENT_AGE_S = 10.0
"""Time for which a measurement is valid while the quota is exceeded. A short time lets deleted
files make room soon, and a client's retries do not keep the disk busy."""

LEDGER = ".quota"

RESERVATION = ".quota-"
"""Prefix of the names of sparse files. A sparse file is locked as long as the reserving process
lives."""

_ENTRY = struct.Struct("<qd")  # bytes in the folder, time of the measurement (seconds since 1970)


class QuotaExceededError(HTTPException):
    """A tenant's folder would exceed the quota. The response is 507 (RFC 4918 §11.5)."""

    code = HTTPStatus.INSUFFICIENT_STORAGE.value

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        super().__init__(
            f"The storage quota is exceeded: all files together may have {limit_bytes:,} bytes."
        )


class FolderQuota:
    """The quota of one folder. All state is in the ledger; `FolderQuota` objects are cheap.

    Args:
        folder: an existing folder.
        limit_bytes: maximum bytes in the folder and its subfolders; None means unlimited.
        clock: returns seconds since 1970; for tests.
    """

    def __init__(
        self, folder: Path, limit_bytes: int | None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._clock = clock

    @contextmanager
    def reserve(self, size_bytes: int) -> Iterator[None]:
        """Reserve bytes that the block adds to the folder. A failed block's bytes do not count.

        Raises:
            QuotaExceededError: the bytes do not fit into the quota.
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
                reservation.close()  # Closing the reservation also deletes the sparse file.
                used, measured_at = _read(ledger)
                _write(ledger, used if is_added else max(0, used - size_bytes), measured_at)

    def _begin(self, size_bytes: int, limit_bytes: int) -> IO[bytes]:
        with self._locked_ledger() as ledger:
            used, measured_at = _read(ledger)
            # The age can be negative, because the clock may have been set back.
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
        """Yield the descriptor of the locked ledger. Closing the descriptor releases the lock."""
        ledger = os.open(self._folder / LEDGER, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(ledger, fcntl.LOCK_EX)
            yield ledger
        finally:
            os.close(ledger)


def measure(folder: Path) -> int:
    """Return the bytes of all files in a folder and its subfolders. Files may vanish meanwhile."""
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
    """Return a locked sparse file, which takes no disk space. Closing the file deletes the file."""
    file = NamedTemporaryFile(dir=folder, prefix=RESERVATION)  # noqa: SIM115 - the caller closes it
    fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(size_bytes)
    return file


def _remove_abandoned(folder: Path) -> None:
    """Remove the sparse files of killed processes, because the locks of such files are free."""
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
