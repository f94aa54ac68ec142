"""The connection pool of an engine, which shares the budget of the process with other pools.

For each connection, the pool holds a permit of the budget. The number of permits is exact, because
SQLAlchemy opens connections only with the pool's `creator`, and closes connections only in
`Pool._close_connection`.
"""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from sqlalchemy import event
from sqlalchemy.pool import ConnectionPoolEntry, Pool

from tenantry.database.budget import ConnectionBudget, EvictedConnection
from tenantry.database.errors import (
    CONNECTIONS_IN_USE,
    ConnectionsExhaustedError,
    DatabaseDownError,
)

ASSUMED_CHECKOUT_S = 0.005
"""Seconds that a checkout is assumed to take before the first measurement."""

CHECKED_IN_AT = "tenantry.checked_in_at"
"""Key in `ConnectionPoolEntry.info` of the time when the connection was last returned."""

_logger = logging.getLogger(__name__)


class Connector(Protocol):
    """Opens, checks and closes the connections of one engine. Thread-safe."""

    def check_available(self, *, must_open: bool) -> None:
        """Raise `DatabaseDownError` if the database is known to be unavailable.

        Args:
            must_open: whether the pool has to open a connection, because none is idle.
        """

    def is_usable(self, record: ConnectionPoolEntry, idle_s: float) -> bool:
        """Whether a connection that was idle for `idle_s` seconds still works."""

    def connect(self, open_connection: Callable[[], Any]) -> Any:
        """Call `open_connection`, and return the connection or raise `DatabaseDownError`."""

    def close(self, connection: Any, close_connection: Callable[[], None]) -> None:
        """Call `close_connection`, and wait until the server has closed the connection."""


class BudgetPool(Pool):
    """The pool of one engine. Other tenants may evict idle connections of the pool.

    Args:
        creator: a function that opens a connection for a pool entry.
        budget: the connection budget of the process.
        owner: the tenant's name.
        connector: opens, checks and closes the connections.
        pool_options: other options of `sqlalchemy.pool.Pool`.
    """

    def __init__(
        self,
        creator: Any,
        budget: ConnectionBudget,
        owner: str,
        connector: Connector,
        **pool_options: Any,
    ) -> None:
        self.owner = owner
        # Idle connections, newest last. The lock of the budget protects this list.
        self.idle: list[ConnectionPoolEntry] = []
        self.average_checkout_s = ASSUMED_CHECKOUT_S
        self._budget = budget
        self._connector = connector
        self._create = creator
        self._is_retired = False
        self._checked_out_at: dict[ConnectionPoolEntry, float] = {}
        # The attribute `has_permit` says whether the thread has a permit to open a connection. The
        # attribute `opened` contains a new connection until SQLAlchemy has set it up.
        self._thread = threading.local()
        # Maps the `id()` of an open connection to the pool and the process that opened it.
        self._opened: dict[int, tuple[BudgetPool, int]] = {}
        super().__init__(self._open, **pool_options)  # type: ignore[arg-type]  # SQLAlchemy passes one argument
        if "_dispatch" not in pool_options:  # a copy of the pool inherits the event listener
            event.listen(self, "detach", self._watch_detached)

    def retire(self) -> None:
        """Close all idle connections, and each other connection as soon as it is returned."""
        self._is_retired = True
        self.dispose()

    def dispose(self) -> None:
        """Close all idle connections."""
        for record in self._budget.take_all_idle(self):
            record.close()

    def recreate(self) -> "BudgetPool":
        """Retire this pool, and return a new pool with the same options."""
        self.retire()
        pool = type(self)(
            self._create,
            budget=self._budget,
            owner=self.owner,
            connector=self._connector,
            recycle=self._recycle,
            echo=self.echo,
            pre_ping=self._pre_ping,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )
        pool._opened = self._opened  # noqa: SLF001 - detached connections can outlive a pool
        return pool

    def status(self) -> str:
        """Describe the pool for SQLAlchemy's log."""
        return f"tenant {self.owner!r}: {len(self._opened)} open, {len(self.idle)} idle"

    def probe(self) -> None:
        """Open a new connection, even if the pool has idle connections.

        Raises:
            Exception: the connection could not be opened.
        """
        self._acquire(must_open=True)
        self._do_return_conn(self._open_record())

    def close_evicted(self, record: ConnectionPoolEntry) -> None:
        """Close an idle connection that another pool has evicted."""
        self._opened.pop(id(record.dbapi_connection), None)
        record.close()

    def _watch_detached(self, connection: Any, _: ConnectionPoolEntry) -> None:
        """Release the permit when a detached connection is garbage-collected without a close."""
        weakref.finalize(connection, self._release_collected, id(connection)).atexit = False

    def _release_collected(self, key: int) -> None:
        pool, process = self._opened.pop(key, (self, None))
        if process == os.getpid():
            self._budget.release(pool)  # `pool` opened the connection

    # -- called by SQLAlchemy ------------------------------------------------------------------

    def _do_get(self) -> ConnectionPoolEntry:
        self._connector.check_available(must_open=not self.idle)
        record = self._acquire()
        if record is None:
            record = self._open_record()
        elif not self._connector.is_usable(
            record, time.monotonic() - record.info.get(CHECKED_IN_AT, 0.0)
        ):
            record.invalidate()  # SQLAlchemy then opens another connection
        self._checked_out_at[record] = time.monotonic()
        return record

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        now = time.monotonic()
        checked_out_at = self._checked_out_at.pop(record, None)
        if checked_out_at is not None:
            self.average_checkout_s += (now - checked_out_at - self.average_checkout_s) / 8
        connection = record.dbapi_connection
        # A connection that was closed, detached or never opened is not returned.
        if connection is None:
            return
        if self._opened.get(id(connection)) != (self, os.getpid()):
            self._budget.keep_inherited(record)
        elif self._is_retired:
            record.close()
        else:
            record.info[CHECKED_IN_AT] = now
            self._budget.checkin(self, record)
            # If another thread has just retired the pool, no other code closes the connection.
            if self._is_retired:
                self.dispose()

    def _open(self, record: ConnectionPoolEntry) -> Any:
        """Open a connection. SQLAlchemy calls this method as the `creator`."""
        is_new = self._use_permit()
        if not is_new:  # SQLAlchemy replaces an invalidated connection
            self._connector.check_available(must_open=True)
            self._acquire(must_open=True)
        try:
            connection = self._connector.connect(lambda: self._create(record))
        except BaseException:
            self._budget.release(self)
            raise
        self._opened[id(connection)] = self, os.getpid()
        if is_new:
            self._thread.opened = connection
        return connection

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        _, process = self._opened.pop(id(connection), (self, None))
        if process not in (None, os.getpid()):
            # The parent process still uses this connection.
            self._budget.keep_inherited(connection)
            return
        try:
            close = super()._close_connection
            self._connector.close(connection, lambda: close(connection, terminate=terminate))
        finally:
            # The permit of an evicted connection already belongs to another pool.
            if process is not None:
                self._budget.release(self)

    # -- permits -----------------------------------------------------------------------------

    def _acquire(self, *, must_open: bool = False) -> ConnectionPoolEntry | None:
        """Return an idle connection, or None if the thread may open a new connection."""
        try:
            grant = self._budget.acquire(self, must_open=must_open)
        except ConnectionsExhaustedError as error:
            _logger.error("database.connections_exhausted", extra={"reason": str(error)})
            raise DatabaseDownError(1, CONNECTIONS_IN_USE) from error
        if not isinstance(grant, EvictedConnection):
            return grant
        try:
            grant.pool.close_evicted(grant.connection)
        except BaseException:
            self._budget.release(self)
            raise
        return None

    def _open_record(self) -> ConnectionPoolEntry:
        """Open a connection with the permit that the thread has acquired."""
        self._thread.has_permit = True
        try:
            return self._create_connection()
        except BaseException:
            self._close_partly_opened()
            raise
        finally:
            self._thread.opened = None
            if self._use_permit():  # the thread still has the permit
                self._budget.release(self)

    def _close_partly_opened(self) -> None:
        """Close a connection whose setup failed.

        Older releases of SQLAlchemy leave a connection open if its setup fails.
        """
        connection = getattr(self._thread, "opened", None)
        if id(connection) in self._opened:
            self._close_connection(connection, terminate=True)

    def _use_permit(self) -> bool:
        """Use up the permit of the current thread. Return False if the thread had no permit."""
        had_permit = getattr(self._thread, "has_permit", False)
        self._thread.has_permit = False
        return had_permit
