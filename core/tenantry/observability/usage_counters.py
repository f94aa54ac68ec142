"""The ledger: who used what in this process, in a file that outlives it.

Each process maps a file of its own under `<data>/.usage/` and counts in it: what it counted is in
the page cache when it is killed. A row per tenant that had traffic; the others cost nothing. Any
process may read all files at any moment. Who sums them up over deaths and restarts is `usage`.
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

ROWS = 16_384
"""Tenants that one process can tell apart; the last row is of all that came later."""

OVERFLOW = "(others)"
"""The name of that row; no tenant has such a one."""

_MAGIC = int.from_bytes(b"tntryl\0\1", "little")
_WORD_BYTES = 8
_HEADER_BYTES = 4096
_NAME_BYTES = 64  # a tenant's name has at most 63
_ROOM = 16  # words of a row; some have no meaning yet
_ROW = struct.Struct(f"={_NAME_BYTES}s{_ROOM}Q")
_HEADER = struct.Struct("=4Q")
_FILE_BYTES = _HEADER_BYTES + ROWS * _ROW.size
_COUNT = 1  # place of the number of rows among the header's words
_SUFFIX = ".ledger"

_logger = logging.getLogger(__name__)


class Counts(NamedTuple):
    """What a tenant used. Times are in nanoseconds; each only grows."""

    requests: int = 0
    errors: int = 0
    """Answers of 5xx that are no refusals, and those that broke off."""
    refusals: int = 0
    """Answers that the host gave without asking its app."""
    bytes_in: int = 0
    """Of request bodies, as far as they were read."""
    bytes_out: int = 0
    """Of response bodies, as handed to the server."""
    wall_ns: int = 0
    processor_ns: int = 0
    """Of the threads that ran its requests."""
    database_ns: int = 0
    queries: int = 0
    build_ns: int = 0
    builds: int = 0
    """Instances that were built."""
    sleeps: int = 0
    """Instances that were put to sleep."""
    overdue: int = 0
    """Requests that were reported for running longer than their deadline."""
    uncounted: int = 0
    """Requests that passed without being counted for a rate: its storage did not answer."""
    used_ns: int = 0
    """When it had its last request (nanoseconds since the epoch); 0 for never."""

    def plus(self, other: "Counts") -> "Counts":
        """Return both together; of the times of last use, the later."""
        sums = (a + b for a, b in zip(self, other, strict=True))
        return Counts(*sums)._replace(used_ns=max(self.used_ns, other.used_ns))

    def minus(self, earlier: "Counts") -> "Counts":
        """Return what came after an earlier reading; the time of last use stays."""
        rests = (a - b for a, b in zip(self, earlier, strict=True))
        return Counts(*rests)._replace(used_ns=self.used_ns)


NOTHING = Counts()

_OF_REQUESTS = struct.Struct("=7Q")  # the first counts, to `processor_ns`
# As they came: what was written by an older release is read as it is.
_DATABASE, _QUERIES, _BUILD, _BUILDS, _SLEEPS, _USED, _OVERDUE, _UNCOUNTED = range(7, 15)


class UsageCounters:
    """What this process counts. Thread-safe. In memory until `open`, and after `close`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects all below, and each row's words while they change
        self._fd = -1
        self.path: Path | None = None
        """The file; None while it counts in memory, which nobody sees."""
        self._begin(mmap.mmap(-1, _FILE_BYTES))

    def _begin(self, memory: mmap.mmap) -> None:
        self._bytes = memoryview(memory)
        self._words = self._bytes.cast("Q")
        self._rows: dict[str, int] = {}  # name → place of its first word, never 0

    def open(self, folder: Path) -> None:
        """Count in a new file in `folder` from now on, from nothing; in memory if none can be had.

        Called in each process that serves, when it begins to.
        """
        try:
            fd, path = _new_file(folder)
        except OSError as error:  # a full disk: serving goes on
            facts = {"folder": str(folder), "reason": error.strerror}
            _logger.error("ledger.kept_in_memory", extra=facts)
            self.close()
            return
        memory = mmap.mmap(fd, _FILE_BYTES)
        with self._lock:
            self._let_go()
            self._fd, self.path = fd, path
            self._begin(memory)

    def begin_anew(self) -> None:
        """Forget what a parent process counted, and its file; in a process that was forked."""
        self._lock = threading.Lock()  # another thread of the parent may have had it
        self.close()

    def close(self) -> None:
        """Let the file go, for others to sum it up. Idempotent; what comes later is in memory."""
        with self._lock:
            self._let_go()
            self._begin(mmap.mmap(-1, _FILE_BYTES))

    def _let_go(self) -> None:
        self._words.release()
        self._bytes.release()
        if self._fd >= 0:
            os.close(self._fd)  # and its lock goes
        self._fd, self.path = -1, None

    def note_request(  # noqa: PLR0917 - by place: it is called for each request
        self,
        tenant: str,
        is_error: bool,
        is_refusal: bool,
        bytes_in: int,
        bytes_out: int,
        wall_ns: int,
        processor_ns: int,
    ) -> None:
        """Count one request that has ended; it is called once for each, and costs 2 µs."""
        with self._lock:
            row = self._rows.get(tenant) or self._new_row(tenant)
            start = row * _WORD_BYTES
            # At once: word by word it takes twice as long.
            requests, errors, refusals, read, sent, wall, processor = _OF_REQUESTS.unpack_from(
                self._bytes, start
            )
            _OF_REQUESTS.pack_into(
                self._bytes,
                start,
                requests + 1,
                errors + is_error,
                refusals + is_refusal,
                read + bytes_in,
                sent + bytes_out,
                wall + wall_ns,
                processor + processor_ns,
            )
            self._words[row + _USED] = time.time_ns()

    def note_query(self, tenant: str, database_ns: int) -> None:
        """Count one query."""
        with self._lock:
            row = self._rows.get(tenant) or self._new_row(tenant)
            self._words[row + _QUERIES] += 1
            self._words[row + _DATABASE] += database_ns

    def note_build(self, tenant: str, build_ns: int, *, is_good: bool) -> None:
        """Count one build of an instance; its time also where it failed."""
        with self._lock:
            row = self._rows.get(tenant) or self._new_row(tenant)
            self._words[row + _BUILD] += build_ns
            self._words[row + _BUILDS] += is_good

    def note_sleep(self, tenant: str) -> None:
        """Count one instance that was put to sleep."""
        self._add_one(tenant, _SLEEPS)

    def note_overdue(self, tenant: str) -> None:
        """Count one request that was reported at its deadline."""
        self._add_one(tenant, _OVERDUE)

    def note_uncounted(self, tenant: str) -> None:
        """Count one request that no rate was asked about."""
        self._add_one(tenant, _UNCOUNTED)

    def _add_one(self, tenant: str, place: int) -> None:
        with self._lock:
            row = self._rows.get(tenant) or self._new_row(tenant)
            self._words[row + place] += 1

    def counts(self) -> dict[str, Counts]:
        """Return what this process has counted."""
        with self._lock:
            return dict(_rows_of(bytes(self._bytes[: _end_of(len(self._rows))])))

    def _new_row(self, tenant: str) -> int:
        number = self._words[_COUNT]
        if number >= ROWS - 1 and tenant != OVERFLOW:
            return self._rows.get(OVERFLOW) or self._new_row(OVERFLOW)
        start = _end_of(number)
        self._bytes[start : start + _NAME_BYTES] = tenant.encode().ljust(_NAME_BYTES, b"\0")
        self._words[_COUNT] = number + 1  # last: from here on it is read
        row = self._rows[tenant] = (start + _NAME_BYTES) // _WORD_BYTES
        return row


def counters_folder(data_dir: Path) -> Path:
    """Return where the files are; no tenant's name begins with a dot."""
    return data_dir / ".usage"


@dataclass(frozen=True)
class Reading:
    """What one process's file said when it was read."""

    path: Path
    pid: int
    started_ns: int
    """When the process began to count (nanoseconds since the epoch)."""
    counts: dict[str, Counts]


def read_counters(folder: Path) -> list[Reading]:
    """Read the files of all processes, those that have ended and are not summed up yet too."""
    readings = (read_counters_file(path) for path in sorted(folder.glob(f"*{_SUFFIX}")))
    return [one for one in readings if one is not None]


def read_counters_file(path: Path) -> Reading | None:
    """Read one file; None where it is gone, or none of ours."""
    try:
        with path.open("rb", buffering=0) as file:
            head = file.read(_HEADER.size)
            if len(head) < _HEADER.size:
                return None  # it is being made
            magic, count, pid, started_ns = _HEADER.unpack(head)
            if magic != _MAGIC:
                return None
            rows = os.pread(file.fileno(), count * _ROW.size, _HEADER_BYTES)
    except OSError:
        return None
    return Reading(path, pid, started_ns, dict(_rows_of(bytes(_HEADER_BYTES) + rows)))


def lock_if_ended(path: Path) -> int | None:
    """Return a descriptor that keeps a file for its caller, if the process that wrote it is gone.

    Whoever closes it lets others have the file.
    """
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return None
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino == os.fstat(fd).st_ino:  # noqa: PTH116 - or another one removed it
            return fd
    os.close(fd)
    return None


def total(counts: Iterable[Counts]) -> Counts:
    """Return the sum."""
    result = NOTHING
    for one in counts:
        result = result.plus(one)
    return result


def _new_file(folder: Path) -> tuple[int, Path]:
    """Make a file and return it open, locked for as long as this process has it.

    Raises:
        OSError: the folder or the file cannot be made whole.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        path = folder / f"{os.getpid()}-{secrets.token_hex(8)}{_SUFFIX}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if _fill(fd, path):
                return fd, path
        except OSError:
            path.unlink(missing_ok=True)
            os.close(fd)
            raise
        os.close(fd)


def _fill(fd: int, path: Path) -> bool:
    """Write an empty ledger; False if somebody took the file for one that was left behind."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino != os.fstat(fd).st_ino:  # noqa: PTH116 - as it is called
            return False
    except (BlockingIOError, FileNotFoundError):
        return False
    os.posix_fallocate(fd, 0, _FILE_BYTES)  # later a full disk would end the process by SIGBUS
    os.pwrite(fd, _HEADER.pack(_MAGIC, 0, os.getpid(), time.time_ns()), 0)
    return True


def _end_of(rows: int) -> int:
    return _HEADER_BYTES + rows * _ROW.size


def _rows_of(data: bytes) -> Iterator[tuple[str, Counts]]:
    whole = len(data) - (len(data) - _HEADER_BYTES) % _ROW.size
    for name, *words in _ROW.iter_unpack(data[_HEADER_BYTES:whole]):
        late = words[_OVERDUE], words[_UNCOUNTED], words[_USED]
        yield name.rstrip(b"\0").decode("ascii", "replace"), Counts._make((*words[:_USED], *late))
