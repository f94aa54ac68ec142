"""Usage counters: what each tenant uses in this process, in a file that survives the process.

Each process maps a file of its own under `<data>/.usage/` and counts in it. After `kill -9`, the
counts are still in the page cache. A tenant gets a row with its first traffic. Any process can read
all files at any time; `usage_store` adds them up over deaths and restarts.

prometheus-client's multiprocess mode does not replace this: its files have no history for bills
(`usage --since`), grow in number with each restart of a worker, and must be deleted when the host
starts, so that totals begin anew.
"""

import fcntl
import logging
import mmap
import os
import secrets
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tenantry.http.request_record import RequestRecord

ROWS = 16_384
"""Tenants that one process counts separately. The last row counts all later ones together."""

OVERFLOW = "(others)"
"""The name of the last row. It is not a valid name of a tenant."""

_logger = logging.getLogger(__name__)


class Counts(NamedTuple):
    """What a tenant has used. No count ever decreases."""

    requests: int = 0
    errors: int = 0
    """5xx responses that are not refusals, and responses that broke off."""
    refusals: int = 0
    """Responses that the host sent instead of the app."""
    bytes_in: int = 0
    """Bytes of request bodies that were read."""
    bytes_out: int = 0
    """Bytes of response bodies that were handed to the server."""
    wall_ns: int = 0
    processor_ns: int = 0
    """CPU time of the threads that ran its requests."""
    database_ns: int = 0
    queries: int = 0
    build_ns: int = 0
    """Includes failed builds."""
    builds: int = 0
    """Instances that were built."""
    sleeps: int = 0
    """Instances that were evicted."""
    overdue: int = 0
    """Requests that were reported at their deadline."""
    uncounted: int = 0
    """Requests that the rate limit let through because its storage did not answer."""
    used_ns: int = 0
    """When the last request ended, in nanoseconds since the epoch; 0 for never."""

    def plus(self, other: "Counts") -> "Counts":
        """Return the sum; `used_ns` is the later one."""
        sums = (a + b for a, b in zip(self, other, strict=True))
        return Counts(*sums)._replace(used_ns=max(self.used_ns, other.used_ns))

    def minus(self, earlier: "Counts") -> "Counts":
        """Return what was counted after an earlier reading; `used_ns` does not change."""
        differences = (a - b for a, b in zip(self, earlier, strict=True))
        return Counts(*differences)._replace(used_ns=self.used_ns)


ZERO = Counts()


def sum_counts(counts: Iterable[Counts]) -> Counts:
    """Return the sum; `used_ns` is the latest one."""
    result = ZERO
    for each in counts:
        result = result.plus(each)
    return result


# -- the file: a header, then one row for each tenant ---------------------------------------------

_FIELDS = (
    "requests", "errors", "refusals", "bytes_in", "bytes_out", "wall_ns", "processor_ns",
    "database_ns", "queries", "build_ns", "builds", "sleeps", "used_ns", "overdue", "uncounted",
)  # fmt: skip
"""The numbers of a row, in the order in which releases added them: files of an older release
remain readable."""

_OFFSETS = {field: offset for offset, field in enumerate(_FIELDS)}
_MAGIC = int.from_bytes(b"tntryl\0\1", "little")
_WORD_BYTES = 8
_NAME_BYTES = 64  # a tenant's name has at most 63
_ROW = struct.Struct(f"={_NAME_BYTES}s{len(_FIELDS)}Q8x")  # room for one more number
_HEADER = struct.Struct("=4Q")  # magic, number of rows, process ID, start time
_ROW_COUNT = 1  # the word of the header
_HEADER_BYTES = 4096
_FILE_BYTES = _HEADER_BYTES + ROWS * _ROW.size
_SUFFIX = ".ledger"


class UsageCounters:
    """The counters of this process. Thread-safe. In memory before `open` and after `close`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects all attributes, and each row while it changes
        self._fd = -1
        self.path: Path | None = None
        """The file; None while the counts are only in memory."""
        self._use(mmap.mmap(-1, _FILE_BYTES))

    def _use(self, memory: mmap.mmap) -> None:
        self._bytes = memoryview(memory)
        self._words = self._bytes.cast("Q")
        self._rows: dict[str, int] = {}  # tenant → index of its first word

    def open(self, folder: Path) -> None:
        """Start to count from zero in a new file; in memory if the file cannot be created.

        Each serving process calls this once, before its first request.
        """
        try:
            fd, path = _create_file(folder)
        except OSError as error:  # for example, the disk is full; the process must still serve
            facts = {"folder": str(folder), "reason": error.strerror}
            _logger.error("usage.kept_in_memory", extra=facts)
            self.close()
            return
        memory = mmap.mmap(fd, _FILE_BYTES)
        with self._lock:
            self._release()
            self._fd, self.path = fd, path
            self._use(memory)

    def reset_after_fork(self) -> None:
        """Discard the counts and the file of the parent process, in a forked process."""
        self._lock = threading.Lock()  # a thread of the parent may have held the old one
        self.close()

    def close(self) -> None:
        """Release the file, so that `usage_store` can collect and delete it. Idempotent."""
        with self._lock:
            self._release()
            self._use(mmap.mmap(-1, _FILE_BYTES))

    def _release(self) -> None:
        self._words.release()
        self._bytes.release()
        if self._fd >= 0:
            os.close(self._fd)  # releases the lock of the file, too
        self._fd, self.path = -1, None

    def add_request(self, record: RequestRecord) -> None:
        """Count one request of a tenant."""
        amounts = (
            1, record.is_error, record.is_refusal, record.bytes_in, record.bytes_out,
            record.wall_ns, record.processor_ns,
        )  # fmt: skip
        with self._lock:
            row = self._rows.get(record.tenant) or self._new_row(record.tenant)
            for word, amount in enumerate(amounts, row):
                self._words[word] += amount
            self._words[row + _OFFSETS["used_ns"]] = time.time_ns()

    def add(self, tenant: str, **amounts: int) -> None:
        """Add to counts of a tenant: `add("acme", queries=1, database_ns=7)`."""
        with self._lock:
            row = self._rows.get(tenant) or self._new_row(tenant)
            for field, amount in amounts.items():
                self._words[row + _OFFSETS[field]] += amount

    def counts(self) -> dict[str, Counts]:
        """Return what this process has counted."""
        with self._lock:
            return dict(_parse_rows(bytes(self._bytes[_HEADER_BYTES : _end(len(self._rows))])))

    def _new_row(self, tenant: str) -> int:
        count = self._words[_ROW_COUNT]
        if count >= ROWS - 1 and tenant != OVERFLOW:
            return self._rows.get(OVERFLOW) or self._new_row(OVERFLOW)
        start = _end(count)
        self._bytes[start : start + _NAME_BYTES] = tenant.encode().ljust(_NAME_BYTES, b"\0")
        self._words[_ROW_COUNT] = count + 1  # last: makes the row visible to readers
        row = self._rows[tenant] = (start + _NAME_BYTES) // _WORD_BYTES
        return row


def counters_folder(data_dir: Path) -> Path:
    """Return the folder of the files."""
    return data_dir / ".usage"


@dataclass(frozen=True)
class ProcessCounts:
    """The content of one process's file."""

    path: Path
    pid: int
    started_ns: int
    """When the process started to count, in nanoseconds since the epoch."""
    counts: dict[str, Counts]


def read_counters(folder: Path) -> list[ProcessCounts]:
    """Read the files of all processes, including ended ones that are not collected yet."""
    files = (read_counters_file(path) for path in counters_files(folder))
    return [file for file in files if file is not None]


def counters_files(folder: Path) -> list[Path]:
    """Return the paths of all files."""
    return sorted(folder.glob(f"*{_SUFFIX}"))


def read_counters_file(path: Path) -> ProcessCounts | None:
    """Read one file; None if it is gone, incomplete or of another format."""
    try:
        with path.open("rb", buffering=0) as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return None  # its process is just creating it
            magic, count, pid, started_ns = _HEADER.unpack(header)
            if magic != _MAGIC:
                return None
            rows = os.pread(file.fileno(), count * _ROW.size, _HEADER_BYTES)
    except OSError:
        return None
    return ProcessCounts(path, pid, started_ns, dict(_parse_rows(rows)))


def lock_if_ended(path: Path) -> int | None:
    """Lock a file whose process has ended, and return a descriptor; None if it still runs.

    Closing the descriptor releases the lock.
    """
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return None
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(fd).st_ino:  # else another process has deleted it
            return fd
    os.close(fd)
    return None


def _create_file(folder: Path) -> tuple[int, Path]:
    """Create a file and return it open; its lock lasts as long as this process.

    Raises:
        OSError: the folder or the file cannot be created at full size.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        path = folder / f"{os.getpid()}-{secrets.token_hex(8)}{_SUFFIX}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if _initialize(fd, path):
                return fd, path
        except OSError:
            path.unlink(missing_ok=True)
            os.close(fd)
            raise
        os.close(fd)


def _initialize(fd: int, path: Path) -> bool:
    """Lock a new file and write its header; False if a collecting process was faster."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino != os.fstat(fd).st_ino:
            return False
    except (BlockingIOError, FileNotFoundError):
        return False
    os.posix_fallocate(fd, 0, _FILE_BYTES)  # a sparse file on a full disk would raise SIGBUS later
    os.pwrite(fd, _HEADER.pack(_MAGIC, 0, os.getpid(), time.time_ns()), 0)
    return True


def _end(rows: int) -> int:
    return _HEADER_BYTES + rows * _ROW.size


def _parse_rows(data: bytes) -> Iterator[tuple[str, Counts]]:
    complete = len(data) - len(data) % _ROW.size
    for name, *words in _ROW.iter_unpack(data[:complete]):
        counts = dict(zip(_FIELDS, words, strict=True))
        yield name.rstrip(b"\0").decode("ascii", "replace"), Counts(**counts)
