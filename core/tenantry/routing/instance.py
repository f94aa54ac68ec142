"""An instance: an app with what belongs to it, from its build to its last response closed.

It counts leases: a request holds one until the server closes the response's body, for a body may
stream long after the app was called (PEP 3333 on `close()`). Retired, it closes with the last one.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from weakref import ref

from tenantry.http.response_close import on_close

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


_logger = logging.getLogger(__name__)


class Instance:
    """One app while it serves. Thread-safe; whoever takes it out of service retires it.

    Args:
        wsgi: the app, inside the layers that make it safe.
        close: frees what the app holds; called once.
        app: what should be freed with it, remembered weakly to see whether it is.
        clock: seconds.
    """

    __slots__ = (
        "_clock", "_close", "_is_retired", "_leases", "_lock", "app", "retired_at", "used_at",
        "wsgi",
    )  # fmt: skip

    def __init__(
        self,
        wsgi: "WSGIApplication",
        close: Callable[[], None],
        app: object = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.wsgi = wsgi
        self.app = None if app is None else ref(app)
        self._clock = clock
        self.used_at = clock()
        """When its last request ended, or it was built."""
        self.retired_at = 0.0
        self._close: Callable[[], None] | None = close
        self._lock = threading.Lock()  # protects the two below, and `_close`
        self._leases = 0
        self._is_retired = False

    @property
    def leases(self) -> int:
        """Requests in flight."""
        return self._leases

    @property
    def is_closed(self) -> bool:
        """Whether it has ended."""
        return self._close is None

    def lease(self) -> bool:
        """Take a lease; False if the instance is retired. Each is given back by `release`, once."""
        with self._lock:
            if self._is_retired:
                return False
            self._leases += 1
        return True

    def release(self) -> None:
        """Give a lease back; the last one of a retired instance closes it."""
        with self._lock:
            self._leases -= 1
            is_last = self._is_retired and not self._leases
        self.used_at = self._clock()
        if is_last:
            self.cut()

    def retire(self) -> None:
        """Take no more requests, and close when the last one has ended. Idempotent."""
        with self._lock:
            self._is_retired = True
            is_free = not self._leases
        self.retired_at = self._clock()
        if is_free:
            self.cut()

    def cut(self) -> int:
        """Close now, whatever is in flight, and return how much that is. Idempotent.

        Raises nothing: who ends the last request, or the tenant, is not to blame for its app.
        """
        with self._lock:
            close, self._close = self._close, None
            leases = self._leases
        if close is not None:
            try:
                close()
            except BaseException:
                _logger.exception("instance.close_failed")
        return leases

    def answer(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer a request under a lease taken for it; the body's `close` ends the lease."""
        try:
            return on_close(self.wsgi(environ, start_response), self.release)
        except BaseException:
            self.release()
            raise
