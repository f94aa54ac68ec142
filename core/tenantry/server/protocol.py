"""The HTTP protocol of a worker: reacts when bytes of a client arrive, or when bytes can be sent.

`HttpProtocol` assembles the steps of a connection, and calls the step that a connection is in.
"""

import select
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tenantry.http.request_head import HeadReader
from tenantry.server.admission import Admission
from tenantry.server.connection import BODY, BUSY, HEAD, LINGERING, SENDING, Connection
from tenantry.server.environ import EnvironTemplate
from tenantry.server.exchange import Exchange
from tenantry.server.hooks import runner
from tenantry.server.loop import Loop
from tenantry.server.serving import Serving
from tenantry.server.steps.body import RequestBodies
from tenantry.server.steps.head import HEAD_TIMEOUT_S, RequestHeads
from tenantry.server.steps.limits import ConnectionLimits
from tenantry.server.steps.response import STOP_KEEPALIVE_S, Responses
from tenantry.server.steps.turn import Turns

CHECK_S = 0.5
"""Seconds between two checks of the time limits of connections, and of the heartbeat."""


class HttpProtocol:
    """Takes each connection of a worker from one step to the next, on the leader's thread.

    Args:
        app: the WSGI application.
        admission: decides which requests run.
        serving: what all exchanges of the worker share.
        reader: reads request heads.
        worker: gunicorn's worker, for its settings, its hooks and its log.
        max_threads: maximum number of threads, including the leader.
    """

    def __init__(
        self,
        app: Any,
        admission: Admission,
        serving: Serving,
        reader: HeadReader,
        worker: Any,
        *,
        max_threads: int,
    ) -> None:
        self.admission = admission
        self.serving = serving
        self._worker = worker
        self._is_stopping = False
        self.must_stop = False
        """Set by the worker's main thread to stop the worker."""
        self._check_connections_at = 0.0
        max_connections: int = worker.cfg.worker_connections
        self.loop = Loop(
            self,
            max_threads=max_threads,
            max_connections=max_connections,
            row=getattr(worker, "row", None),
        )
        self.heads = RequestHeads(self, reader)
        self.bodies = RequestBodies(self)
        self.turns = Turns(self)
        self.responses = Responses(self, worker, runner(app, worker))
        self._limits = ConnectionLimits(self, max_connections)
        self.ready: Mapping[int, Callable[[Connection], object]] = {
            HEAD: self.heads.receive,
            BODY: self.bodies.receive,
            BUSY: self.responses.send_early,
            SENDING: self.responses.send_rest,
            LINGERING: self.responses.drain,
        }
        serving.on_backlog = partial(self.loop.call, self._watch_backlog)

    @property
    def has_ended(self) -> bool:
        """Whether a stopping worker has no connection left."""
        return self._is_stopping and not self.loop.connections

    def _watch_backlog(self, connection: Connection) -> None:
        """Send the beginning of a response while the request still runs."""
        if connection.state == BUSY and connection.outbox is not None:
            self.loop.watch(connection, select.EPOLLOUT)

    # -- what the loop calls ----------------------------------------------------------------------

    def on_accept(self, sock: socket.socket, peer: Any, listener: EnvironTemplate) -> None:
        """Begin a new connection; usually, its first head has already arrived."""
        connection = Connection(sock, peer, listener)
        connection.since = self.loop.now
        connection.deadline = self.loop.now + HEAD_TIMEOUT_S
        self.loop.add(connection)
        self.heads.receive(connection)

    def on_full(self, is_full: bool) -> None:
        """While the worker is full, close each connection after its response, for other clients."""
        self.serving.keeps_alive = self._keeps_alive and not is_full
        if is_full:
            self._limits.make_room(self.loop.now)

    @property
    def _keeps_alive(self) -> bool:
        return self.responses.keepalive_s > 0 and not self._is_stopping

    def on_fault(self, connection: Connection) -> None:
        """Release the request slot and the body of a connection's request."""
        exchange, connection.exchange = connection.exchange, None
        if exchange is not None:
            if exchange.record is not None:
                self.admission.leave(exchange.record)
                exchange.record = None
            if exchange.body is not None:
                exchange.body.close()

    def serve(
        self, item: tuple[Callable[[Exchange], Any], Exchange, Callable[..., object]]
    ) -> None:
        """Do work for an exchange in a thread, then continue on the leader's thread."""
        work, exchange, then = item
        try:
            result = work(exchange)
        except BaseException as error:  # noqa: BLE001 - raised again where the loop handles it
            self.loop.call(_raise, exchange.connection, error)
        else:
            self.loop.call(then, exchange.connection, exchange, result)

    def on_check(self, now: float) -> float:
        """Start or refuse waiting requests, and end connections that have exceeded a time limit."""
        if self.turns.waiting:
            self.turns.start_waiting()
            self.turns.refuse_expired(now)
        if self.must_stop and not self._is_stopping:
            self._stop()
        if now >= self._check_connections_at:
            self._check_connections_at = now + CHECK_S
            self._worker.on_check()
            self.serving.update_date()
            self._limits.check(now)
        return min(self.turns.due_at(now), self._check_connections_at)

    def _stop(self) -> None:
        """Accept no more connections, and close each connection after its next response."""
        self._is_stopping, self.serving.keeps_alive = True, False
        self.responses.keepalive_s = STOP_KEEPALIVE_S
        self.loop.stop_accepting()
        deadline = time.monotonic() + STOP_KEEPALIVE_S
        for connection in self.loop.connections.values():
            if connection.state == HEAD:
                connection.deadline = min(connection.deadline, deadline)


def _raise(_: Connection, error: BaseException) -> None:
    raise error
