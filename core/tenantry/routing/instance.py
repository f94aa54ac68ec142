"""An instance: an app with its WSGI stack, from its build until its last response is closed.

Each request holds a lease until the server closes the response body, because a body can stream long
after the app has returned (PEP 3333 on `close()`). A retired instance closes when its last lease
ends.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol
from weakref import ref

from tenantry.http.problem import Refusal
from tenantry.http.response_close import on_close

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_logger = logging.getLogger(__name__)


class RefusesByHead(Protocol):
    """Decides from a request's head whether the request reaches the app. Thread-safe."""

    is_quick: bool
    """Whether `refuse` is fast: it does not wait for the network, verify a signature or run code of
    the app."""

    def refuse(self, environ: "WSGIEnvironment") -> Refusal | None:
        """Return the response if the request is refused, or None if it may reach the app."""


class Instance:
    """An app that serves requests. Thread-safe. `retire` closes the app after its last request.

    Args:
        wsgi: the app wrapped in its middleware.
        close: frees the resources of the app; called once.
        app: the Flask app. The instance keeps only a weak reference, so that the app can be freed
            after `close`.
        head_checks: the decisions that a server can make before it calls `wsgi`; None without head
            checks.
        clock: returns monotonic seconds.
    """

    __slots__ = (
        "_clock", "_close", "_is_retired", "_leases", "_lock", "app", "head_checks", "used_at",
        "wsgi",
    )  # fmt: skip

    def __init__(
        self,
        wsgi: "WSGIApplication",
        close: Callable[[], None],
        app: object = None,
        *,
        head_checks: RefusesByHead | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.wsgi = wsgi
        self.head_checks = head_checks
        self.app = None if app is None else ref(app)
        self._clock = clock
        self.used_at = clock()
        """Time at which the last request ended, in monotonic seconds. Without a request, the time
        at which the instance was built."""
        self._lock = threading.Lock()  # the lock protects `_close`, `_leases` and `_is_retired`
        self._close: Callable[[], None] | None = close
        self._leases = 0
        self._is_retired = False

    @property
    def leases(self) -> int:
        """Number of requests in flight on the instance."""
        return self._leases

    @property
    def is_closed(self) -> bool:
        """Whether the app has been closed."""
        return self._close is None

    def answer(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes] | None:
        """Answer a request, or return None if the instance is retired."""
        with self._lock:
            if self._is_retired:
                return None
            self._leases += 1
        try:
            return on_close(self.wsgi(environ, start_response), self.end_lease)
        except BaseException:
            self.end_lease()
            raise

    def begin_lease(self) -> bool:
        """Keep the app open without a request, until `end_lease`. False if it is retired."""
        with self._lock:
            self._leases += not self._is_retired
            return not self._is_retired

    def end_lease(self) -> None:
        """End one lease. The last lease of a retired instance closes the app."""
        with self._lock:
            self._leases -= 1
            is_last = self._is_retired and not self._leases
        self.used_at = self._clock()
        if is_last:
            self.close_now()

    def retire(self) -> None:
        """Accept no more requests, and close the app after the last request. Idempotent."""
        with self._lock:
            self._is_retired = True
            is_unused = not self._leases
        if is_unused:
            self.close_now()

    def close_now(self) -> int:
        """Close the app, and return the number of requests in flight. Idempotent.

        An exception of the app is logged and not raised, because the caller (the last request, or
        the follower) did not cause the exception.
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
