"""Enforces the time limits of connections, and the maximum number of connections of a worker."""

import math
from typing import TYPE_CHECKING

from tenantry.http.request_head import BadRequestError
from tenantry.server.connection import BODY, BUSY, HEAD, LINGERING, SENDING, Connection
from tenantry.server.steps.body import TOO_SLOW
from tenantry.server.steps.head import RECEIVE_BYTES

if TYPE_CHECKING:
    from tenantry.server.protocol import HttpProtocol

CLOSE_IDLE_AFTER_S = 1.0
"""Number of idle seconds after which a full worker may close a connection to accept a new one."""

CLOSE_AT_ONCE = 8
"""Minimum number of idle connections that may be closed at once, oldest first. In a large worker,
the number is an eighth of all connections."""

_SLOW_HEAD = BadRequestError(TOO_SLOW.status, TOO_SLOW.detail)


class ConnectionLimits:
    """Ends connections that have exceeded a time limit, or that prevent new connections.

    Only the leader uses this class.

    Args:
        protocol: the steps.
        max_connections: the number of connections above which the worker closes other connections.
    """

    def __init__(self, protocol: "HttpProtocol", max_connections: int) -> None:
        self._protocol = protocol
        self._loop = protocol.loop
        self._close_at_once = max(CLOSE_AT_ONCE, max_connections // 8)

    def check(self, now: float) -> None:
        """End connections that have exceeded a time limit.

        If the worker is full, end another connection.
        """
        for connection in list(self._loop.connections.values()):
            # The thread of a running request watches the client itself.
            if connection.deadline <= now and connection.state != BUSY:
                self._loop.guard(self._time_out, connection)
        if self._loop.needs_room:
            self.make_room(now)

    def _time_out(self, connection: Connection) -> None:
        exchange, heads = connection.exchange, self._protocol.heads
        if connection.state == HEAD and connection.buffer:
            heads.reject(connection, _SLOW_HEAD)
        elif connection.state == HEAD and (data := connection.receive(RECEIVE_BYTES)):
            connection.buffer = data  # a request has arrived since the last poll
            connection.state, connection.deadline = BUSY, math.inf
            self._loop.call(heads.next_request, connection)
        elif connection.state == BODY and exchange is not None:
            self._protocol.bodies.time_out(exchange)
        else:
            self._loop.forget(connection)

    def make_room(self, now: float) -> None:
        """Close idle and slow connections, so that slow clients do not keep new clients out.

        Among connections with a request, only the connections of the tenant with the most slow
        connections are closed.
        """
        old = [
            connection
            for connection in self._loop.connections.values()
            if connection.since <= now - CLOSE_IDLE_AFTER_S
        ]
        idle = [one for one in old if one.state in (HEAD, LINGERING)]
        if not idle:
            idle = _of_greatest_tenant([one for one in old if one.state in (BODY, SENDING)])
        for connection in sorted(idle, key=lambda one: one.since)[: self._close_at_once]:
            if connection.state == HEAD:  # a request may just have arrived
                self._loop.guard(self._time_out, connection)
            else:
                self._protocol.on_fault(connection)
                self._loop.forget(connection)


def _of_greatest_tenant(connections: list[Connection]) -> list[Connection]:
    """Return the connections of the tenant that has the most of them."""
    of_tenants: dict[str | None, list[Connection]] = {}
    for connection in connections:
        exchange = connection.exchange or connection.sent_exchange
        tenant = None if exchange is None else exchange.tenant
        of_tenants.setdefault(tenant, []).append(connection)
    return max(of_tenants.values(), key=len, default=[])
