"""The connection budget: one pool of idle connections over all tenants of a process.

Knows no database and no SQLAlchemy: `core/pool.py` tells it of connections. It opens and closes
nothing under its lock.
"""

import os
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from core.errors import TenantryError

WAIT_S = 5.0
"""How long a request waits for a connection: much longer than a usual request holds one, and well
before clients and proxies give up."""


class Held(NamedTuple):
    """What one tenant holds of a budget."""

    in_use: int
    idle: int


class ConnectionsExhaustedError(TenantryError):
    """All connections of the process were in use for as long as a request may wait for one."""

    def __init__(self, owner: str, waited_s: float, limit: int, held: Mapping[str, Held]) -> None:
        self.owner = owner
        self.waited_s = waited_s
        self.limit = limit
        self.held = dict(held)
        super().__init__(owner, waited_s, limit, self.held)

    def __str__(self) -> str:
        """Return who waited, how long, and who holds what."""
        shares = sorted(self.held.items(), key=lambda share: (-sum(share[1]), share[0]))
        holders = ", ".join(
            f"{name} {held.in_use} in use, {held.idle} idle" for name, held in shares
        )
        return (
            f"tenant {self.owner!r} waited {self.waited_s:.1f} s for a database connection; the "
            f"{self.limit} of this process are taken: {holders}. Raise TENANTRY_DB_CONNECTIONS, or "
            "find out who keeps connections."
        )


class Holder(Protocol):
    """Who has connections: a pool. The budget keeps its idle ones in `idle`, newest last."""

    owner: str
    idle: list[object]


@dataclass(eq=False)
class Eviction:
    """An idle connection that whoever gets this must close, to have its permit."""

    holder: Holder
    connection: object


class _Waiter:
    """A place in the queue. `grant` is written once, under the budget's lock."""

    __slots__ = ("grant", "holder", "is_granted", "is_served")

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self.is_granted = False
        self.grant: object = None
        self.is_served = threading.Event()


class ConnectionBudget:
    """Permits to have connections open, `limit` in all. Thread-safe; lives as long as the process.

    A *permit* stands for one connection, from before it is opened until after it is closed. A
    process that is forked starts with all permits: what it inherited is neither used nor closed.

    Args:
        limit: connections that may be open at once.
        wait_s: how long `take` waits, first come first served, when all are in use.
        clock: seconds.
    """

    def __init__(
        self, limit: int, wait_s: float = WAIT_S, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = limit
        self.wait_s = wait_s
        self._clock = clock
        self._inherited: list[object] = []  # connections of a parent process, kept from closing
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()  # protects all below, and every holder's `idle`
        self._pid = os.getpid()
        self._open = 0
        self._owners: Counter[str] = Counter()  # permits by tenant
        self._idle: OrderedDict[object, Holder] = OrderedDict()  # longest idle first
        self._waiters: deque[_Waiter] = deque()
        # What comes back: a connection, or None for a permit alone. A queue of its own, because
        # the garbage collector may give a connection back on a thread that is inside the lock.
        self._returned: deque[tuple[Holder, object]] = deque()

    @property
    def open(self) -> int:
        """Permits that are out: connections that are open, being opened or being closed."""
        self._settle()
        return self._open

    @property
    def idle(self) -> int:
        """Connections that nobody uses."""
        self._settle()
        return len(self._idle)

    def held(self) -> dict[str, Held]:
        """Return what each tenant holds."""
        with self._lock:
            self._accept()
            held = self._held()
        self._settle()
        return held

    def _held(self) -> dict[str, Held]:
        idle = Counter(holder.owner for holder in self._idle.values())
        return {name: Held(n - idle[name], idle[name]) for name, n in self._owners.items() if n}

    def take(self, holder: Holder) -> object:
        """Return an idle connection of `holder`, None, or an `Eviction`; with it goes a permit.

        None: open one. Eviction: close that one first, then open one.

        Raises:
            ConnectionsExhaustedError: all were in use for `wait_s`.
        """
        self.notice_fork()
        with self._lock:
            self._accept()
            waiter = None
            if holder.idle:
                grant = self._take_idle(holder, holder.idle[-1])
            elif self._waiters:
                waiter = self._queue(holder)
            elif self._open < self.limit:
                self._open += 1
                self._owners[holder.owner] += 1
                grant = None
            elif self._idle:
                grant = self._evict(holder)
            else:
                waiter = self._queue(holder)
        self._settle()
        return grant if waiter is None else self._wait(waiter)

    def give_back(self, holder: Holder, connection: object) -> None:
        """Take a connection back as idle, or hand it on to who waits."""
        self._returned.append((holder, connection))
        self._settle()

    def free(self, holder: Holder) -> None:
        """Take back the permit of a connection that is closed, or could not be opened."""
        self._returned.append((holder, None))
        self._settle()

    def take_all_idle(self, holder: Holder) -> list[object]:
        """Return the idle connections of `holder`, to be closed and freed by the caller."""
        self.notice_fork()
        with self._lock:
            self._accept()
            taken = [self._take_idle(holder, one) for one in tuple(holder.idle)]
        self._settle()
        return taken

    def notice_fork(self) -> bool:
        """Begin anew if this is a forked process that has not yet; whether it did."""
        if self._pid == os.getpid():
            return False
        for connection, holder in self._idle.items():
            self._inherited.append(connection)
            holder.idle.clear()
        self._inherited += [connection for _, connection in self._returned]
        self._begin()
        return True

    def keep(self, connection: object) -> None:
        """Keep a connection that was inherited through a fork from being closed."""
        self._inherited.append(connection)

    # -- under the lock ----------------------------------------------------------------------

    def _accept(self) -> None:
        while self._returned:
            holder, connection = self._returned.popleft()
            head = self._waiters[0] if self._waiters else None
            if connection is None:
                self._owners[holder.owner] -= 1
                if head is None:
                    self._open -= 1
                else:
                    self._owners[head.holder.owner] += 1
                    self._grant(head, None)
                continue
            holder.idle.append(connection)
            self._idle[connection] = holder
            if head is not None:
                own = head.holder.idle
                self._grant(
                    head,
                    self._take_idle(head.holder, own[-1]) if own else self._evict(head.holder),
                )

    def _grant(self, waiter: _Waiter, grant: object) -> None:
        self._waiters.remove(waiter)
        waiter.grant = grant
        waiter.is_granted = True
        waiter.is_served.set()

    def _take_idle(self, holder: Holder, connection: object) -> object:
        holder.idle.remove(connection)
        del self._idle[connection]
        return connection

    def _evict(self, holder: Holder) -> Eviction:
        connection, victim = next(iter(self._idle.items()))
        self._take_idle(victim, connection)
        self._owners[victim.owner] -= 1
        self._owners[holder.owner] += 1
        return Eviction(victim, connection)

    def _queue(self, holder: Holder) -> _Waiter:
        waiter = _Waiter(holder)
        self._waiters.append(waiter)
        return waiter

    # -- outside the lock --------------------------------------------------------------------

    def _settle(self) -> None:
        """Accept what came back. Whoever held the lock looks once more after letting it go."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                self._accept()
            finally:
                self._lock.release()

    def _wait(self, waiter: _Waiter) -> object:
        began_at = self._clock()
        try:
            waiter.is_served.wait(self.wait_s)
        except BaseException:  # a signal handler of the server
            if self._leave(waiter):
                self._return_grant(waiter)
            raise
        if self._leave(waiter):
            return waiter.grant
        raise ConnectionsExhaustedError(
            waiter.holder.owner, self._clock() - began_at, self.limit, self.held()
        )

    def _leave(self, waiter: _Waiter) -> bool:
        """Leave the queue; whether there is a grant."""
        with self._lock:
            if not waiter.is_granted:
                self._waiters.remove(waiter)
        self._settle()
        return waiter.is_granted

    def _return_grant(self, waiter: _Waiter) -> None:
        grant = waiter.grant
        if isinstance(grant, Eviction):  # the connection was not closed: it is its holder's again
            with self._lock:
                self._owners[waiter.holder.owner] -= 1
                self._owners[grant.holder.owner] += 1
            self.give_back(grant.holder, grant.connection)
        elif grant is None:
            self.free(waiter.holder)
        else:
            self.give_back(waiter.holder, grant)
