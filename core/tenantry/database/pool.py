"""An engine's pool whose connections belong to the budget of the whole process.

A permit of the budget stands for each connection from before it is opened until after it is
closed, whoever closes it and why: `_invoke_creator` and `_close_connection` are the only two
places in SQLAlchemy's pools (private, the same from 2.0.40 to 2.1.9) where that happens, so the
count is exact by construction.
"""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol, cast

from sqlalchemy import event
from sqlalchemy.pool import ConnectionPoolEntry, Pool

from tenantry.database.budget import ConnectionBudget
from tenantry.database.checkouts import Checkouts
from tenantry.database.errors import DatabaseDownError
from tenantry.database.permits import ConnectionsExhaustedError, Eviction

HOLD_S = 0.005
"""How long a connection is taken to be used, until it is known: as a usual request uses one."""

RETURNED_AT = "tenantry.returned_at"
"""Key of a connection's `info`: when it came back, by `time.monotonic`."""

BUSY = "All database connections are in use; try again later."

_logger = logging.getLogger(__name__)


class Guard(Protocol):
    """Stands before an engine's connections being opened. Thread-safe."""

    def check(self) -> None:
        """Raise where none can be opened now; asked before one is paid for with a permit."""

    def is_good(self, record: ConnectionPoolEntry, idle_s: float) -> bool:
        """Whether a connection may be used that was idle for so long, as far as can be told."""

    def open(self, connect: Callable[[], Any]) -> Any:
        """Return what `connect` returns, or raise something better than it does."""

    def close(self, connection: Any, close: Callable[[], None]) -> None:
        """Close a connection by `close`; returns when it is gone at the other end too."""


class BudgetPool(Pool):
    """The pool of one engine; its idle connections may be closed for another tenant's request.

    Args:
        creator: opens a connection.
        budget: whose permits it needs.
        owner: the tenant's name.
        guard: asked before a connection is opened or used again.
        uses: told which thread uses which connection, and asked for how long.
        pool_options: as `sqlalchemy.pool.Pool` takes them.
    """

    def __init__(
        self,
        creator: Any,
        budget: ConnectionBudget,
        owner: str,
        guard: Guard,
        uses: Checkouts,
        **pool_options: Any,
    ) -> None:
        self.owner = owner
        self.idle: list[object] = []  # the budget's, under its lock; newest last
        self.hold_s = HOLD_S
        self._budget = budget
        self._guard = guard
        self._uses = uses
        self._is_retired = False
        # `has_permit`: for the connection that it opens next; `opened`: that, until it is set up
        self._thread = threading.local()
        # id of an open connection → the pool and the process that opened it
        self._opened: dict[int, tuple[BudgetPool, int]] = {}
        super().__init__(creator, **pool_options)
        self._open_unbudgeted = self._invoke_creator
        self._invoke_creator = self._open  # type: ignore[assignment]  # by position only
        if "_dispatch" not in pool_options:  # else it is a copy, and hears already
            event.listen(self, "detach", self._watch)

    def retire(self) -> None:
        """Close what is idle, and from now on each connection that comes back. Idempotent."""
        self._is_retired = True
        self.dispose()

    def dispose(self) -> None:
        """Close what is idle."""
        for record in self._budget.take_all_idle(self):
            cast("ConnectionPoolEntry", record).close()

    def recreate(self) -> "BudgetPool":
        """Return a pool like this one, which is retired: what it kept nobody would close."""
        self.retire()
        pool = type(self)(
            self._creator,
            budget=self._budget,
            owner=self.owner,
            guard=self._guard,
            uses=self._uses,
            recycle=self._recycle,
            echo=self.echo,
            pre_ping=self._pre_ping,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )
        pool._opened = self._opened  # noqa: SLF001 - one table, for what is detached
        return pool

    def status(self) -> str:
        """Describe it, for SQLAlchemy's log."""
        return f"tenant {self.owner!r}: {len(self._opened)} open, {len(self.idle)} idle"

    def probe(self) -> None:
        """Open one connection more, however many are idle: only that shows that it can be done.

        Raises:
            Exception: it cannot.
        """
        self._take(is_to_open=True)
        self._do_return_conn(self._opened_anew())

    def close_evicted(self, record: ConnectionPoolEntry) -> None:
        """Close an idle connection whose permit another has now."""
        self._opened.pop(id(record.dbapi_connection), None)
        record.close()

    def _watch(self, connection: Any, _: ConnectionPoolEntry) -> None:
        """Free the permit of a detached connection also if it is dropped and not closed."""
        weakref.finalize(connection, self._forget, id(connection)).atexit = False

    def _forget(self, key: int) -> None:
        pool, process = self._opened.pop(key, (self, None))
        if process == os.getpid():
            self._budget.free(pool)  # which may be a later one than this

    # -- what SQLAlchemy calls ---------------------------------------------------------------

    def _do_get(self) -> ConnectionPoolEntry:
        if not self.idle:
            self._guard.check()
        record = self._take()
        if record is None:
            record = self._opened_anew()
        elif not self._guard.is_good(record, time.monotonic() - record.info.get(RETURNED_AT, 0.0)):
            record.invalidate()  # it is opened anew in its record
        self._uses.take(record)
        return record

    def _opened_anew(self) -> ConnectionPoolEntry:
        """Open a connection with the permit that was taken for it."""
        self._thread.has_permit = True
        try:
            return self._create_connection()
        except BaseException:
            self._close_half_made()
            raise
        finally:
            self._thread.opened = None
            if self._use_permit():  # it was not needed: something raised before
                self._budget.free(self)

    def _close_half_made(self) -> None:
        """Close what was opened and could not be set up; older releases of SQLAlchemy leave it."""
        connection = getattr(self._thread, "opened", None)
        if id(connection) in self._opened:
            self._close_connection(connection, terminate=True)

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        now = time.monotonic()
        taken_at = self._uses.give_back(record)
        if taken_at is not None:
            self.hold_s += (now - taken_at - self.hold_s) / 8
        connection = record.dbapi_connection
        if connection is None:  # closed, never opened, or detached: its permit goes with it
            return
        if self._opened.get(id(connection)) != (self, os.getpid()):
            self._budget.keep(record)
        elif self._is_retired:
            record.close()
        else:
            record.info[RETURNED_AT] = now
            self._budget.give_back(self, record)
            if self._is_retired:  # meanwhile: nobody else would close it
                self.dispose()

    def _open(self, record: ConnectionPoolEntry) -> Any:
        is_new = self._use_permit()
        if not is_new:
            self._guard.check()
            self._take(is_to_open=True)
        try:
            connection = self._guard.open(lambda: self._open_unbudgeted(record))
        except BaseException:
            self._budget.free(self)
            raise
        self._opened[id(connection)] = self, os.getpid()
        if is_new:
            self._thread.opened = connection
        return connection

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        _, process = self._opened.pop(id(connection), (self, None))
        if process not in (None, os.getpid()):
            self._budget.keep(connection)  # the process that opened it goes on using it
            return
        try:
            close = super()._close_connection
            self._guard.close(connection, lambda: close(connection, terminate=terminate))
        finally:
            if process is not None:  # else it was evicted: its permit is another's
                self._budget.free(self)

    # -- permits -----------------------------------------------------------------------------

    def _take(self, *, is_to_open: bool = False) -> ConnectionPoolEntry | None:
        """Take an idle connection, or a permit to open one."""
        try:
            grant = self._budget.take(self, is_to_open=is_to_open)
        except ConnectionsExhaustedError as error:
            _logger.error("database.connections_exhausted", extra={"reason": str(error)})
            raise DatabaseDownError(1, BUSY) from error
        if not isinstance(grant, Eviction):
            return cast("ConnectionPoolEntry | None", grant)
        try:
            cast("BudgetPool", grant.holder).close_evicted(
                cast("ConnectionPoolEntry", grant.connection)
            )
        except BaseException:
            self._budget.free(self)
            raise
        return None

    def _use_permit(self) -> bool:
        """Use up this thread's permit; whether it had one."""
        had_permit = getattr(self._thread, "has_permit", False)
        self._thread.has_permit = False
        return had_permit
