"""An engine's pool whose connections belong to the budget of the whole process.

A permit of the budget stands for each connection from before it is opened until after it is
closed, whoever closes it and why: `_open` and `_close_connection` are the only two places in
SQLAlchemy's pools (2.0.40 to 2.1.9) where that happens, so the count is exact by construction.
"""

import os
import threading
from collections.abc import Callable
from typing import Any, Protocol

from sqlalchemy.pool import ConnectionPoolEntry, Pool

from core.connections import ConnectionBudget, Eviction


class Guard(Protocol):
    """Stands before an engine's connections being opened. Thread-safe."""

    def check(self) -> None:
        """Raise where none can be opened now; asked before one is paid for with a permit."""

    def open(self, connect: Callable[[], Any]) -> Any:
        """Return what `connect` returns, or raise something better than it does."""


class BudgetPool(Pool):
    """The pool of one engine; its idle connections may be closed for another tenant's request.

    Args:
        creator: opens a connection.
        budget: whose permits it needs.
        owner: the tenant's name.
        guard: asked before a connection is opened.
        pool_options: as `sqlalchemy.pool.Pool` takes them.
    """

    def __init__(
        self,
        creator: Any,
        budget: ConnectionBudget,
        owner: str,
        guard: Guard,
        **pool_options: Any,
    ) -> None:
        self.budget = budget
        self.owner = owner
        self._guard = guard
        self.idle: list[object] = []  # the budget's, under its lock
        self._is_retired = False
        self._prepaid = threading.local()  # whether this thread has a permit for what it opens
        self._permits: dict[int, tuple[int, Any]] = {}  # id of a connection → process, connection
        super().__init__(creator, **pool_options)
        self._open_unbudgeted = self._invoke_creator
        self._invoke_creator = self._open  # type: ignore[assignment]  # by position only

    def retire(self) -> None:
        """Close what is idle, and from now on each connection that comes back. Idempotent."""
        self._is_retired = True
        self.dispose()

    def dispose(self) -> None:
        """Close what is idle."""
        for record in self.budget.take_all_idle(self):
            record.close()  # type: ignore[attr-defined]

    def recreate(self) -> "BudgetPool":
        """Return a pool like this one, which keeps no connection that comes back any more."""
        self._is_retired = True
        return type(self)(
            self._creator,
            budget=self.budget,
            owner=self.owner,
            guard=self._guard,
            recycle=self._recycle,
            echo=self.echo,
            pre_ping=self._pre_ping,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def status(self) -> str:
        """Describe it, for SQLAlchemy's log."""
        return f"tenant {self.owner!r}: {len(self._permits)} open, {len(self.idle)} idle"

    # -- what SQLAlchemy calls ---------------------------------------------------------------

    def _do_get(self) -> ConnectionPoolEntry:
        if not self.idle:
            self._guard.check()
        record = self._take()
        if record is not None:
            return record
        self._prepaid.is_so = True
        try:
            return self._create_connection()
        finally:
            self._unpay()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        connection = record.dbapi_connection
        if connection is None:  # closed, never opened, or detached: its permit goes with it
            return
        if self._permits.get(id(connection), (0, None))[0] != os.getpid():
            self.budget.keep(record)
        elif self._is_retired:
            record.close()
        else:
            self.budget.give_back(self, record)

    def _open(self, record: ConnectionPoolEntry) -> Any:
        if not self._unpay(keep=True) and (idle := self._take()) is not None:
            idle.close()  # a connection that is opened anew in its record, beside an idle one
            return self._open(record)
        try:
            connection = self._guard.open(lambda: self._open_unbudgeted(record))
        except BaseException:
            self.budget.free(self)
            raise
        self._permits[id(connection)] = os.getpid(), connection
        return connection

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        process, _ = self._permits.pop(id(connection), (0, None))
        if process not in (0, os.getpid()):
            self.budget.keep(connection)  # the parent process goes on using it
            return
        try:
            super()._close_connection(connection, terminate=terminate)
        finally:
            if process:
                self.budget.free(self)

    # -- permits -----------------------------------------------------------------------------

    def _take(self) -> ConnectionPoolEntry | None:
        """Take an idle connection, or a permit to open one."""
        grant = self.budget.take(self)
        if isinstance(grant, Eviction):
            try:
                grant.holder.close_evicted(grant.connection)  # type: ignore[attr-defined]
            except BaseException:
                self.budget.free(self)
                raise
            return None
        return grant  # type: ignore[return-value]

    def close_evicted(self, record: Any) -> None:
        """Close an idle connection whose permit another has now."""
        self._permits.pop(id(record.dbapi_connection), None)
        record.close()

    def _unpay(self, *, keep: bool = False) -> bool:
        """Use up this thread's permit, if it has one; without `keep`, give it back."""
        was_so = getattr(self._prepaid, "is_so", False)
        self._prepaid.is_so = False
        if was_so and not keep:
            self.budget.free(self)
        return was_so
