"""The last step: runs the request, sends its response, and keeps or closes the connection."""

import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tenantry.http.problem import Refusal
from tenantry.http.response_close import ResponseCutError
from tenantry.server.connection import BUSY, HEAD, SENDING, Connection
from tenantry.server.exchange import Exchange
from tenantry.server.steps.body import drop_body

if TYPE_CHECKING:
    from tenantry.server.protocol import HttpProtocol

LINGER_S = 2.0
"""Seconds for which a closed connection is drained, so that the client gets the end of its response
and not a reset (RFC 9112 §9.6)."""

LINGER_BYTES = 1 << 20
"""Maximum bytes that a client may send after its response, enough for a full loopback buffer."""

STOP_KEEPALIVE_S = 2.0
"""Seconds for which a stopping worker keeps idle connections, for requests that are still in
transit."""

RECEIVE_BYTES = 64 << 10
"""Maximum number of bytes that are drained at once."""


class Responses:
    """Runs requests, and continues with their connections. Only the leader uses this class.

    Args:
        protocol: the other steps.
        worker: gunicorn's worker.
        run: calls the app for a request and sends its response, in any thread.
    """

    def __init__(
        self,
        protocol: "HttpProtocol",
        worker: Any,
        run: Callable[[Exchange], None],
    ) -> None:
        self._protocol = protocol
        self._loop = protocol.loop
        self._admission = protocol.admission
        self._worker = worker
        self._left_requests: int = worker.max_requests
        self._run = run
        self.keepalive_s = float(worker.cfg.keepalive or 0)
        """Seconds for which a connection stays open without a request."""

    def start(self, exchange: Exchange) -> None:
        """Run a request, on this thread if the request is likely to be short."""
        if exchange.body is not None:
            _add_input(exchange)
        self._left_requests -= 1
        if self._left_requests <= 0:
            self._worker.end_soon()
        if not exchange.record.is_quick:
            self._loop.hand_off((self._run, exchange, self._after))
        elif self._loop.run_inline(self._run, exchange):
            self._after(exchange.connection, exchange)
        else:
            self._loop.call(self._after, exchange.connection, exchange)

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Answer a request without running it."""
        connection = exchange.connection
        if exchange.body is None:
            drop_body(exchange)
        elif exchange.receiving is not None:
            exchange.is_kept_alive = exchange.is_kept_alive and exchange.receiving.is_complete
            exchange.body.close()
            exchange.body = None
        connection.state = BUSY
        problem, headers = refusal
        try:
            exchange.refuse(problem, headers)
        except ResponseCutError:
            exchange.cut()
        self._admission.note_refusal(
            exchange.environ, exchange.tenant, problem, exchange.sent_bytes
        )
        self._after(connection, exchange)

    def _after(self, connection: Connection, exchange: Exchange, _: object = None) -> None:
        """Continue with a connection whose request has run."""
        connection.exchange = None
        exchange.is_over = True
        record = exchange.record
        if record is not None and record.is_in_flight:
            self._admission.leave(record)
        turns = self._protocol.turns
        if turns.waiting:
            turns.start_waiting()
        if connection.outbox is not None:
            connection.state = SENDING
            connection.sent_exchange = exchange
            self._loop.watch(connection, select.EPOLLOUT)
        else:
            self._finish(connection, exchange)

    def send_early(self, connection: Connection) -> None:
        """Send what a running request has written. Receive nothing before the request ends."""
        try:
            is_sent = connection.flush()
        except ResponseCutError:  # the thread of the request notices the disconnection itself
            is_sent = True
        if is_sent:
            self._loop.unwatch(connection)
        else:
            self._loop.watch(connection, select.EPOLLOUT)

    def send_rest(self, connection: Connection) -> None:
        """Send the rest of a response whose request has ended."""
        try:
            is_sent = connection.flush()
        except ResponseCutError:
            self._loop.forget(connection)
            return
        if is_sent and connection.sent_exchange is not None:
            self._finish(connection, connection.sent_exchange)

    def _finish(self, connection: Connection, exchange: Exchange) -> None:
        """Wait for the next request of a connection, or close the connection."""
        connection.sent_exchange = None
        if connection.is_hijacked:
            self._loop.forget(connection)
        elif exchange.is_kept_alive:
            connection.since = self._loop.now
            if connection.buffer:  # the state stays BUSY, so no bytes are received
                self._loop.call(self._protocol.heads.next_request, connection)
                return
            connection.state = HEAD
            connection.deadline = self._loop.now + self.keepalive_s
            if connection.mask != select.EPOLLIN:
                self._loop.watch(connection, select.EPOLLIN)
        else:
            self._linger(connection)

    def _linger(self, connection: Connection) -> None:
        """Close a connection without a reset: the client may still be sending (RFC 9112 §9.6)."""
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._loop.forget(connection)
            return
        self._loop.linger(connection)
        connection.buffer = b""
        connection.deadline = self._loop.now + LINGER_S
        self._loop.watch(connection, select.EPOLLIN)

    def drain(self, connection: Connection) -> None:
        """Drop the bytes that the client sends after its last response.

        The connection closes after the last byte, or after `LINGER_BYTES`.
        """
        data = connection.receive(RECEIVE_BYTES)
        if data is None:
            return
        connection.drained_bytes += len(data)
        if not data or connection.drained_bytes > LINGER_BYTES:
            self._loop.forget(connection)


def _add_input(exchange: Exchange) -> None:
    environ, body = exchange.environ, exchange.body
    assert body is not None  # noqa: S101 - the caller has checked
    environ["wsgi.input"] = body.as_input()
    environ["CONTENT_LENGTH"] = str(body.size_bytes)
    environ.pop("HTTP_TRANSFER_ENCODING", None)
