"""The connection budget: the limit on database connections over all tenants of a process.

The budget decides which pool may open a connection, and which idle connection must be closed first.
The budget does not open or close connections, and does not import SQLAlchemy.
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
"""Time limit for a request to wait for a connection. The limit is much longer than a request
usually keeps a connection, and shorter than the timeouts of clients and proxies."""

OWN_WAIT_CHECKOUTS = 10
"""Time that a pool waits for one of its own connections before the pool evicts another tenant's
idle connection, as a multiple of the pool's average checkout. Waiting costs other tenants nothing.
Opening a connection costs 5 to 10 ms of CPU time, and the tenant that lost a connection has to open
a new connection, too. A multiple adapts to the load: a checkout takes 5 ms, or 50 ms on a busy
machine. On a busy machine, a fixed wait of 0.1 s was too short: throughput was 0.4 to 0.9 of the
throughput with one pool for each tenant."""

MAX_OWN_WAIT_S = 0.25
"""Upper bound of a pool's wait for its own connections. Tenants whose requests keep a connection
for long reach the bound."""


@dataclass(eq=False)
class EvictedConnection:
    """A permit, and the idle connection to close before a new connection is opened."""

    pool: "BudgetPool"
    connection: "ConnectionPoolEntry"


@dataclass(eq=False)
class _Waiter:
    """One call of `acquire`. The budget's lock protects all fields."""

    pool: "BudgetPool"
    must_open: bool
    prefers_own: bool
    """Whether the waiter still waits for a connection of the waiter's pool, before evicting another
    pool's connection."""
    grant: "ConnectionPoolEntry | EvictedConnection | None" = None
    granted: threading.Event = field(default_factory=threading.Event)

    def serve(self, grant: "ConnectionPoolEntry | EvictedConnection | None") -> None:
        self.grant = grant
        self.granted.set()


class ConnectionBudget:
    """At most `limit` open connections for all pools of a process. Thread-safe.

    The budget lives as long as the process. A *permit* stands for one connection, from before the
    connection is opened until after the connection is closed. A forked process starts with all
    permits: the forked process neither uses nor closes inherited connections.

    Args:
        limit: maximum number of open connections.
        wait_s: seconds that `acquire` waits, first come, first served, while all connections are
            checked out.
        clock: returns seconds; for tests.
    """

    def __init__(
        self, limit: int, wait_s: float = WAIT_S, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = limit
        self.wait_s = wait_s
        self._clock = clock
        # References to the parent process's connections keep the connections from being closed.
        self._inherited: list[object] = []
        self._fork_locks: dict[int, threading.Lock] = {}  # process ID → lock for `_reset`
        self._process = os.getpid()
        self._reset()

    def _reset(self) -> None:
        # The lock protects all attributes that `_reset` sets, and each pool's `idle`.
        self._lock = threading.Lock()
        self._open = 0
        self._permits: Counter[BudgetPool] = Counter()
        # idle connections, oldest first
        self._idle: OrderedDict[ConnectionPoolEntry, BudgetPool] = OrderedDict()
        self._waiters: list[_Waiter] = []  # waiters in order of arrival
        # The queue of returned connections, with None for a returned permit. The queue must work
        # without the lock, because the garbage collector may return a connection on a thread that
        # already holds the lock.
        self._returned: deque[tuple[BudgetPool, ConnectionPoolEntry | None]] = deque()

    @property
    def open_count(self) -> int:
        """Number of connections that are open, being opened or being closed."""
        with self._locked():
            return self._open

    @property
    def idle_count(self) -> int:
        """Number of open connections that are not checked out."""
        with self._locked():
            return len(self._idle)

    def counts(self) -> dict[str, ConnectionCounts]:
        """Return the connection counts of each tenant that has a connection."""
        counts: dict[str, ConnectionCounts] = {}
        with self._locked():
            # A tenant has two pools while a new app instance replaces an old instance.
            for pool, permits in self._permits.items():
                checked_out, idle = counts.get(pool.owner, ConnectionCounts(0, 0))
                checked_out += permits - len(pool.idle)
                counts[pool.owner] = ConnectionCounts(checked_out, idle + len(pool.idle))
        return counts

    def acquire(
        self, pool: "BudgetPool", *, must_open: bool = False
    ) -> "ConnectionPoolEntry | EvictedConnection | None":
        """Return an idle connection of the pool, or a permit to open a connection.

        A permit is None, or an `EvictedConnection` that the caller must close first.

        Args:
            pool: the pool that needs a connection.
            must_open: return a permit even if the pool has an idle connection.

        Raises:
            ConnectionsExhaustedError: no connection or permit became available within `wait_s`.
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
        """Return the pool's newest idle connection; None without an idle connection."""
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
        """Take back the permit of a connection that is closed or could not be opened."""
        self._returned.append((pool, None))
        self._accept_if_free()

    def take_all_idle(self, pool: "BudgetPool") -> "list[ConnectionPoolEntry]":
        """Return the pool's idle connections, which the caller closes and releases."""
        with self._locked():
            return [self._take_idle(pool, connection) for connection in tuple(pool.idle)]

    def keep_inherited(self, connection: object) -> None:
        """Keep a connection that belongs to a parent process from being closed."""
        self._inherited.append(connection)

    # -- the lock ----------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._reset_after_fork()
        with self._lock:
            self._accept_returned()
            yield
        # Another thread may have returned a connection while the lock was held.
        self._accept_if_free()

    def _accept_if_free(self) -> None:
        """Accept returned connections, unless another thread holds the lock and accepts them."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                self._accept_returned()
            finally:
                self._lock.release()

    def _reset_after_fork(self) -> None:
        """Reset all counts in a forked process. uWSGI forks without calling Python's hooks."""
        process = os.getpid()
        if self._process == process:
            return
        # A lock that the parent held at the fork stays locked in the forked process, so each
        # process needs its own lock.
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
        """Grant an available connection or permit to the waiter; return whether there was a grant.

        A new waiter cannot overtake an earlier waiter, because the earlier waiter already got every
        connection that was available to the earlier waiter.
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
        """Wait until the budget grants a connection or a permit to the waiter.

        Raises:
            ConnectionsExhaustedError: the waiter got no connection and no permit in time.
        """
        began_at = self._clock()
        own_wait_s = OWN_WAIT_CHECKOUTS * waiter.pool.average_checkout_s
        own_wait_s = min(own_wait_s, MAX_OWN_WAIT_S, self.wait_s)
        try:
            if not waiter.granted.wait(own_wait_s):
                self._accept_eviction(waiter)
                waiter.granted.wait(self.wait_s - own_wait_s)
        # A signal handler of the web server can raise any exception in the wait.
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
        """Remove the waiter from the queue; return whether the waiter got a grant meanwhile."""
        with self._locked():
            if not waiter.granted.is_set():
                self._waiters.remove(waiter)
        return waiter.granted.is_set()

    def _return_grant(self, waiter: _Waiter) -> None:
        grant = waiter.grant
        # The evicted connection is still open, so the connection becomes idle again.
        if isinstance(grant, EvictedConnection):
            with self._locked():
                self._add_permits(waiter.pool, -1)
                self._add_permits(grant.pool, 1)
            self.checkin(grant.pool, grant.connection)
        elif grant is None:
            self.release(waiter.pool)
        else:
            self.checkin(waiter.pool, grant)
