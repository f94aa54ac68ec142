"""A limit on the memory that all tenants of a process together use for one purpose."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

DECODING_MEMORY = "tenantry.decoding_memory"
"""Key in `app.extensions` of the process's `MemoryBudget` for decoding images and other media. A
small file may decode to hundreds of MiB, so a limit for each request is not enough."""

DECODING_BYTES = 300 * 1024 * 1024
"""Memory for all images that a process decodes at once; enough for the largest image."""

DECODING_WAIT_S = 3.0
"""Time limit for a request to wait for memory. Decoding one of the largest images takes 0.5 s."""


class MemoryBudget:
    """A limit on the bytes reserved at once. Each process has one budget per purpose. Thread-safe.

    Args:
        limit_bytes: maximum sum of all reservations.
        wait_s: seconds that a reservation waits for other reservations to end.
    """

    def __init__(self, limit_bytes: int, wait_s: float) -> None:
        self._limit_bytes = self._free_bytes = limit_bytes
        self._wait_s = wait_s
        self._changed = threading.Condition()  # The condition protects `_free_bytes`.

    @contextmanager
    def reserve(self, size_bytes: int) -> Iterator[None]:
        """Reserve bytes for the block. A size above the limit reserves the whole limit.

        Raises:
            TimeoutError: the bytes were not free within `wait_s`.
        """
        size_bytes = min(size_bytes, self._limit_bytes)
        with self._changed:
            if not self._changed.wait_for(lambda: self._free_bytes >= size_bytes, self._wait_s):
                raise TimeoutError(f"{size_bytes:,} bytes were not free within {self._wait_s} s")
            self._free_bytes -= size_bytes
        try:
            yield
        finally:
            with self._changed:
                self._free_bytes += size_bytes
                self._changed.notify_all()
