"""The connection budget: one pool of idle connections over all tenants of a process.

Knows no database and no SQLAlchemy: `pool.py` tells it of connections. It opens and closes nothing
under its lock.
"""

import os
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable

from tenantry.database.permits import ConnectionsExhaustedError, Eviction, Held, Holder, Waiter

WAIT_S = 5.0
"""How long a request waits for a connection: much longer than a usual request holds one, and well
before clients and proxies give up."""

PATIENCE_HOLDS = 10
"""How long an instance with connections in use waits for one of them, or for a permit that becomes
free, before it has another tenant's closed: this many times as long as it kept one lately. So long
one in use is almost always back, and to wait for it costs nobody anything; a new one costs 5 to 10
ms of processor time, several requests' worth, and its tenant closes another's in turn. Twenty
tenants with twenty connections would do so whenever two requests meet at one. What is usual tells
more than any fixed time: a request keeps a connection for 5 ms, on a machine that has too much to
do for 50, where 0.1 s for all was too short (throughput was 0.4 to 0.9 of what it is with a pool
for each); and where nothing comes back after ten times what is usual, something holds it that is
not usual, and who waits goes on with another's after some 50 ms."""

PATIENCE_S = 0.25
"""How long at most: who is slow as a rule does not wait for long while others' are idle."""


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
        self._permits: Counter[Holder] = Counter()  # those that are out, by who has them
        self._idle: OrderedDict[object, Holder] = OrderedDict()  # longest idle first
        self._waiters: list[Waiter] = []  # for whom there is nothing yet; first come first
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
        held: dict[str, Held] = {}
        for holder, permits in self._permits.items():  # one tenant has two while it is swapped
            in_use, idle = held.get(holder.owner, Held(0, 0))
            held[holder.owner] = Held(in_use + permits - len(holder.idle), idle + len(holder.idle))
        return held

    def take(self, holder: Holder, *, is_to_open: bool = False) -> object:
        """Return an idle connection of `holder`, None, or an `Eviction`; with it goes a permit.

        None: open one. Eviction: close that one first, then open one.

        Args:
            holder: who needs a connection.
            is_to_open: it needs a new one, also where it has an idle one.

        Raises:
            ConnectionsExhaustedError: there was none for `wait_s`.
        """
        self.notice_fork()
        if holder.idle and not is_to_open and (connection := self._take_own(holder)):
            return connection
        waiter = Waiter(holder, is_to_open=is_to_open)
        with self._lock:
            self._accept()
            if not self._serve(waiter):
                waiter.queue(self._waiters)
        self._settle()
        if waiter.is_served is not None:
            self._wait(waiter, waiter.is_served)
        return waiter.grant

    def _take_own(self, holder: Holder) -> object:
        """Return its newest idle connection, which is what most requests get; None if it is gone.

        Whatever came back meanwhile is accepted afterwards, without a second look at the lock.
        """
        with self._lock:
            connection = self._take_idle(holder, holder.idle[-1]) if holder.idle else None
        if self._returned:
            self._settle()
        return connection

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
        """Take what came back, and give it to who may have it, first come first served."""
        while self._returned:
            holder, connection = self._returned.popleft()
            if connection is None:
                self._open -= 1
                self._count(holder, -1)
            else:
                holder.idle.append(connection)
                self._idle[connection] = holder
            self._serve_waiters()

    def _serve_waiters(self) -> None:
        if self._waiters:
            self._waiters = [waiter for waiter in self._waiters if not self._serve(waiter)]

    def _serve(self, waiter: Waiter) -> bool:
        """Give it what it may have now; whether there is something.

        Nobody overtakes: of all that there is, nobody who waits may have any.
        """
        holder = waiter.holder
        if holder.idle and not waiter.is_to_open:
            waiter.serve(self._take_idle(holder, holder.idle[-1]))
        elif self._open < self.limit:
            self._open += 1
            self._count(holder, 1)
            waiter.serve(None)
        elif self._idle and not (waiter.is_patient and self._is_in_use(holder)):
            waiter.serve(self._evict(holder))
        return waiter.is_granted

    def _is_in_use(self, holder: Holder) -> bool:
        """Whether a connection of its own may soon come back."""
        return self._permits[holder] > len(holder.idle)

    def _count(self, holder: Holder, change: int) -> None:
        self._permits[holder] += change
        if not self._permits[holder]:
            del self._permits[holder]

    def _take_idle(self, holder: Holder, connection: object) -> object:
        if holder.idle[-1] is connection:
            del holder.idle[-1]
        else:
            holder.idle.remove(connection)
        del self._idle[connection]
        return connection

    def _evict(self, holder: Holder) -> Eviction:
        connection, victim = next(iter(self._idle.items()))
        self._take_idle(victim, connection)
        self._count(victim, -1)
        self._count(holder, 1)
        return Eviction(victim, connection)

    # -- outside the lock --------------------------------------------------------------------

    def _settle(self) -> None:
        """Accept what came back. Whoever held the lock looks once more after letting it go."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                self._accept()
            finally:
                self._lock.release()

    def _wait(self, waiter: Waiter, is_served: threading.Event) -> None:
        """Wait for the grant.

        Raises:
            ConnectionsExhaustedError: there was none in time.
        """
        began_at = self._clock()
        patience_s = min(PATIENCE_HOLDS * waiter.holder.hold_s, PATIENCE_S, self.wait_s)
        try:
            if not is_served.wait(patience_s):
                self._end_patience(waiter)
                is_served.wait(self.wait_s - patience_s)
        except BaseException:  # a signal handler of the server
            if self._leave(waiter):
                self._return_grant(waiter)
            raise
        if not self._leave(waiter):
            waited_s = self._clock() - began_at
            raise ConnectionsExhaustedError(waiter.holder.owner, waited_s, self.limit, self.held())

    def _end_patience(self, waiter: Waiter) -> None:
        with self._lock:
            waiter.is_patient = False
            self._accept()
            self._serve_waiters()
        self._settle()

    def _leave(self, waiter: Waiter) -> bool:
        """Wait no longer; whether there is a grant."""
        with self._lock:
            if not waiter.is_granted:
                self._waiters.remove(waiter)
        self._settle()
        return waiter.is_granted

    def _return_grant(self, waiter: Waiter) -> None:
        grant = waiter.grant
        if isinstance(grant, Eviction):  # the connection was not closed: it is its holder's again
            with self._lock:
                self._count(waiter.holder, -1)
                self._count(grant.holder, 1)
            self.give_back(grant.holder, grant.connection)
        elif grant is None:
            self.free(waiter.holder)
        else:
            self.give_back(waiter.holder, grant)
