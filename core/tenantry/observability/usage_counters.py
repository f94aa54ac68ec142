"""Usage counters: the usage of each tenant in one process, in a file that survives the process.

Each process counts in its own memory-mapped file under `<data>/.usage/`. Even after `kill -9`, the
kernel's page cache has the counts. A tenant gets a row in the file when the tenant first has
traffic. Any process can read all files at any time, and `usage_store` adds up the counts of all
processes, including those that have ended.

The multiprocess mode of prometheus-client could not replace these counters: its files have no
history for bills (`usage --since`), grow in number with each restart of a worker, and must be
deleted when the host starts, which resets the totals.
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
"""Maximum number of rows in a file, one for each tenant. If there are more tenants than rows, the
last row counts all remaining tenants together."""

OVERFLOW = "(others)"
"""The name of the last row in a full file, which no tenant can have."""

_logger = logging.getLogger(__name__)


class Counts(NamedTuple):
    """The usage of one tenant. No count ever decreases."""

    requests: int = 0
    errors: int = 0
    """Number of 5xx responses that are not refusals, and of incomplete responses."""
    refusals: int = 0
    """Number of responses that the host sent instead of the app."""
    bytes_in: int = 0
    """Number of request body bytes that the host or the app read."""
    bytes_out: int = 0
    """Number of response body bytes that the host passed to the server."""
    wall_ns: int = 0
    processor_ns: int = 0
    """CPU time of the threads that ran the tenant's requests, in nanoseconds."""
    database_ns: int = 0
    queries: int = 0
    build_ns: int = 0
    """Duration of builds of the tenant's instances, including failed builds, in nanoseconds."""
    builds: int = 0
    """Number of built instances."""
    sleeps: int = 0
    """Number of evicted instances."""
    overdue: int = 0
    """Number of requests that were reported at their deadline."""
    uncounted: int = 0
    """Number of requests that the rate limit admitted because the rate storage did not respond."""
    used_ns: int = 0
    """Time at which the tenant's last request ended, in nanoseconds since the epoch, or 0."""

    def plus(self, other: "Counts") -> "Counts":
        """Return the sum of two counts, with the later `used_ns`."""
        sums = (a + b for a, b in zip(self, other, strict=True))
        return Counts(*sums)._replace(used_ns=max(self.used_ns, other.used_ns))

    def minus(self, earlier: "Counts") -> "Counts":
        """Return the counts since an earlier reading, with an unchanged `used_ns`."""
        differences = (a - b for a, b in zip(self, earlier, strict=True))
        return Counts(*differences)._replace(used_ns=self.used_ns)


ZERO = Counts()


def sum_counts(counts: Iterable[Counts]) -> Counts:
    """Return the sum of all counts, with the latest `used_ns`."""
    result = ZERO
    for each in counts:
        result = result.plus(each)
    return result


# -- the file: a header, then one row for each tenant ---------------------------------------------

_FIELDS = (
    "requests", "errors", "refusals", "bytes_in", "bytes_out", "wall_ns", "processor_ns",
    "database_ns", "queries", "build_ns", "builds", "sleeps", "used_ns", "overdue", "uncounted",
)  # fmt: skip
"""The numbers of a row, in their order. A new release adds numbers only at the end, so that files
of older releases remain readable."""

_OFFSETS = {field: offset for offset, field in enumerate(_FIELDS)}
_MAGIC = int.from_bytes(b"tntryl\0\1", "little")
_WORD_BYTES = 8
_NAME_BYTES = 64  # a tenant's name has at most 63 characters
_ROW = struct.Struct(f"={_NAME_BYTES}s{len(_FIELDS)}Q8x")  # 8 free bytes for one more number
_REQUEST = struct.Struct("=7Q")  # the numbers of a row that each request changes
_HEADER = struct.Struct("=4Q")  # magic, number of rows, process ID, start time
_ROW_COUNT = 1  # index of a 64-bit word in the file's header
_HEADER_BYTES = 4096
_FILE_BYTES = _HEADER_BYTES + ROWS * _ROW.size
_SUFFIX = ".ledger"


class UsageCounters:
    """The usage counters of one process. Thread-safe.

    The counts are in a file between `open` and `close`, and otherwise only in memory.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # the lock protects all attributes and the rows
        self._fd = -1
        self.path: Path | None = None
        """The path of the file; None while the counts are only in memory."""
        self._use(mmap.mmap(-1, _FILE_BYTES))

    def _use(self, memory: mmap.mmap) -> None:
        self._bytes = memoryview(memory)
        self._words = self._bytes.cast("Q")
        self._rows: dict[str, int] = {}  # tenant → index of the tenant's first word

    def open(self, folder: Path) -> None:
        """Start to count from zero in a new file, or in memory if the file cannot be created.

        Each serving process calls `open` once, before the first request.
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
        """In a forked process, discard the counts and the file of the parent process."""
        self._lock = threading.Lock()  # a thread of the parent may hold the old lock
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
            os.close(self._fd)  # closing the file also releases its lock
        self._fd, self.path = -1, None

    def add_request(self, record: RequestRecord) -> None:
        """Count one request of a tenant."""
        with self._lock:
            row = self._rows.get(record.tenant) or self._new_row(record.tenant)
            start = row * _WORD_BYTES
            requests, errors, refusals, bytes_in, bytes_out, wall_ns, processor_ns = (
                _REQUEST.unpack_from(self._bytes, start)
            )
            _REQUEST.pack_into(
                self._bytes,
                start,
                requests + 1,
                errors + record.is_error,
                refusals + record.is_refusal,
                bytes_in + record.bytes_in,
                bytes_out + record.bytes_out,
                wall_ns + record.wall_ns,
                processor_ns + record.processor_ns,
            )
            self._words[row + _OFFSETS["used_ns"]] = time.time_ns()

    def add(self, tenant: str, **amounts: int) -> None:
        """Add amounts to the counts of a tenant, like `add("acme", queries=1, database_ns=7)`."""
        with self._lock:
            row = self._rows.get(tenant) or self._new_row(tenant)
            for field, amount in amounts.items():
                self._words[row + _OFFSETS[field]] += amount

    def counts(self) -> dict[str, Counts]:
        """Return the counts of each tenant in this process."""
        with self._lock:
            return dict(_parse_rows(bytes(self._bytes[_HEADER_BYTES : _end(len(self._rows))])))

    def _new_row(self, tenant: str) -> int:
        count = self._words[_ROW_COUNT]
        if count >= ROWS - 1 and tenant != OVERFLOW:
            return self._rows.get(OVERFLOW) or self._new_row(OVERFLOW)
        start = _end(count)
        self._bytes[start : start + _NAME_BYTES] = tenant.encode().ljust(_NAME_BYTES, b"\0")
        # The number of rows is written last, because it makes the new row visible to readers.
        self._words[_ROW_COUNT] = count + 1
        row = self._rows[tenant] = (start + _NAME_BYTES) // _WORD_BYTES
        return row


def counters_folder(data_dir: Path) -> Path:
    """Return the folder of the usage counters' files."""
    return data_dir / ".usage"


@dataclass(frozen=True)
class ProcessCounts:
    """The content of the usage counters' file of one process."""

    path: Path
    pid: int
    started_ns: int
    """Time at which the process started to count, in nanoseconds since the epoch."""
    counts: dict[str, Counts]


def read_counters(folder: Path) -> list[ProcessCounts]:
    """Read the files of all processes, including ended processes that are not collected yet."""
    files = (read_counters_file(path) for path in counters_files(folder))
    return [file for file in files if file is not None]


def counters_files(folder: Path) -> list[Path]:
    """Return the paths of the usage counters' files of all processes."""
    return sorted(folder.glob(f"*{_SUFFIX}"))


def read_counters_file(path: Path) -> ProcessCounts | None:
    """Read one counters file; return None if it is deleted, incomplete or in another format."""
    try:
        with path.open("rb", buffering=0) as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return None  # the process is just creating the file
            magic, count, pid, started_ns = _HEADER.unpack(header)
            if magic != _MAGIC:
                return None
            rows = os.pread(file.fileno(), count * _ROW.size, _HEADER_BYTES)
    except OSError:
        return None
    return ProcessCounts(path, pid, started_ns, dict(_parse_rows(rows)))


def lock_if_ended(path: Path) -> int | None:
    """Lock the file of a process that has ended, and return the file's descriptor.

    Closing the descriptor releases the lock. If the process still runs, the function returns None.
    """
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return None
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # If the inodes differ, another process has deleted the file.
        if path.stat().st_ino == os.fstat(fd).st_ino:
            return fd
    os.close(fd)
    return None


def _create_file(folder: Path) -> tuple[int, Path]:
    """Create a file that stays locked while this process lives; return its descriptor and path.

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
    """Lock a new file and write its header. Return False if a collection has locked the file."""
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
