"""How long a thread waits for a client in all: driven by a clock that the client's bytes move."""

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
    """A socket that is ready for a read or a write after so many seconds each, and never before."""

    def __init__(self, takes_s: float, step_bytes: int) -> None:
        self.now_s = 0.0
        self.sent: list[bytes] = []
        self._takes_s = takes_s
        self._step_bytes = step_bytes
        self._is_ready = False

    def setblocking(self, flag: bool) -> None:
        """See that it never blocks."""
        assert not flag

    def recv(self, size: int, _flags: int) -> bytes:
        """Return the next bytes, once they are there."""
        self._end_ready()
        return b"x" * min(size, self._step_bytes)

    def send(self, data: bytes, _flags: int) -> int:
        """Take the next bytes, once there is room."""
        self._end_ready()
        self.sent.append(bytes(data[: self._step_bytes]))
        return len(self.sent[-1])

    def wait(self, seconds: float) -> bool:
        """Let time go by until it is ready."""
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
def test_a_client_that_trickles_is_let_go(
    act: Callable[[PatientSocket], None], error: type[Exception]
) -> None:
    """A byte a second is no reason to wait on: after half a minute the thread is free."""
    client = SlowClient(1.0, 1)
    sock = _patient(client)

    for _ in range(int(PATIENCE_S)):
        act(sock)
    for _ in range(2):
        with pytest.raises(error):
            act(sock)

    assert PATIENCE_S == pytest.approx(client.now_s, abs=0.1)


@pytest.mark.parametrize("act", [_receive, lambda sock: sock.sendall(b"x" * LEAST_BYTES_PER_S)])
def test_a_slow_client_that_goes_on_is_waited_for(act: Callable[[PatientSocket], None]) -> None:
    """At the least rate a body, and an answer, may take as long as they do."""
    client = SlowClient(1.0, LEAST_BYTES_PER_S)
    sock = _patient(client)

    for _ in range(1000):
        act(sock)

    assert 1000 == round(client.now_s)


def test_a_large_answer_in_one_piece_may_take_its_time() -> None:
    """Its time-out is not that of the whole piece."""
    client = SlowClient(1.0, 100_000)
    data = bytes(range(250)) * 40_000

    _patient(client).sendall(data)

    assert (data, 100) == (b"".join(client.sent), round(client.now_s))


def test_waiting_for_the_interpreter_is_not_held_against_a_client() -> None:
    """A stream of many small parts, on a busy machine."""
    client = SlowClient(NOTICED_S / 2, 1)
    sock = _patient(client)

    for _ in range(10_000):
        sock.sendall(b"x")

    assert 10_000 == sock.sent_bytes


def test_the_two_directions_have_their_own_time() -> None:
    """Who has sent a large body may take its answer slowly."""
    client = SlowClient(1.0, 1)
    sock = _patient(client)
    for _ in range(20):
        sock.recv(1)
    for _ in range(20):
        sock.sendall(b"x")

    assert (20, 20) == (sock.received_bytes, sock.sent_bytes)


def test_a_new_request_has_all_the_time_before_it() -> None:
    """What a client took for its last one is forgotten."""
    client = SlowClient(1.0, 1)
    sock = _patient(client)
    for _ in range(10):
        for _ in range(20):
            sock.recv(1)
            sock.sendall(b"x")
        sock.begin()

    assert 400 == round(client.now_s)


def test_a_single_wait_may_be_bounded() -> None:
    """The rest of a body that nobody read gets some time, and no more."""
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
        "talk of heads",
        "no content",
        "empty",
        "a large body",
        "go on",
        "early hints",
    ],
)
def test_an_answer_begins_with_one_packet(parts: list[bytes], packets: list[bytes]) -> None:
    """A head waits for the first bytes of the body that it announces, and nothing else waits."""
    client = SlowClient(0.0, 1 << 20)
    sock = _patient(client)
    sock.begin(holds_head=True)
    for part in parts:
        sock.sendall(part)

    assert packets == client.sent


def test_a_head_whose_body_never_comes_is_sent_in_the_end() -> None:
    """The app announced a body, and gave none."""
    client = SlowClient(0.0, 1 << 20)
    sock = _patient(client)
    sock.begin(holds_head=True)
    sock.sendall(HEAD)
    before = list(client.sent)
    sock.flush()

    assert ([], [HEAD]) == (before, client.sent)


def test_the_answer_to_a_head_request_waits_for_nothing() -> None:
    """It has no body, whatever it announces."""
    client = SlowClient(0.0, 1 << 20)
    sock = _patient(client)
    sock.begin(holds_head=False)
    sock.sendall(HEAD)

    assert [HEAD] == client.sent


def test_a_file_comes_after_its_head(tmp_path: Path) -> None:
    """Also where the system sends it by itself."""
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


def test_a_real_client_is_waited_for() -> None:
    """In both directions, on a socket that does not block."""
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
