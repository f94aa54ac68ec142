"""The third step: decides when each request runs, by the rule of fair share."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tenantry.server.connection import BUSY, Connection
from tenantry.server.exchange import Exchange
from tenantry.server.steps.wait_queue import WaitQueue

if TYPE_CHECKING:
    from tenantry.server.protocol import HttpProtocol


class Turns:
    """Lets a request run now, or after other requests of the same tenant.

    Not thread-safe: only the leader of the loop uses this class.

    Args:
        protocol: the other steps.
    """

    def __init__(self, protocol: "HttpProtocol") -> None:
        self._protocol = protocol
        self._loop = protocol.loop
        self._admission = protocol.admission
        self._queue: WaitQueue[Exchange] = WaitQueue()
        self.waiting: Mapping[str, object] = self._queue.tenants
        """The tenants with waiting requests."""

    def take(self, exchange: Exchange, on_turn: Callable[[Exchange], object]) -> None:
        """Call `on_turn` when a request may run, or refuse a request that waits too long."""
        connection, tenant = exchange.connection, exchange.tenant
        connection.state = BUSY
        connection.deadline = math.inf
        exchange.on_turn = on_turn
        admission = self._admission
        if (tenant in admission.over or tenant in admission.guarded) and exchange.body is None:
            refusal = admission.known_refusal(exchange.environ)
            if refusal is not None:
                self._protocol.responses.refuse(exchange, refusal)
                return
        # A request does not overtake an earlier request of the same tenant that still waits.
        # Requests without a tenant have no order: `/-/livez` must not wait for an unknown path.
        if not tenant or tenant not in self.waiting:
            record = exchange.record = self._admission.enter(exchange.environ)
            if record is not None:
                if record.is_over:
                    self._refuse(connection, exchange)
                else:
                    on_turn(exchange)
                return
        if self._queue.add(tenant or "", exchange, self._loop.now):
            self._loop.check_at = min(self._loop.check_at, self.due_at(self._loop.now))
        else:
            self._refuse(exchange.connection, exchange)

    def _begin(self, connection: Connection, exchange: Exchange) -> None:
        """Continue with a request that has waited, unless its tenant has reached its maximum."""
        if exchange.record.is_over:
            self._refuse(connection, exchange)
        else:
            exchange.on_turn(exchange)

    def _refuse(self, _: Connection, exchange: Exchange) -> None:
        refusal = self._admission.busy(exchange.tenant or "")
        self._protocol.responses.refuse(exchange, refusal)

    def start_waiting(self) -> None:
        """Continue with the waiting requests that may run now."""
        for exchange in list(self._queue.ready(self._enter)):
            # The requests start through separate calls, because an inline request may start other
            # waiting requests.
            self._loop.call(self._begin, exchange.connection, exchange)

    def _enter(self, exchange: Exchange) -> bool:
        exchange.record = self._admission.enter(exchange.environ)
        return exchange.record is not None

    def refuse_expired(self, now: float) -> None:
        """Refuse the requests that have waited too long."""
        for exchange in list(self._queue.expired(now)):
            self._loop.guard(self._refuse, exchange.connection, exchange)

    def due_at(self, now: float) -> float:
        """Return when a waiting request may run or expires; infinity if no request waits."""
        return self._queue.due_at(now, self._admission.rest_s)
