"""The first step: receives the head of a request, and finds the app that answers the request."""

import math
import select
from http import HTTPStatus
from typing import TYPE_CHECKING

from tenantry.http.environ import REQUEST_ID, TENANT
from tenantry.http.problem import ProblemResponse
from tenantry.http.request_head import HEAD_END, BadRequestError, Framing, HeadReader
from tenantry.http.request_id import new_request_id
from tenantry.server.connection import BUSY, HEAD, Connection, HijackableSocket
from tenantry.server.exchange import Exchange
from tenantry.server.steps.body import drop_body
from tenantry.server.steps.proxy_line import read_proxy_line

if TYPE_CHECKING:
    from tenantry.server.environ import EnvironTemplate
    from tenantry.server.protocol import HttpProtocol

HEAD_TIMEOUT_S = 10.0
"""Seconds that a client has from the start of a connection, or from the first bytes of the next
request, to the end of the request head."""

RECEIVE_BYTES = 64 << 10
"""Maximum number of bytes that one `recv` reads, which is enough for a whole head."""

_INCOMPLETE = BadRequestError(HTTPStatus.BAD_REQUEST, "The head of this request is incomplete.")
_CLOSING = Framing(0, is_kept_alive=False, expects_continue=False, is_http_1_0=False)


class RequestHeads:
    """Receives request heads. Only the leader uses this class.

    Args:
        protocol: the other steps.
        reader: reads complete heads.
    """

    def __init__(self, protocol: "HttpProtocol", reader: HeadReader) -> None:
        self._protocol = protocol
        self._loop = protocol.loop
        self._admission = protocol.admission
        self._serving = protocol.serving
        self._reader = reader

    def receive(self, connection: Connection) -> None:
        """Receive bytes of a head."""
        try:
            data = connection.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            self._loop.watch(connection, select.EPOLLIN)
            return
        except OSError:
            data = b""  # the client has disconnected
        if not data:
            if connection.buffer:  # the client may have closed only its sending side
                self.reject(connection, _INCOMPLETE)
            else:
                self._loop.forget(connection)
            return
        if connection.buffer:
            connection.buffer += data
        else:
            connection.buffer = data
            if data != b"\r\n":  # an empty line before a request gives no more time
                connection.deadline = self._loop.now + HEAD_TIMEOUT_S
        self.next_request(connection)

    def next_request(self, connection: Connection) -> None:
        """Begin the request at the start of the buffer, if its head is complete."""
        try:
            exchange = self._exchange(connection)
        except BadRequestError as error:
            self.reject(connection, error)
            return
        if exchange is None:
            self._loop.watch(connection, select.EPOLLIN)
            return
        exchange.tenant = self._admission.route(exchange.environ, None)
        if not exchange.framing.body_bytes:
            self._protocol.turns.take(exchange, self._protocol.responses.start)
        elif self._admission.reads_body(exchange.environ):
            self._protocol.bodies.begin(exchange)
        else:
            self._protocol.turns.take(exchange, self._begin_without_reader)

    def _begin_without_reader(self, exchange: Exchange) -> None:
        """Run a request whose body no app reads, or receive the body if a tenant now answers.

        While a process starts, a request for an unknown path waits until all tenants are known.
        """
        if not self._admission.reads_body(exchange.environ):
            drop_body(exchange)
            self._protocol.responses.start(exchange)
            return
        self._admission.leave(exchange.record)
        exchange.record, exchange.tenant = None, exchange.environ.get(TENANT, "")
        self._protocol.bodies.begin(exchange)

    def _exchange(self, connection: Connection) -> Exchange | None:
        """Return the request at the start of the buffer, or None if its head is incomplete.

        Raises:
            BadRequestError: the head or the PROXY line is malformed.
        """
        listener: EnvironTemplate = connection.listener
        is_new = listener.proxy_mode and not connection.has_proxy_line
        if is_new and not read_proxy_line(connection, listener):
            return None
        buffer = connection.buffer
        if buffer.startswith(b"\r\n"):  # one empty line may come first (RFC 9112 §2.2)
            buffer = connection.buffer = _without_empty_line(buffer)
        end = buffer.find(HEAD_END, max(0, connection.searched_bytes - 3))
        if end < 0:
            self._reader.check_start(buffer, connection.searched_bytes)
            connection.searched_bytes = len(buffer)
            if connection.state != HEAD:
                connection.state = HEAD
                connection.deadline = self._loop.now + HEAD_TIMEOUT_S
            return None
        connection.buffer, connection.searched_bytes = buffer[end + 4 :], 0
        environ = listener.new_environ(connection)
        framing = self._reader.read(buffer[: end + 4], environ)
        exchange = connection.exchange = Exchange(connection, environ, framing, self._serving)
        environ["gunicorn.socket"] = HijackableSocket(exchange=exchange)
        connection.state = BUSY
        connection.deadline = math.inf
        return exchange

    def reject(self, connection: Connection, error: BadRequestError) -> None:
        """Answer a malformed request, and close its connection."""
        environ = {"REQUEST_METHOD": "", REQUEST_ID: new_request_id()}
        environ["REMOTE_ADDR"] = connection.listener.new_environ(connection)["REMOTE_ADDR"]
        exchange = Exchange(connection, environ, _CLOSING, self._serving)
        connection.exchange = exchange
        problem = ProblemResponse(error.status, error.detail)
        self._protocol.responses.refuse(exchange, (problem, []))


def _without_empty_line(buffer: bytes) -> bytes:
    if buffer.startswith(HEAD_END):
        raise BadRequestError(HTTPStatus.BAD_REQUEST, "The request line is empty.")
    return buffer[2:]
