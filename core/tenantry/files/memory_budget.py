"""A limit on memory that all tenants of a process use together for one purpose."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

DECODING_MEMORY = "tenantry.decoding_memory"
"""Key in `app.extensions` of the process's `MemoryBudget` for decoding images and other media. A
small file may decode to hundreds of MiB, so a limit for each request alone is not enough."""

DECODING_BYTES = 300 * 1024 * 1024
"""Memory for everything that a process decodes at once; enough for the largest image."""

DECODING_WAIT_S = 3.0
"""How long a request waits for this memory. Decoding the largest images takes 0.5 s each."""


class MemoryBudget:
    """Bytes that may be reserved at once. One for each process and purpose. Thread-safe.

    Args:
        limit_bytes: sum of all reservations.
        wait_s: how long a reservation waits for others to end.
    """

    def __init__(self, limit_bytes: int, wait_s: float) -> None:
        self._limit_bytes = self._free_bytes = limit_bytes
        self._wait_s = wait_s
        self._changed = threading.Condition()  # protects `_free_bytes`

    @contextmanager
    def reserve(self, size_bytes: int) -> Iterator[None]:
        """Reserve bytes for the block. A size above the limit reserves all of it.

        Raises:
            TimeoutError: they were not free within `wait_s`.
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
