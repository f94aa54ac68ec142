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

PATIENCE_S = 0.1
"""How long a tenant with connections in use waits for one of them before it has another tenant's
closed: a usual request holds one for 5 ms, 50 ms on a busy machine, and a new one costs 5 to 10 ms
of processor time. Twenty tenants with twenty connections would close each other's whenever two
requests meet at one: with 0.02 s, throughput was 0.6 of what it is with a pool for each."""


class Held(NamedTuple):
    """What one tenant holds of a budget: connections in use (or being opened or closed), idle."""

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
    """Who takes a connection. Its grant is written once, under the budget's lock."""

    __slots__ = ("grant", "holder", "is_granted", "is_patient", "is_served", "is_to_open")

    def __init__(self, holder: Holder, *, is_to_open: bool) -> None:
        self.holder = holder
        self.is_to_open = is_to_open
        self.is_patient = False
        self.is_granted = False
        self.grant: object = None
        self.is_served: threading.Event | None = None

    def queue(self, queue: "deque[_Waiter]") -> None:
        self.is_served = threading.Event()
        queue.append(self)

    def serve(self, grant: object) -> None:
        self.grant = grant
        self.is_granted = True
        if self.is_served is not None:
            self.is_served.set()


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
        self._forks: dict[int, threading.Lock] = {}  # process → guards its beginning anew
        self._process = os.getpid()
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()  # protects all below, and every holder's `idle`
        self._open = 0
        self._owners: Counter[str] = Counter()  # permits by tenant
        self._idle: OrderedDict[object, Holder] = OrderedDict()  # longest idle first
        self._waiters: deque[_Waiter] = deque()  # all are in use; first come, first served
        self._patient: dict[Holder, deque[_Waiter]] = {}  # who waits for one of its own
        # What comes back: a connection, or None for a permit alone. A queue of its own, because
        # the garbage collector may give a connection back on a thread that is inside the lock.
        self._returned: deque[tuple[Holder, object]] = deque()

    @property
    def open(self) -> int:
        """Permits that are out: connections that are open, being opened or being closed."""
        self.notice_fork()
        self._settle()
        return self._open

    @property
    def idle(self) -> int:
        """Connections that nobody uses."""
        self.notice_fork()
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

    def take(self, holder: Holder, *, is_to_open: bool = False) -> object:
        """Return an idle connection of `holder`, None, or an `Eviction`; with it goes a permit.

        None: open one. Eviction: close that one first, then open one.

        Args:
            holder: who needs a connection.
            is_to_open: it needs a new one, also where it has an idle one.

        Raises:
            ConnectionsExhaustedError: all were in use for `wait_s`.
        """
        self.notice_fork()
        waiter = self._take_now(holder, is_to_open=is_to_open, may_be_patient=not is_to_open)
        if waiter.is_patient and not self._wait(waiter, PATIENCE_S):
            waiter = self._take_now(holder, is_to_open=False, may_be_patient=False)
        began_at = self._clock()
        if not waiter.is_granted and not self._wait(waiter, self.wait_s):
            waited_s = self._clock() - began_at
            raise ConnectionsExhaustedError(holder.owner, waited_s, self.limit, self.held())
        return waiter.grant

    def _take_now(self, holder: Holder, *, is_to_open: bool, may_be_patient: bool) -> _Waiter:
        """Return a waiter that has its grant, or is in a queue."""
        waiter = _Waiter(holder, is_to_open=is_to_open)
        with self._lock:
            self._accept()
            if holder.idle and not is_to_open:
                waiter.serve(self._take_idle(holder, holder.idle[-1]))
            elif self._waiters:
                waiter.queue(self._waiters)
            elif self._open < self.limit:
                self._open += 1
                self._owners[holder.owner] += 1
                waiter.serve(None)
            elif may_be_patient and self._idle and self._owners[holder.owner] > len(holder.idle):
                waiter.is_patient = True
                waiter.queue(self._patient.setdefault(holder, deque()))
            elif self._idle:
                waiter.serve(self._evict(holder))
            else:
                waiter.queue(self._waiters)
        self._settle()
        return waiter

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

    def notice_fork(self) -> None:
        """Begin anew if this is a forked process that has not yet."""
        process = os.getpid()
        if self._process == process:
            return
        with self._forks.setdefault(process, threading.Lock()):  # a lock that no fork copied held
            if self._process != process:
                self._inherited += self._idle
                self._inherited += [connection for _, connection in self._returned]
                for holder in self._idle.values():
                    holder.idle.clear()
                self._begin()
                self._process = process

    def keep(self, connection: object) -> None:
        """Keep a connection that was inherited through a fork from being closed."""
        self._inherited.append(connection)

    # -- under the lock ----------------------------------------------------------------------

    def _accept(self) -> None:
        while self._returned:
            holder, connection = self._returned.popleft()
            if connection is not None:
                holder.idle.append(connection)
                self._idle[connection] = holder
                if self._waiters:
                    self._serve_first()
                elif holder in self._patient:
                    self._serve_patient(holder)
                continue
            self._owners[holder.owner] -= 1
            if self._waiters:
                waiter = self._waiters.popleft()
                self._owners[waiter.holder.owner] += 1
                waiter.serve(None)
            else:
                self._open -= 1

    def _serve_first(self) -> None:
        """Give an idle connection to who waits longest: its own as it is, another's to close."""
        waiter = self._waiters.popleft()
        holder = waiter.holder
        is_own = holder.idle and not waiter.is_to_open
        waiter.serve(self._take_idle(holder, holder.idle[-1]) if is_own else self._evict(holder))

    def _serve_patient(self, holder: Holder) -> None:
        queue = self._patient[holder]
        queue.popleft().serve(self._take_idle(holder, holder.idle[-1]))
        if not queue:
            del self._patient[holder]

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

    # -- outside the lock --------------------------------------------------------------------

    def _settle(self) -> None:
        """Accept what came back. Whoever held the lock looks once more after letting it go."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                self._accept()
            finally:
                self._lock.release()

    def _wait(self, waiter: _Waiter, timeout_s: float) -> bool:
        """Wait for the grant, and leave the queue; whether there is one."""
        if waiter.is_served is not None:
            try:
                waiter.is_served.wait(timeout_s)
            except BaseException:  # a signal handler of the server
                if self._leave(waiter):
                    self._return_grant(waiter)
                raise
        return self._leave(waiter)

    def _leave(self, waiter: _Waiter) -> bool:
        with self._lock:
            if not waiter.is_granted:
                queue = self._patient[waiter.holder] if waiter.is_patient else self._waiters
                queue.remove(waiter)
                if waiter.is_patient and not queue:
                    del self._patient[waiter.holder]
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
