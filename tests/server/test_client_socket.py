"""How long a thread waits for a client in total, on a clock that the client's bytes advance."""

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from servers import DEADLINE_S
from tenantry.server.client_socket import (
    HELD_BYTES,
    LEAST_BYTES_PER_S,
    NOTICED_S,
    PATIENCE_S,
    PatientSocket,
)

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
EMPTY = b"HTTP/1.1 202 ACCEPTED\r\ncontent-length: 0\r\nX: y\r\n\r\n"


class SlowClient:
    """A socket that becomes ready `takes_s` seconds after the begin of each wait for the socket."""

    def __init__(self, takes_s: float, step_bytes: int) -> None:
        self.now_s = 0.0
        self.sent: list[bytes] = []
        self._takes_s = takes_s
        self._step_bytes = step_bytes
        self._is_ready = False

    def setblocking(self, flag: bool) -> None:
        """Check that the socket never blocks."""
        assert not flag

    def recv(self, size: int, _flags: int) -> bytes:
        """Return the next bytes, or raise `BlockingIOError` if no byte is available."""
        self._end_ready()
        return b"x" * min(size, self._step_bytes)

    def send(self, data: bytes, _flags: int) -> int:
        """Accept the next bytes, or raise `BlockingIOError` if the buffer is full."""
        self._end_ready()
        self.sent.append(bytes(data[: self._step_bytes]))
        return len(self.sent[-1])

    def wait(self, seconds: float) -> bool:
        """Advance the clock until the socket is ready, or by `seconds`."""
        self.now_s += min(self._takes_s, seconds)
        self._is_ready = self._takes_s <= seconds
        return self._is_ready

    def _end_ready(self) -> None:
        if not self._is_ready:
            raise BlockingIOError
        self._is_ready = False


def _patient(client: SlowClient) -> PatientSocket:
    return PatientSocket(
        client, clock=lambda: client.now_s, wait=lambda _, __, seconds: client.wait(seconds)
    )


def _receive(sock: PatientSocket) -> None:
    sock.recv(65536)


def _send(sock: PatientSocket) -> None:
    sock.sendall(b"x")


@pytest.mark.parametrize(
    ("act", "error"), [(_receive, TimeoutError), (_send, ConnectionResetError)]
)
def test_a_client_that_is_too_slow_is_disconnected(
    act: Callable[[PatientSocket], None], error: type[Exception]
) -> None:
    """A client that sends or reads a byte a second holds a thread for at most `PATIENCE_S`."""
    client = SlowClient(1.0, 1)
    sock = _patient(client)

    for _ in range(int(PATIENCE_S)):
        act(sock)
    for _ in range(2):
        with pytest.raises(error):
            act(sock)

    assert PATIENCE_S == pytest.approx(client.now_s, abs=0.1)


@pytest.mark.parametrize("act", [_receive, lambda sock: sock.sendall(b"x" * LEAST_BYTES_PER_S)])
def test_a_client_at_the_minimum_rate_is_never_disconnected(
    act: Callable[[PatientSocket], None],
) -> None:
    """At `LEAST_BYTES_PER_S` or faster, a request or response of any size has no time limit."""
    client = SlowClient(1.0, LEAST_BYTES_PER_S)
    sock = _patient(client)

    for _ in range(1000):
        act(sock)

    assert 1000 == round(client.now_s)


def test_a_large_chunk_may_take_longer_than_the_patience() -> None:
    """A response of 10 MB in one chunk is sent whole, although sending takes 100 s."""
    client = SlowClient(1.0, 100_000)
    data = bytes(range(250)) * 40_000

    _patient(client).sendall(data)

    assert (data, 100) == (b"".join(client.sent), round(client.now_s))


def test_waits_below_noticed_s_do_not_count() -> None:
    """Thousands of very short waits, as on a busy machine, do not disconnect the client."""
    client = SlowClient(NOTICED_S / 2, 1)
    sock = _patient(client)

    for _ in range(10_000):
        sock.sendall(b"x")

    assert 10_000 == sock.sent_bytes


def test_reading_and_writing_have_separate_time_limits() -> None:
    """A client that took long to send a request may also take long to read the response."""
    client = SlowClient(1.0, 1)
    sock = _patient(client)
    for _ in range(20):
        sock.recv(1)
    for _ in range(20):
        sock.sendall(b"x")

    assert (20, 20) == (sock.received_bytes, sock.sent_bytes)


def test_a_new_request_gets_the_full_time() -> None:
    """The time that earlier requests on a connection took does not count."""
    client = SlowClient(1.0, 1)
    sock = _patient(client)
    for _ in range(10):
        for _ in range(20):
            sock.recv(1)
            sock.sendall(b"x")
        sock.begin()

    assert 400 == round(client.now_s)


def test_settimeout_bounds_a_single_wait() -> None:
    """`settimeout` limits the wait for the unread part of a request body."""
    client = SlowClient(1.0, 1)
    sock = _patient(client)
    sock.settimeout(0.5)
    with pytest.raises(TimeoutError):
        sock.recv(1)

    assert (0.5, 0.5) == (sock.gettimeout(), client.now_s)


@pytest.mark.parametrize(
    ("parts", "packets"),
    [
        ([HEAD, b"body"], [HEAD + b"body"]),
        ([HEAD, b"one", b"two"], [HEAD + b"one", b"two"]),
        (
            [HEAD, b"HTTP/1.1 in a log", b"HTTP/1.0 too"],
            [HEAD + b"HTTP/1.1 in a log", b"HTTP/1.0 too"],
        ),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], [b"HTTP/1.1 204 No Content\r\n\r\n"]),
        ([EMPTY], [EMPTY]),
        ([HEAD, b"x" * (HELD_BYTES + 1)], [HEAD, b"x" * (HELD_BYTES + 1)]),
        ([b"HTTP/1.1 100 Continue\r\n\r\n"], [b"HTTP/1.1 100 Continue\r\n\r\n"]),
        ([b"HTTP/1.1 103 Early Hints\r\n\r\n"], [b"HTTP/1.1 103 Early Hints\r\n\r\n"]),
    ],
    ids=[
        "head and body",
        "a stream",
        "body that looks like headers",
        "no content",
        "empty",
        "a large body",
        "continue",
        "early hints",
    ],
)
def test_headers_are_sent_with_the_first_bytes_of_the_body(
    parts: list[bytes], packets: list[bytes]
) -> None:
    """Only headers are delayed: a response's headers are sent with the first bytes of the body."""
    client = SlowClient(0.0, 1 << 20)
    sock = _patient(client)
    sock.begin(holds_head=True)
    for part in parts:
        sock.sendall(part)

    assert packets == client.sent


def test_flush_sends_headers_without_a_body() -> None:
    """Headers that announce a body are sent at the end, although the app yields none."""
    client = SlowClient(0.0, 1 << 20)
    sock = _patient(client)
    sock.begin(holds_head=True)
    sock.sendall(HEAD)
    before = list(client.sent)
    sock.flush()

    assert ([], [HEAD]) == (before, client.sent)


def test_headers_of_a_response_to_head_are_sent_at_once() -> None:
    """A response to HEAD has no body, so the headers are sent at once."""
    client = SlowClient(0.0, 1 << 20)
    sock = _patient(client)
    sock.begin(holds_head=False)
    sock.sendall(HEAD)

    assert [HEAD] == client.sent


def test_a_file_is_sent_after_its_headers(tmp_path: Path) -> None:
    """`sendfile` sends the waiting headers before the file."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * (1 << 20))
    ours, theirs = socket.socketpair()
    with ours, theirs, file.open("rb") as body:
        sock = PatientSocket(ours)
        sock.begin(holds_head=True)
        sock.sendall(HEAD)
        sending = threading.Thread(target=sock.sendfile, args=(body,))
        sending.start()
        received = b""
        with contextlib.suppress(TimeoutError):
            theirs.settimeout(DEADLINE_S)
            while len(received) < len(HEAD) + (1 << 20):
                received += theirs.recv(65536)
        sending.join(DEADLINE_S)

        assert HEAD + b"x" * (1 << 20) == received


def test_sending_and_receiving_wait_for_a_real_client() -> None:
    """A non-blocking socket sends 1 MiB and receives five bytes as the client reads and writes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(DEADLINE_S)
        sock, large = PatientSocket(ours), b"x" * (1 << 20)
        sending = threading.Thread(target=sock.sendall, args=(large,))
        sending.start()
        received = b""
        while len(received) < len(large):
            received += theirs.recv(65536)
        sending.join(DEADLINE_S)
        answering = threading.Thread(target=theirs.sendall, args=(b"later",))
        answering.start()
        answer = sock.recv(5)
        answering.join(DEADLINE_S)

        assert (large, b"later") == (received, answer)
