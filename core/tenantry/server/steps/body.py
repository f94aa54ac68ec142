"""The second step: decides from the head whether to refuse the request, and receives the body."""

import math
import select
from http import HTTPStatus
from typing import TYPE_CHECKING

from tenantry.http.problem import ProblemResponse, Refusal
from tenantry.http.request_head import CHUNKED, BadRequestError
from tenantry.server.admission import HOST_BUSY
from tenantry.server.connection import BODY, Connection
from tenantry.server.exchange import Exchange
from tenantry.server.steps.request_body import ChunkedBody, LengthBody, TooLargeError

if TYPE_CHECKING:
    from tenantry.server.protocol import HttpProtocol

ROOM_TIMEOUT_S = 30.0
"""Maximum seconds that a request body waits for a part of the budget, before its request gets
503."""

RECEIVE_BYTES = 64 << 10
"""Maximum number of bytes of a body that are received at once."""

CHUNKED_RECEIVE_BYTES = 16 << 10
"""Maximum number of bytes of a chunked body that are received at once. With chunks of one byte,
decoding this many bytes takes 7 ms of the leader's time."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

TOO_SLOW = ProblemResponse(HTTPStatus.REQUEST_TIMEOUT, "The request arrived too slowly.")
TOO_LARGE = ProblemResponse(
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body of this request is larger than allowed here."
)
INCOMPLETE = ProblemResponse(HTTPStatus.BAD_REQUEST, "The body of this request is incomplete.")


class RequestBodies:
    """Receives request bodies into spools. Only the leader uses this class.

    Args:
        protocol: the other steps.
    """

    def __init__(self, protocol: "HttpProtocol") -> None:
        self._protocol = protocol
        self._loop = protocol.loop
        self._admission = protocol.admission

    def begin(self, exchange: Exchange) -> None:
        """Decide from the head whether to refuse the request, before the client sends the body."""
        if self._admission.is_quick(exchange.environ):
            self._receive_unless(self._admission.refusal(exchange.environ), exchange)
        else:  # a check that waits needs a thread
            self._protocol.turns.take(exchange, self._decide)

    def _decide(self, exchange: Exchange) -> None:
        self._loop.hand_off((self._decide_by_head, exchange, self._decided))

    def _decide_by_head(self, exchange: Exchange) -> Refusal | None:
        try:
            return self._admission.refusal(exchange.environ)
        finally:
            self._admission.leave(exchange.record)
            exchange.record = None

    def _decided(self, _: Connection, exchange: Exchange, refusal: Refusal | None) -> None:
        self._protocol.turns.start_waiting()
        self._receive_unless(refusal, exchange)

    def _receive_unless(self, refusal: Refusal | None, exchange: Exchange) -> None:
        if refusal is not None:
            self._protocol.responses.refuse(exchange, refusal)
            return
        connection, size_bytes = exchange.connection, exchange.framing.body_bytes
        spool = exchange.body = exchange.new_spool()
        if size_bytes == CHUNKED:
            max_bytes = self._admission.max_body_bytes(exchange.environ)
            exchange.receiving = ChunkedBody(spool, max_bytes)
        else:
            exchange.receiving = LengthBody(spool, size_bytes)
        connection.state = BODY
        connection.begin_moving(self._loop.now)
        if exchange.framing.expects_continue and not connection.buffer:
            connection.send(CONTINUE, exchange)
        if connection.buffer:
            self._feed(exchange, connection.buffer)
        else:
            self.receive(connection)

    def receive(self, connection: Connection) -> None:
        """Receive bytes of a body."""
        exchange = connection.exchange
        assert exchange is not None  # noqa: S101 - the state is BODY
        is_chunked = exchange.framing.body_bytes == CHUNKED
        data = connection.receive(CHUNKED_RECEIVE_BYTES if is_chunked else RECEIVE_BYTES)
        if data is None:
            self._loop.watch(connection, select.EPOLLIN)
        elif not data:
            self._protocol.responses.refuse(exchange, (INCOMPLETE, []))
        else:
            connection.note_moved(len(data))
            self._feed(exchange, connection.buffer + data if connection.buffer else data)

    def _feed(self, exchange: Exchange, data: bytes) -> None:
        """Add the received bytes to the body, and begin the next step when the body is complete."""
        connection, receiving = exchange.connection, exchange.receiving
        assert receiving is not None  # noqa: S101 - the caller has set it
        try:
            taken, has_room = receiving.feed(data)
        except BadRequestError as error:
            problem = ProblemResponse(error.status, error.detail)
            self._protocol.responses.refuse(exchange, (problem, []))
            return
        except TooLargeError:
            self._protocol.responses.refuse(exchange, (TOO_LARGE, []))
            return
        connection.buffer = data[taken:]
        if receiving.is_complete:
            self._protocol.turns.take(exchange, self._protocol.responses.start)
        elif has_room:
            self._loop.watch(connection, select.EPOLLIN)
        else:  # the client has to wait, not the leader
            self._loop.unwatch(connection)
            exchange.waits_for_room_since = exchange.waits_for_room_since or self._loop.now
            connection.deadline = self._loop.now  # try again at the next tick

    def time_out(self, exchange: Exchange) -> None:
        """Refuse a body that has exceeded its time limit, or try again to reserve its memory."""
        since = exchange.waits_for_room_since
        if not since:
            self._protocol.responses.refuse(exchange, (TOO_SLOW, []))
        elif self._loop.now - since >= ROOM_TIMEOUT_S:
            self._protocol.responses.refuse(exchange, (HOST_BUSY, []))
        else:
            # The step continues through a separate call, because the request may run at once, while
            # another thread becomes the leader.
            exchange.connection.deadline = math.inf
            self._loop.call(self._retry_room, exchange.connection, exchange)

    def _retry_room(self, _: Connection, exchange: Exchange) -> None:
        since = exchange.waits_for_room_since
        exchange.waits_for_room_since = 0.0
        exchange.connection.begin_moving(self._loop.now)
        self._feed(exchange, exchange.connection.buffer)
        if exchange.waits_for_room_since:
            exchange.waits_for_room_since = since


def drop_body(exchange: Exchange) -> None:
    """Skip a body that no app reads.

    If the body has not been received completely, the connection closes.
    """
    connection, size_bytes = exchange.connection, exchange.framing.body_bytes
    if not size_bytes:
        return
    is_here = 0 < size_bytes <= len(connection.buffer)
    exchange.is_kept_alive = exchange.is_kept_alive and is_here
    connection.buffer = connection.buffer[size_bytes:] if is_here else b""
