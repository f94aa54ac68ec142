"""A client's connection: what is sent, what waits for the client, and for how long."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from servers import DEADLINE_S
from tenantry.http.request_head import Framing
from tenantry.http.response_close import ResponseCutError
from tenantry.server import connection as module
from tenantry.server.connection import (
    CLOSED,
    LEAST_BYTES_PER_S,
    PATIENCE_S,
    SPOOLED_BYTES,
    Connection,
    HijackableSocket,
)
from tenantry.server.exchange import Exchange
from tenantry.server.serving import Serving
from tenantry.server.spool import SpoolBudget

FRAMING = Framing(0, is_kept_alive=True, expects_continue=False, is_http_1_0=False)


@pytest.fixture(name="budget")
def _budget() -> SpoolBudget:
    return SpoolBudget()


@pytest.fixture(name="sockets")
def _sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return the server's end and the client's end of a connection with small buffers."""
    server, client = socket.socketpair()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    server.setblocking(False)
    client.settimeout(DEADLINE_S)
    with server, client:
        yield server, client


@pytest.fixture(name="client")
def _client(sockets: tuple[socket.socket, socket.socket]) -> socket.socket:
    return sockets[1]


@pytest.fixture(name="connection")
def _connection(sockets: tuple[socket.socket, socket.socket]) -> Iterator[Connection]:
    connection = Connection(sockets[0], ("192.0.2.1", 80), None)
    yield connection
    connection.close()


@pytest.fixture(name="exchange")
def _exchange(connection: Connection, budget: SpoolBudget) -> Exchange:
    """Return a request of acme that runs on the connection."""
    serving = Serving(budget, keeps_alive=True)
    exchange = Exchange(connection, {"REQUEST_METHOD": "GET"}, FRAMING, serving)
    exchange.tenant, connection.exchange = "acme", exchange
    return exchange


def _read(client: socket.socket, size: int, *, at_once: int = 65536) -> bytes:
    data = bytearray()
    while len(data) < size and (part := client.recv(min(at_once, size - len(data)))):
        data += part
    return bytes(data)


class Reading(threading.Thread):
    """A client that reads a number of bytes on a thread of its own."""

    def __init__(self, client: socket.socket, size: int, *, at_once: int = 65536) -> None:
        super().__init__()
        self._client, self._size, self._at_once = client, size, at_once
        self.data = b""
        self.start()

    def run(self) -> None:
        """Read."""
        self.data = _read(self._client, self._size, at_once=self._at_once)


def _ended(reading: Reading) -> bytes:
    reading.join(DEADLINE_S)
    return reading.data


# -- sending ---------------------------------------------------------------------------------------


def test_bytes_that_the_client_accepts_are_sent_at_once(
    connection: Connection, exchange: Exchange, client: socket.socket
) -> None:
    """A small response is sent without being kept."""
    connection.send(b"hello", exchange)

    assert (b"hello", None, 5) == (client.recv(100), connection.outbox, connection.sent_bytes)


def test_bytes_that_the_client_does_not_accept_wait_without_a_thread(
    connection: Connection, exchange: Exchange, client: socket.socket, budget: SpoolBudget
) -> None:
    """A response of 1 MB to a client that does not read waits, and is flushed piece by piece."""
    data = bytes(range(256)) * 4096
    connection.send(data[:500_000], exchange)
    connection.send(data[500_000:], exchange)
    kept = connection.outbox is not None, bool(budget.memory._used or budget.disk._used)
    reading = Reading(client, len(data))
    while not connection.flush():
        pass

    assert ((True, True), data) == (kept, _ended(reading))
    assert (None, {}, {}) == (connection.outbox, budget.memory._used, budget.disk._used)
    assert len(data) == connection.sent_bytes


def test_bytes_stay_in_order_when_the_client_catches_up(
    connection: Connection, exchange: Exchange, client: socket.socket
) -> None:
    """A chunk that the app sends while earlier chunks are queued reaches the client after them."""
    chunks = [bytes([number]) * 20_000 for number in range(100)]
    reading = Reading(client, sum(map(len, chunks)), at_once=5_000)
    for chunk in chunks:
        connection.send(chunk, exchange)
    while not connection.flush():
        pass

    assert b"".join(chunks) == _ended(reading)


@pytest.mark.parametrize("at_once", [1 << 14, 1 << 20])
def test_a_long_response_waits_for_its_client(
    connection: Connection,
    exchange: Exchange,
    client: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    at_once: int,
) -> None:
    """A chunk over `SPOOLED_BYTES` is sent completely, as fast as the client reads."""
    monkeypatch.setattr(module, "SPOOLED_BYTES", 1 << 16)
    data = bytes(range(256)) * (1 << 16)
    reading = Reading(client, len(data), at_once=at_once)
    connection.send(data, exchange)
    while not connection.flush():
        pass

    assert data == _ended(reading)
    assert not connection.is_waiting


def test_a_response_without_room_in_the_budget_waits_for_its_client(
    sockets: tuple[socket.socket, socket.socket], client: socket.socket
) -> None:
    """Without room in the budget, the thread of a response waits for the client."""
    connection = Connection(sockets[0], ("192.0.2.1", 80), None)
    serving = Serving(SpoolBudget(memory_bytes=0, disk_bytes=0), keeps_alive=True)
    exchange = Exchange(connection, {}, FRAMING, serving)
    data = bytes(1 << 20)
    reading = Reading(client, len(data))
    connection.send(data, exchange)

    assert data == _ended(reading)


def test_a_client_that_has_left_ends_its_response(
    connection: Connection, exchange: Exchange, client: socket.socket
) -> None:
    """Sending bytes to a disconnected client is an error, whether the bytes wait or not."""
    connection.send(bytes(1 << 20), exchange)
    client.close()

    with pytest.raises(ResponseCutError):
        connection.flush()
    with pytest.raises(ResponseCutError):
        connection.send(b"more", exchange)


def test_a_client_that_reads_nothing_holds_its_thread_for_a_limited_time(
    connection: Connection, exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that waits for its client gives up at the time limit."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)

    with pytest.raises(ResponseCutError, match="too slowly"):
        connection.send(bytes(SPOOLED_BYTES + (1 << 20)), exchange)

    assert not connection.is_waiting


def test_the_thread_of_a_dripping_client_has_one_time_limit(
    connection: Connection,
    exchange: Exchange,
    client: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slow client gets more time for the bytes that it reads, but not for each read."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "SPOOLED_BYTES", 0)

    def drip(_: float) -> bool:
        now[0] += 10.0
        client.recv(4096)
        return True

    monkeypatch.setattr(module.select, "poll", lambda: _Poll(drip))

    with pytest.raises(ResponseCutError, match="too slowly"):
        connection.send(bytes(1 << 20), exchange)

    spent_s, moved = now[0] - 1000.0, connection.sent_bytes
    assert spent_s <= PATIENCE_S + moved / LEAST_BYTES_PER_S + 20


class _Poll:
    """Replaces `select.poll`, and lets the client read while the thread waits."""

    def __init__(self, wait: Any) -> None:
        self.poll = wait

    def register(self, *_: object) -> None:
        """Do nothing."""


# -- speed -----------------------------------------------------------------------------------------


def test_each_byte_gives_its_client_more_time(connection: Connection) -> None:
    """A client has `PATIENCE_S`, plus a second for each `LEAST_BYTES_PER_S` bytes."""
    connection.begin_moving(1000.0)
    first = connection.deadline
    connection.note_moved(LEAST_BYTES_PER_S)
    connection.note_moved(LEAST_BYTES_PER_S)
    second = connection.deadline
    connection.begin_moving(2000.0)

    assert (1000.0 + PATIENCE_S, 1000.0 + PATIENCE_S + 2, 2000.0 + PATIENCE_S) == (
        first, second, connection.deadline,
    )  # fmt: skip


# -- receiving and the end -------------------------------------------------------------------------


def test_the_leader_does_not_wait_for_a_client(
    connection: Connection,
) -> None:
    """A response that must not wait is cut as soon as the socket accepts no more bytes."""
    serving = Serving(SpoolBudget(memory_bytes=0, disk_bytes=0), keeps_alive=True)
    exchange = Exchange(connection, {"REQUEST_METHOD": "GET"}, FRAMING, serving)
    exchange.may_wait = False

    with pytest.raises(ResponseCutError, match="no room"):
        connection.send(b"x" * (1 << 20), exchange)


def test_receive_tells_nothing_from_the_end(connection: Connection, client: socket.socket) -> None:
    """`receive` distinguishes no bytes yet, received bytes, and the end of the connection."""
    before = connection.receive(100)
    client.sendall(b"abc")
    during = connection.receive(2), connection.receive(100)
    client.close()

    assert (None, (b"ab", b"c"), b"") == (before, during, connection.receive(100))


def test_close_frees_what_waits(
    connection: Connection, exchange: Exchange, budget: SpoolBudget, client: socket.socket
) -> None:
    """A closed connection keeps no bytes, and can be closed again."""
    connection.send(bytes(2 << 20), exchange)
    for _ in range(2):
        connection.close()

    assert ({}, {}, CLOSED) == (budget.memory._used, budget.disk._used, connection.state)
    client.settimeout(0)
    while client.recv(1 << 20):
        pass


def test_the_last_bytes_are_sent_without_waiting(
    connection: Connection, exchange: Exchange, client: socket.socket
) -> None:
    """`send_last` ends the response, and does not wait for a client that does not read."""
    connection.send_last(b"the end")
    received = client.makefile("rb").read()
    connection.send_last(b"too late")

    assert b"the end" == received
    with pytest.raises(ResponseCutError):
        connection.send(b"more", exchange)


# -- a hijacked socket -----------------------------------------------------------------------------


def test_the_first_use_of_the_socket_hijacks_the_connection(
    connection: Connection, exchange: Exchange, client: socket.socket
) -> None:
    """An app that uses the socket gets a blocking socket; the server sends nothing more."""
    sock = HijackableSocket(exchange=exchange)
    asked = sock.getsockname(), connection.is_hijacked
    client.sendall(b"frame")
    received = sock.recv(100)
    sock.sendall(b"answer")

    assert (False, True) == (asked[1], connection.is_hijacked)
    assert (b"frame", b"answer") == (received, client.recv(100))
    assert exchange.connection.sock.getblocking()


def test_the_socket_of_a_request_that_has_ended_is_closed(exchange: Exchange) -> None:
    """After its request, an app cannot reach the connection, which may serve another tenant."""
    sock = HijackableSocket(exchange=exchange)
    exchange.is_over = True

    with pytest.raises(OSError, match="has ended"):
        sock.recv(100)
    assert not exchange.connection.is_hijacked


def test_a_question_does_not_hijack(exchange: Exchange) -> None:
    """An app can ask for the addresses of the socket without taking over the connection."""
    for name in ("getsockname", "getpeername", "family", "type"):
        getattr(HijackableSocket(exchange=exchange), name)

    assert not exchange.connection.is_hijacked
