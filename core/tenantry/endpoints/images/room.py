"""How much memory the pictures of all tenants may take while they are decoded.

One room for a process, in a module that its apps share.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import BusyError


class DecodingRoom:
    """The memory that pictures may take while they are decoded. Safe in any thread.

    Args:
        size_bytes: of all of them together.
        wait_s: how long one waits for others.
    """

    def __init__(self, size_bytes: int, wait_s: float) -> None:
        self._size_bytes = self._free_bytes = size_bytes
        self._wait_s = wait_s
        self._changed = threading.Condition()  # guards `_free_bytes`

    @contextmanager
    def taking(self, size_bytes: int) -> Iterator[None]:
        """Take some of it for the block; what is larger than all of it takes all.

        Raises:
            BusyError: it is not free in time.
        """
        size_bytes = min(size_bytes, self._size_bytes)
        with self._changed:
            if not self._changed.wait_for(lambda: self._free_bytes >= size_bytes, self._wait_s):
                raise BusyError
            self._free_bytes -= size_bytes
        try:
            yield
        finally:
            with self._changed:
                self._free_bytes += size_bytes
                self._changed.notify_all()
