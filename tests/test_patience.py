"""How long a thread waits for a client in all: driven by a clock that the client's bytes move."""

from collections.abc import Callable

import pytest

from core.patience import LEAST_BYTES_PER_S, NOTICED_S, PATIENCE_S, PatientSocket


class SlowClient:
    """A socket whose every read and write takes its client so many seconds."""

    def __init__(self, takes_s: float, step_bytes: int) -> None:
        self.now_s = 0.0
        self.timeout_s: float | None = None
        self.sent = b""
        self._takes_s = takes_s
        self._step_bytes = step_bytes

    def settimeout(self, seconds: float | None) -> None:
        """Keep it."""
        self.timeout_s = seconds

    def gettimeout(self) -> float | None:
        """Return it."""
        return self.timeout_s

    def recv(self, size: int, _flags: int) -> bytes:
        """Return the next bytes, unless the time is up before."""
        self._wait()
        return b"x" * min(size, self._step_bytes)

    def send(self, data: bytes, _flags: int) -> int:
        """Take the next bytes, unless the time is up before."""
        self._wait()
        self.sent += bytes(data[: self._step_bytes])
        return min(len(data), self._step_bytes)

    def _wait(self) -> None:
        assert self.timeout_s is not None
        self.now_s += min(self._takes_s, self.timeout_s)
        if self._takes_s > self.timeout_s:
            raise TimeoutError


def _patient(client: SlowClient) -> PatientSocket:
    return PatientSocket(client, clock=lambda: client.now_s)


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

    assert (data, 100) == (client.sent, round(client.now_s))


def test_waiting_for_the_interpreter_is_not_held_against_a_client() -> None:
    """A stream of many small parts, on a busy machine."""
    client = SlowClient(NOTICED_S / 2, 1)
    sock = _patient(client)

    for _ in range(10_000):
        sock.sendall(b"x")

    assert 10_000 == sock.sent_bytes


def test_the_two_directions_have_their_own_time() -> None:
    """Who has sent a large body may take its answer slowly; the time-out of others stays."""
    client = SlowClient(1.0, 1)
    sock = _patient(client)
    for _ in range(20):
        sock.recv(1)
    before = sock.gettimeout()
    for _ in range(20):
        sock.sendall(b"x")

    assert (PATIENCE_S, 20, 20) == (before, sock.received_bytes, sock.sent_bytes)
