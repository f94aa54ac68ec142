"""Limits the number of database connections of all tenants in a process.

The budget decides which pool may open a connection, and which idle connection must be closed first.
This module neither opens nor closes connections, and does not import SQLAlchemy.
"""

import os
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tenantry.database.errors import ConnectionCounts, ConnectionsExhaustedError

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry

    from tenantry.database.pool import BudgetPool

WAIT_S = 5.0
"""Maximum seconds that a request waits for a connection.

The limit is longer than requests usually keep a connection, and shorter than the timeouts of
clients and proxies.
"""

OWN_WAIT_CHECKOUTS = 10
"""How long a pool waits before it evicts another tenant's connection, in average checkout times.

The wait of one tenant does not slow down other tenants. After an eviction, however, both tenants
have to open a new connection, which takes 5 to 10 ms of CPU time. Because the wait is a multiple of
the checkout time, it adapts to the load. A checkout takes 5 ms, or 50 ms on a busy machine. With a
fixed wait of 0.1 s, a busy machine reached only 0.4 to 0.9 of the throughput of separate pools.
"""

MAX_OWN_WAIT_S = 0.25
"""Maximum seconds that a pool waits for its own connections.

A pool reaches this limit only if its checkouts are long.
"""


@dataclass(eq=False)
class EvictedConnection:
    """A permit to open a connection, after closing the idle connection of another pool."""

    pool: "BudgetPool"
    connection: "ConnectionPoolEntry"


@dataclass(eq=False)
class _Waiter:
    """A call of `acquire` that waits. The lock of the budget protects all fields."""

    pool: "BudgetPool"
    must_open: bool
    prefers_own: bool
    """Whether the call still waits for a connection of its own pool, before it evicts another."""
    grant: "ConnectionPoolEntry | EvictedConnection | None" = None
    granted: threading.Event = field(default_factory=threading.Event)

    def serve(self, grant: "ConnectionPoolEntry | EvictedConnection | None") -> None:
        self.grant = grant
        self.granted.set()


class ConnectionBudget:
    """Limits the open connections of all pools in a process. Thread-safe.

    The budget exists as long as the process. A *permit* stands for one connection. A pool acquires
    the permit before it opens the connection, and releases the permit after the connection is
    closed. A forked process neither uses nor closes inherited connections, so it starts with all
    permits.

    Args:
        limit: maximum number of open connections.
        wait_s: maximum time that `acquire` waits while all connections are in use. Waiting calls
            are served in order of arrival.
        clock: a function that returns seconds.
    """

    def __init__(
        self, limit: int, wait_s: float = WAIT_S, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = limit
        self.wait_s = wait_s
        self._clock = clock
        # References to connections of the parent process prevent Python from closing them.
        self._inherited: list[object] = []
        # Maps a process ID to the lock that protects the reset in that process.
        self._fork_locks: dict[int, threading.Lock] = {}
        self._process = os.getpid()
        self._reset()

    def _reset(self) -> None:
        # The lock protects all attributes that this method sets, and the attribute `idle` of each
        # pool.
        self._lock = threading.Lock()
        self._open = 0
        self._permits: Counter[BudgetPool] = Counter()
        # Idle connections, oldest first.
        self._idle: OrderedDict[ConnectionPoolEntry, BudgetPool] = OrderedDict()
        self._waiters: list[_Waiter] = []  # waiting calls, in order of arrival
        # A queue of returned connections, with None for each returned permit. The garbage collector
        # may return a connection in a thread that already holds the lock, so the queue must work
        # without the lock.
        self._returned: deque[tuple[BudgetPool, ConnectionPoolEntry | None]] = deque()

    @property
    def open_count(self) -> int:
        """Number of open connections, including those that are being opened or closed."""
        with self._locked():
            return self._open

    @property
    def idle_count(self) -> int:
        """Number of open connections that are not in use."""
        with self._locked():
            return len(self._idle)

    def counts(self) -> dict[str, ConnectionCounts]:
        """Return the number of connections of each tenant that has a connection."""
        counts: dict[str, ConnectionCounts] = {}
        with self._locked():
            # While a new version of an app replaces the old version, a tenant has two pools.
            for pool, permits in self._permits.items():
                checked_out, idle = counts.get(pool.owner, ConnectionCounts(0, 0))
                checked_out += permits - len(pool.idle)
                counts[pool.owner] = ConnectionCounts(checked_out, idle + len(pool.idle))
        return counts

    def acquire(
        self, pool: "BudgetPool", *, must_open: bool = False
    ) -> "ConnectionPoolEntry | EvictedConnection | None":
        """Return an idle connection of the pool, or a permit to open a new connection.

        A permit is None or an `EvictedConnection`. The caller must close an evicted connection
        before it opens a new one.

        Args:
            pool: the pool that needs a connection.
            must_open: whether to return a permit even if the pool has an idle connection.

        Raises:
            ConnectionsExhaustedError: nothing became available within `wait_s`.
        """
        if not must_open and (connection := self._take_newest(pool)):
            return connection
        waiter = _Waiter(pool, must_open, prefers_own=not must_open)
        with self._locked():
            if not self._try_to_serve(waiter):
                self._waiters.append(waiter)
        if not waiter.granted.is_set():
            self._wait(waiter)
        return waiter.grant

    def _take_newest(self, pool: "BudgetPool") -> "ConnectionPoolEntry | None":
        """Return the newest idle connection of the pool, or None."""
        self._reset_after_fork()
        with self._lock:
            connection = self._take_idle(pool, pool.idle[-1]) if pool.idle else None
        self._accept_if_free()
        return connection

    def checkin(self, pool: "BudgetPool", connection: "ConnectionPoolEntry") -> None:
        """Take back a connection, which becomes idle or goes to a waiting call of `acquire`."""
        self._returned.append((pool, connection))
        self._accept_if_free()

    def release(self, pool: "BudgetPool") -> None:
        """Take back a permit after its connection was closed or could not be opened."""
        self._returned.append((pool, None))
        self._accept_if_free()

    def take_all_idle(self, pool: "BudgetPool") -> "list[ConnectionPoolEntry]":
        """Return the idle connections of the pool, which the caller must close and release."""
        with self._locked():
            return [self._take_idle(pool, connection) for connection in tuple(pool.idle)]

    def keep_inherited(self, connection: object) -> None:
        """Prevent Python from closing a connection that belongs to the parent process."""
        self._inherited.append(connection)

    # -- the lock ----------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._reset_after_fork()
        with self._lock:
            self._accept_returned()
            yield
        # While this thread held the lock, another thread may have returned a connection.
        self._accept_if_free()

    def _accept_if_free(self) -> None:
        """Take back returned connections, unless another thread holds the lock and does so."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                self._accept_returned()
            finally:
                self._lock.release()

    def _reset_after_fork(self) -> None:
        """Reset all counts in a forked process.

        Because uWSGI forks without calling Python's fork hooks, the budget compares process IDs.
        """
        process = os.getpid()
        if self._process == process:
            return
        # If the parent held a lock at the time of the fork, the lock stays locked in the child.
        # Because of this, each process has its own lock.
        with self._fork_locks.setdefault(process, threading.Lock()):
            if self._process != process:
                self._inherited += self._idle
                self._inherited += [connection for _, connection in self._returned]
                for pool in self._idle.values():
                    pool.idle.clear()
                self._reset()
                self._process = process

    # -- with the lock held ------------------------------------------------------------------

    def _accept_returned(self) -> None:
        while self._returned:
            pool, connection = self._returned.popleft()
            if connection is None:
                self._open -= 1
                self._add_permits(pool, -1)
            else:
                pool.idle.append(connection)
                self._idle[connection] = pool
            self._serve_waiters()

    def _serve_waiters(self) -> None:
        self._waiters = [waiter for waiter in self._waiters if not self._try_to_serve(waiter)]

    def _try_to_serve(self, waiter: _Waiter) -> bool:
        """Give a waiting call a connection or a permit, if one is available.

        Return True if the call was served. A new call cannot overtake an earlier call, because the
        earlier call has already received every connection that was available to it.
        """
        pool = waiter.pool
        if pool.idle and not waiter.must_open:
            waiter.serve(self._take_idle(pool, pool.idle[-1]))
        elif self._open < self.limit:
            self._open += 1
            self._add_permits(pool, 1)
            waiter.serve(None)
        elif self._idle and not (waiter.prefers_own and self._has_checked_out(pool)):
            waiter.serve(self._evict_oldest_for(pool))
        return waiter.granted.is_set()

    def _has_checked_out(self, pool: "BudgetPool") -> bool:
        return self._permits[pool] > len(pool.idle)

    def _add_permits(self, pool: "BudgetPool", change: int) -> None:
        self._permits[pool] += change
        if not self._permits[pool]:
            del self._permits[pool]

    def _take_idle(
        self, pool: "BudgetPool", connection: "ConnectionPoolEntry"
    ) -> "ConnectionPoolEntry":
        pool.idle.remove(connection)
        del self._idle[connection]
        return connection

    def _evict_oldest_for(self, pool: "BudgetPool") -> EvictedConnection:
        connection, owner = next(iter(self._idle.items()))
        self._take_idle(owner, connection)
        self._add_permits(owner, -1)
        self._add_permits(pool, 1)
        return EvictedConnection(owner, connection)

    # -- waiting -----------------------------------------------------------------------------

    def _wait(self, waiter: _Waiter) -> None:
        """Wait until the budget serves a call of `acquire`.

        Raises:
            ConnectionsExhaustedError: nothing became available in time.
        """
        began_at = self._clock()
        own_wait_s = OWN_WAIT_CHECKOUTS * waiter.pool.average_checkout_s
        own_wait_s = min(own_wait_s, MAX_OWN_WAIT_S, self.wait_s)
        try:
            if not waiter.granted.wait(own_wait_s):
                self._accept_eviction(waiter)
                waiter.granted.wait(self.wait_s - own_wait_s)
        # While this thread waits, a signal handler of the web server can raise any exception.
        except BaseException:
            if self._stop_waiting(waiter):
                self._return_grant(waiter)
            raise
        if not self._stop_waiting(waiter):
            waited_s = self._clock() - began_at
            raise ConnectionsExhaustedError(waiter.pool.owner, waited_s, self.limit, self.counts())

    def _accept_eviction(self, waiter: _Waiter) -> None:
        with self._locked():
            waiter.prefers_own = False
            self._serve_waiters()

    def _stop_waiting(self, waiter: _Waiter) -> bool:
        """Remove a call from the queue. Return whether the call was served before that."""
        with self._locked():
            if not waiter.granted.is_set():
                self._waiters.remove(waiter)
        return waiter.granted.is_set()

    def _return_grant(self, waiter: _Waiter) -> None:
        grant = waiter.grant
        # The evicted connection has not been closed yet, so it becomes idle again.
        if isinstance(grant, EvictedConnection):
            with self._locked():
                self._add_permits(waiter.pool, -1)
                self._add_permits(grant.pool, 1)
            self.checkin(grant.pool, grant.connection)
        elif grant is None:
            self.release(waiter.pool)
        else:
            self.checkin(waiter.pool, grant)
