"""Limits the memory that all tenants of a process use for one purpose."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

DECODING_MEMORY = "tenantry.decoding_memory"
"""Key in `app.extensions` of the `MemoryBudget` for decoding images.

Decoding a small image file may need hundreds of MiB, so a limit for each request is not enough.
"""

DECODING_BYTES = 300 * 1024 * 1024
"""Memory for all images that a process decodes at the same time.

The memory budget is large enough for one image of the maximum size.
"""

DECODING_WAIT_S = 3.0
"""Maximum seconds that a request waits for memory. Decoding a very large image takes 0.5 s."""


class MemoryBudget:
    """Limits the number of bytes that are reserved at the same time. Thread-safe.

    Args:
        limit_bytes: maximum sum of all reservations.
        wait_s: maximum time that a reservation waits for other reservations to end.
    """

    def __init__(self, limit_bytes: int, wait_s: float) -> None:
        self._limit_bytes = self._free_bytes = limit_bytes
        self._wait_s = wait_s
        self._changed = threading.Condition()  # the condition protects `_free_bytes`

    @contextmanager
    def reserve(self, size_bytes: int) -> Iterator[None]:
        """Reserve memory during the `with` block.

        If the size exceeds the limit, the whole limit is reserved.

        Raises:
            TimeoutError: the memory was not free within `wait_s`.
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
