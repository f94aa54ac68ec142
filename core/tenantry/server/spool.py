"""Keeps bodies of requests and responses outside of threads: in memory, then in temporary files.

One budget limits memory and files for all bodies of a worker. A tenant may use as much of the
budget as is free, so a part of the budget always remains for the bodies of another tenant
(Choudhury and Hahne 1998).
"""

import logging
import os
import threading
from io import BufferedReader, BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

MEMORY_BYTES = 64 << 20
"""Bytes of bodies that a worker keeps in memory."""

DISK_BYTES = 1 << 30
"""Bytes of bodies that a worker keeps in temporary files."""

ITEM_MEMORY_BYTES = 512 << 10
"""Bytes of one body above which the body goes to a temporary file."""


def spool_folder(data_dir: Path) -> Path:
    """Return the folder of the temporary files of a host's workers."""
    return data_dir / ".spool"


class SpoolBudget:
    """The memory and disk space for all bodies of a worker. Thread-safe.

    Args:
        folder: the folder of the temporary files; None for the system's folder.
        memory_bytes: maximum number of bytes in memory.
        disk_bytes: maximum number of bytes in temporary files.
    """

    def __init__(
        self,
        folder: Path | None = None,
        memory_bytes: int = MEMORY_BYTES,
        disk_bytes: int = DISK_BYTES,
    ) -> None:
        self.folder = folder
        self.memory = _Room(memory_bytes)
        self.disk = _Room(disk_bytes)


_logger = logging.getLogger(__name__)


class _Room:
    """A number of bytes that tenants share."""

    def __init__(self, size_bytes: int) -> None:
        self._lock = threading.Lock()  # the lock protects the numbers
        self._free_bytes = size_bytes
        self._used: dict[str, int] = {}

    def take(self, tenant: str, size_bytes: int) -> bool:
        """Reserve bytes for a tenant; return False if the tenant may not have them now."""
        if not size_bytes:
            return True
        with self._lock:
            used = self._used.get(tenant, 0) + size_bytes
            if used > self._free_bytes - size_bytes:
                return False
            self._free_bytes -= size_bytes
            self._used[tenant] = used
            return True

    def give_back(self, tenant: str, size_bytes: int) -> None:
        """Free reserved bytes."""
        if not size_bytes:
            return
        with self._lock:
            self._free_bytes += size_bytes
            left = self._used[tenant] - size_bytes
            if left:
                self._used[tenant] = left
            else:
                del self._used[tenant]


class Spool:
    """One body: bytes are added at the end, and read from any position.

    `close` returns the space to the budget.

    A spool is not thread-safe, because only one thread at a time uses a spool.
    """

    __slots__ = ("_budget", "_file", "_memory", "_tenant", "size_bytes")

    def __init__(self, budget: SpoolBudget, tenant: str) -> None:
        self._budget = budget
        self._tenant = tenant
        self._memory: BytesIO | None = BytesIO()
        self._file: BinaryIO | None = None
        self.size_bytes = 0

    def write(self, data: bytes | memoryview) -> bool:
        """Add bytes at the end.

        If the budget is used up or the disk is full, add nothing and return False.
        """
        size = len(data)
        if self._memory is not None:
            fits = self.size_bytes + size <= ITEM_MEMORY_BYTES
            if fits and self._budget.memory.take(self._tenant, size):
                self._memory.write(data)
                self.size_bytes += size
                return True
        moved = 0 if self._memory is None else self.size_bytes
        if not self._budget.disk.take(self._tenant, moved + size):
            return False
        file = self._file
        try:
            if file is None:
                file = self._new_file()
            _write_at(file, self.size_bytes, data)
        except OSError as error:
            self._budget.disk.give_back(self._tenant, moved + size)
            if file is not None and file is not self._file:
                file.close()
            _logger.error("spool.write_failed", extra={"reason": str(error)})
            return False
        if self._memory is not None:
            self._budget.memory.give_back(self._tenant, self.size_bytes)
        self._memory, self._file = None, file
        self.size_bytes += size
        return True

    def _new_file(self) -> BinaryIO:
        """Return a temporary file with the bytes that are in memory."""
        folder = self._budget.folder
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The file has no name, so a dead worker leaves no file.
        file: Any = TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - `close` closes the file
        try:
            if self._memory is not None:
                _write_at(file, 0, self._memory.getvalue())
        except OSError:
            file.close()
            raise
        return file  # type: ignore[no-any-return]

    def read_at(self, position: int, size_bytes: int) -> bytes:
        """Return bytes from a position."""
        if self._memory is not None:
            self._memory.seek(position)
            data = self._memory.read(size_bytes)
            self._memory.seek(0, os.SEEK_END)
            return data
        assert self._file is not None  # noqa: S101 - the bytes are in memory or in the file
        return os.pread(self._file.fileno(), size_bytes, position)

    def as_input(self) -> BinaryIO:
        """Return the whole body as a file, for `wsgi.input`."""
        file: Any = self._memory
        if self._file is not None:
            file = self._file = BufferedReader(self._file)  # type: ignore[type-var]
        file.seek(0)
        return file  # type: ignore[no-any-return]

    def close(self) -> None:
        """Return the space to the budget. Idempotent."""
        if self._memory is not None:
            self._budget.memory.give_back(self._tenant, self.size_bytes)
        elif self._file is not None:
            self._file.close()
            self._budget.disk.give_back(self._tenant, self.size_bytes)
        self._memory, self._file, self.size_bytes = None, None, 0


def _write_at(file: BinaryIO, position: int, data: bytes | memoryview) -> None:
    """Write all bytes at a position of an unbuffered file.

    Raises:
        OSError: the disk is full.
    """
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file.fileno(), rest, position)
        position += written
        rest = rest[written:]
