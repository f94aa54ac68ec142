"""What the connection budget and those who need a connection say to each other.

Plain objects: no lock, no clock. `budget.py` writes them under its lock.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tenantry.errors import TenantryError


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
    hold_s: float
    """How long it keeps a connection that it uses, lately."""


@dataclass(eq=False)
class Eviction:
    """An idle connection that whoever gets this must close, to have its permit."""

    holder: Holder
    connection: object


class Waiter:
    """Who takes a connection. Its grant is written once, under the budget's lock."""

    __slots__ = ("grant", "holder", "is_granted", "is_patient", "is_served", "is_to_open")

    def __init__(self, holder: Holder, *, is_to_open: bool) -> None:
        self.holder = holder
        self.is_to_open = is_to_open
        self.is_patient = not is_to_open
        """Whether it rather waits for one of its own than has another's closed."""
        self.is_granted = False
        self.grant: object = None
        self.is_served: threading.Event | None = None

    def queue(self, queue: "list[Waiter]") -> None:
        """Wait there."""
        self.is_served = threading.Event()
        queue.append(self)

    def serve(self, grant: object) -> None:
        """Get an idle connection, None or an eviction, and wait no longer."""
        self.grant = grant
        self.is_granted = True
        if self.is_served is not None:
            self.is_served.set()
