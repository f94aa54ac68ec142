"""Counts of rate limits that all processes of a host share without an additional server.

Each tenant with a `RATE_LIMIT` has a file under `<data>/.rates/`, which each process maps into its
memory. The counts remain after the processes end, so the rate also holds across restarts of workers
and of the host. The files work under any WSGI server.

A file contains the time of each counted request, so that the sliding window is exact for rates of
up to `ENTRIES` requests. For higher rates, requests in the same 251st part of the window share an
entry. The entry expires with its last request. Therefore, a window never contains more requests
than the rate, and a request is admitted at most 0.4 % of the window too late.

A process counts under a file lock (`flock`), which the kernel releases when the process dies.
Each tenant's file has a separate lock. Counting a request takes 10 µs (68,000 instructions), of
which the two system calls for the lock take 3 µs (2026-12).
"""

import fcntl
import hashlib
import logging
import math
import mmap
import os
import resource
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path

from limits import RateLimitItem

from tenantry.middleware.rate_storage import RateCount

ENTRIES = 252
"""Number of entries for one rate. The entries and the header fit into one page of memory."""

LOCK_WAIT_S = 0.1
"""Maximum seconds that a request waits for the file lock. A process holds the lock for some
microseconds, but for longer if the process is stopped (`SIGSTOP`) or gets no processor time."""

LOCK_PAUSE_S = 1.0
"""Seconds for which a process admits a tenant's requests without counting them, after the process
has failed to get the lock. Otherwise, a stopped process would delay each request."""

POLL_S = 0.0002
"""Seconds between two attempts to get the file lock."""

KEPT_S = 86_400.0
"""Seconds after which a file without an unexpired entry is deleted."""

_PAGE_BYTES = 4096
_HEADER = struct.Struct("=16sQQII")
"""The fields of the header: the boot ID of the system, the maximum number of seconds
that an entry counts, the number of the last request before the first entry, the index of the first
entry, and the number of entries."""

_ENTRY = struct.Struct("=QQ")
"""The time of the entry's last request in nanoseconds, and that request's consecutive number."""

_FIRST_ENTRY = 64
_DELETED = b"deleted".ljust(16, b"\0")
_NS = 1_000_000_000

_logger = logging.getLogger(__name__)

Rates = tuple[RateLimitItem, ...]


class HostStorage:
    """Counts in files that all processes of the host share. Thread-safe.

    If a file cannot be created, this process counts the tenant's requests alone.

    Args:
        folder: the folder of the files; None to count in the memory of this process.
        clock: returns seconds since the start of the system. The system clock is unsuitable,
            because the system clock can jump.
    """

    def __init__(self, folder: Path | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()  # the lock protects `_files`
        self._files: OrderedDict[tuple[str, Rates], _RateFile] = OrderedDict()
        # Each open file needs a file descriptor, but connections need most file descriptors.
        self._max_files = max(8, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8, 1024))
        self.unanswered_total = 0
        """Number of requests that were admitted without being counted. The number is approximate,
        because no lock protects it."""
        if folder is not None:
            with suppress(OSError):  # without the folder, this process counts alone
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _delete_old_files(folder)

    def hit(self, tenant: str, rates: Rates) -> list[RateCount] | None:
        """Count a request if it fits all rates.

        Return all counts, or the count of the exceeded rate.

        Return None if another process keeps the lock.
        """
        while True:
            file = self._file_of(tenant, rates)
            if (refusal := file.known_refusal(self._now_ns())) is not None:
                return [refusal]
            if not file.acquire():
                self.unanswered_total += 1
                return None
            try:
                if file.is_deleted:
                    with self._lock:
                        self._files.pop((tenant, rates), None)
                    continue
                return file.count(self._now_ns())
            finally:
                file.release()

    def _now_ns(self) -> int:
        return int(self._clock() * _NS)

    def _file_of(self, tenant: str, rates: Rates) -> "_RateFile":
        key = tenant, rates
        with self._lock:
            file = self._files.get(key)
            if file is not None:
                self._files.move_to_end(key)
                return file
        opened = _open(self._folder, tenant, rates)
        with self._lock:
            file = self._files.setdefault(key, opened)
            if len(self._files) > self._max_files:
                self._files.popitem(last=False)  # the file is closed after its last use
        return file

    def close(self) -> None:
        """Close the files. Idempotent."""
        with self._lock:
            self._files.clear()


class _RateFile:
    """The open file of one tenant's rates. Thread-safe. The last reference closes the file."""

    def __init__(self, fd: int, rates: Rates) -> None:
        self._fd = fd
        # This lock protects the pages in this process, because `flock` only excludes other
        # processes.
        self._lock = threading.Lock()
        self._pause_until = 0.0
        self._full = (0, 0, 0)  # the end of a full window in nanoseconds, its limit and its length
        size_bytes = len(rates) * _PAGE_BYTES
        self._memory = memoryview(mmap.mmap(fd, size_bytes))
        self._pages = [
            _RatePage(self._memory[start : start + _PAGE_BYTES], rate)
            for start, rate in zip(range(0, size_bytes, _PAGE_BYTES), rates, strict=True)
        ]

    def acquire(self) -> bool:
        """Lock the file; return False if another thread or process keeps the lock for too long."""
        return self._acquire_now(wait_s=0) or self._acquire_late()

    def _acquire_now(self, *, wait_s: float) -> bool:
        """Lock the file if it is free; wait only for other threads of this process."""
        if not self._lock.acquire(timeout=wait_s):
            return False
        try:
            if self._fd >= 0:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.release()
            return False
        return True

    def _acquire_late(self) -> bool:
        now = time.monotonic()
        if now < self._pause_until:
            return False
        while time.monotonic() < now + LOCK_WAIT_S:
            if self._acquire_now(wait_s=POLL_S):
                return True
            time.sleep(POLL_S)
        self._pause_until = time.monotonic() + LOCK_PAUSE_S
        return False

    def known_refusal(self, now_ns: int) -> RateCount | None:
        """Return the count of a rate that is known to be exceeded, without locking the file.

        While a window is full, no process admits a request before the oldest entry expires.
        """
        until_ns, limit, window_s = self._full
        if now_ns >= until_ns or self.is_deleted:
            return None
        return RateCount(False, limit, window_s, 0, (until_ns - now_ns) / _NS)

    def count(self, now_ns: int) -> list[RateCount]:
        """Count a request if it fits all rates. The caller has locked the file."""
        used = []
        for page in self._pages:
            used.append(page.look(now_ns))
            if used[-1] >= page.limit:
                wait_s = page.wait_s(now_ns)
                self._full = now_ns + int(wait_s * _NS), page.limit, page.window_s
                return [RateCount(False, page.limit, page.window_s, 0, wait_s)]
        for page in self._pages:
            page.add(now_ns)
        return [
            RateCount(True, page.limit, page.window_s, page.limit - number - 1, page.wait_s(now_ns))
            for page, number in zip(self._pages, used, strict=True)
        ]

    def release(self) -> None:
        """Unlock the file."""
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._lock.release()

    @property
    def is_deleted(self) -> bool:
        """Whether another process has deleted the file."""
        return self._memory[:16] == _DELETED

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class _RatePage:
    """The requests of one rate, in a ring of entries. The caller holds the file's lock."""

    def __init__(self, memory: memoryview, rate: RateLimitItem) -> None:
        self._memory = memory
        self.limit = rate.amount
        self.window_s = rate.get_expiry()
        self._window_ns = self.window_s * _NS
        is_exact = rate.amount <= ENTRIES
        self._step_ns = 1 if is_exact else math.ceil(self._window_ns / (ENTRIES - 1))
        self._base = self._first = self._length = 0

    def look(self, now_ns: int) -> int:
        """Drop expired entries, and return the number of requests in the window."""
        boot, _, self._base, self._first, self._length = _HEADER.unpack_from(self._memory)
        if boot != _BOOT or self._first >= ENTRIES or self._length > ENTRIES:
            self._base = self._first = self._length = 0
        while self._length:
            at_ns, number = self._entry(0)
            if now_ns - self._window_ns < at_ns <= now_ns + self._step_ns + _NS:
                break
            self._base, self._first = number, (self._first + 1) % ENTRIES
            self._length -= 1
        return self._newest()[1] - self._base

    def add(self, now_ns: int) -> None:
        """Count a request. The caller must call `look` first."""
        at_ns = now_ns - now_ns % -self._step_ns  # round up to the end of the step
        newest_ns, number = self._newest()
        if newest_ns != at_ns or not self._length:
            self._length += 1
        place = (self._first + self._length - 1) % ENTRIES
        _ENTRY.pack_into(self._memory, _FIRST_ENTRY + place * _ENTRY.size, at_ns, number + 1)
        # The header makes the entry visible. If the process is killed before this line, the request
        # is not counted, but no response has been sent.
        header = _BOOT, self.window_s, self._base, self._first, self._length
        _HEADER.pack_into(self._memory, 0, *header)

    def wait_s(self, now_ns: int) -> float:
        """Return the seconds until the oldest entry expires. The caller must call `look` first."""
        at_ns = self._entry(0)[0] if self._length else now_ns
        return (at_ns + self._window_ns - now_ns) / _NS

    def _newest(self) -> tuple[int, int]:
        return self._entry(self._length - 1) if self._length else (0, self._base)

    def _entry(self, number: int) -> tuple[int, int]:
        place = (self._first + number) % ENTRIES
        at_ns, last = _ENTRY.unpack_from(self._memory, _FIRST_ENTRY + place * _ENTRY.size)
        return at_ns, last


def delete_counts(folder: Path, tenant: str) -> None:
    """Delete the counts of a tenant, so that a new tenant of that name begins at zero."""
    for path in folder.glob(f"{tenant}@*"):
        with suppress(OSError), path.open("r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _delete(file, path)


def _open(folder: Path | None, tenant: str, rates: Rates) -> _RateFile:
    if folder is None:
        return _RateFile(-1, rates)
    text = repr([(rate.amount, rate.get_expiry()) for rate in rates])
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    path = folder / f"{tenant}@{digest}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Without an allocated block, the first write to the page would kill the process if the
            # disk is full.
            os.posix_fallocate(fd, 0, len(rates) * _PAGE_BYTES)
            return _RateFile(fd, rates)
        except OSError:
            os.close(fd)
            raise
    except OSError as error:
        reason = f"{error.strerror}; each process counts alone"
        _logger.error("rates.file_failed", extra={"tenant": tenant, "reason": reason})
        return _RateFile(-1, rates)


def _delete_old_files(folder: Path) -> None:
    for path in folder.iterdir():
        with suppress(OSError, struct.error):
            if time.time() - path.stat().st_mtime > KEPT_S:
                _delete_if_old(path)


def _delete_if_old(path: Path) -> None:
    """Delete a file, unless its longest rate may still count requests in the file."""
    with path.open("r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        pages = range(0, os.fstat(file.fileno()).st_size, _PAGE_BYTES)
        headers = (os.pread(file.fileno(), _HEADER.size, start) for start in pages)
        longest_s = max(_HEADER.unpack(header)[1] for header in headers)
        if time.time() - path.stat().st_mtime > longest_s + KEPT_S:
            _delete(file, path)


def _delete(file: FileIO, path: Path) -> None:
    """Delete a locked file. Processes that have mapped the file then open a new one."""
    os.pwrite(file.fileno(), _DELETED, 0)
    path.unlink()


def _boot() -> bytes:
    """Return the boot ID of the system. The clock of the entries starts at each boot."""
    with suppress(OSError):
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
        return bytes.fromhex(text.strip().replace("-", ""))
    return bytes(15) + b"\1"  # some systems, such as macOS, have no boot ID


_BOOT = _boot()
