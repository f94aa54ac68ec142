"""Checks that clients that are slow on purpose do not delay another tenant's requests.

    python tests/bench/slow_clients.py [--seconds 20] [ATTACK…]

One gunicorn serves all tenants with 2 workers of 8 threads. A separate process opens 64 connections
to each attacked tenant, first to one tenant and then to eight tenants at once, and replaces each
connection that the server closes. The attacks are:

- `half_heads`: The client sends half a request head, and then nothing.
- `drips`: The client sends a request head byte by byte.
- `silent`: The client connects and sends nothing.
- `lingering`: The client asks for `Connection: close`, but keeps its end open for 3 s more.
- `slow_bodies`: The client sends the head and then 16 bytes of the body at a time.
- `slow_chunks`: The client sends a chunked body with one byte in each chunk.
- `slow_readers`: The client reads a response of 1 MB at 4 kB/s.

During each attack, four clients request a page of the quiet tenant. Two of the clients keep their
connection, and two clients open a connection for each request. No request of the quiet tenant may
fail or find its connection closed, and each response must arrive within 0.5 s. The benchmark also
prints how long other processes kept a thread of the server from running, because on a busy machine
such delays are the longest waits.
"""

import argparse
import contextlib
import os
import socket
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from loads import Bounds, Client, Server, describe, load, make_site, serving, versioned_tenant_text
from rows import add_endpoint

CONNECTIONS = 64
"""Number of connections to each attacked tenant."""

TICK_S = 0.25
"""Seconds between two pieces that a slow client sends or reads."""

PAUSE_S = 0.02
LONGEST_WAIT_S = 0.5
DELAY_SAMPLE_S = 0.05
DELAY_SAMPLES = 10
ATTACKED = tuple(f"slow{number}" for number in range(8))

ENDPOINT = """\
from flask import Blueprint, request

slow_bp = Blueprint("slow", __name__)


@slow_bp.route("/", methods=["GET", "POST"])
def length():
    return str(len(request.get_data()))


@slow_bp.route("/big")
def big():
    return b"x" * (1 << 20)
"""


@dataclass(frozen=True)
class Attack:
    """What a slow client sends and reads."""

    opening: str = ""
    """Text that the client sends at once. `TENANT` is replaced."""
    piece: bytes = b""
    """Bytes that the client then sends in each tick."""
    read_bytes: int = 65536
    """Number of bytes that the client reads in each tick."""
    held_s: float = 0.0
    """Seconds for which the client keeps its end open after the server's end is closed."""


CHUNKED = "Transfer-Encoding: chunked\r\n\r\n"
ATTACKS = {
    "half_heads": Attack("GET /TENANT/ HTTP/1.1\r\nHost: a\r\nX-Half:"),
    "drips": Attack("GET /TENANT/ HTTP/1.1\r\nHost: a\r\nX-Long: ", b"x"),
    "silent": Attack(),
    "lingering": Attack(
        "GET /TENANT/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", held_s=3.0
    ),
    "slow_bodies": Attack(
        "POST /TENANT/ HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n", b"x" * 16
    ),
    "slow_chunks": Attack(f"POST /TENANT/ HTTP/1.1\r\nHost: a\r\n{CHUNKED}", b"1\r\nx\r\n"),
    "slow_readers": Attack("GET /TENANT/big HTTP/1.1\r\nHost: a\r\n\r\n", read_bytes=1024),
}


def main() -> None:
    """Run the chosen attacks against one tenant and against eight tenants."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("attacks", nargs="*", choices=[[], *ATTACKS])
    arguments = parser.parse_args()
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as folder:
        make_slow_site(Path(folder))
        with serving(Path(folder), 2) as server:
            for name in ("quiet", *ATTACKED):
                server.wait_for(f"/{name}/", 200)
            for attack in arguments.attacks or ATTACKS:
                for tenants in (ATTACKED[:1], ATTACKED):
                    measure(attack, tenants, server, arguments.seconds, bounds)
    bounds.end()


def make_slow_site(folder: Path) -> None:
    """Create the quiet tenant and the attacked tenants."""
    tenants = make_site(folder)
    add_endpoint(folder, "slow", ENDPOINT)
    (tenants / "quiet.py").write_text(versioned_tenant_text("quiet", 0))
    for name in ATTACKED:
        text = f"SECRET_KEY = {name + '-' * 32!r}\nBLUEPRINTS = ['demo.slow']\n"
        (tenants / f"{name}.py").write_text(text)


def measure(
    name: str, tenants: tuple[str, ...], server: Server, seconds: float, bounds: Bounds
) -> None:
    """Print what the quiet tenant's clients saw during one attack."""
    clients = [
        Client(server.port, "quiet", PAUSE_S, is_keeping=is_keeping)
        for is_keeping in (True, True, False, False)
    ]
    attack = ATTACKS[name]
    delays = processor_delays(server.workers())
    with attacking(server.port, attack, tenants) as figures, load(clients), delays as longest_s:
        began = time.perf_counter()
        time.sleep(seconds)
    times = [answer.seconds for client in clients for answer in client.answers]
    lost = [one for client in clients for one in client.failures + client.reconnects]
    what = f"{name}, {len(tenants)} tenant{'s' * (len(tenants) > 1)}"
    print(f"{what}, load average {os.getloadavg()[0]:.1f}; slow clients: {figures}")
    print(f"  quiet  {describe(times)}")
    longest, client = max(
        ((answer, client) for client in clients for answer in client.answers),
        key=lambda pair: pair[0].seconds,
    )
    print(f"  longest wait: from {longest.at - longest.seconds - began:.1f} s on, "
          f"{'kept' if client.is_keeping else 'new'} connection; "
          f"a thread of the server waited up to {1000 * max(longest_s):.0f} ms "
          f"of {DELAY_SAMPLES * DELAY_SAMPLE_S:g} s for a processor")  # fmt: skip
    for failure in lost[:3]:
        print(f"  failed: {failure.text}")
    bounds.check(f"{what}: failed requests of the quiet tenant", len(lost), 0)
    bounds.check(f"{what}: longest wait", max(times), LONGEST_WAIT_S, " s")


@contextlib.contextmanager
def processor_delays(pids: list[int]) -> Iterator[list[float]]:
    """Watch how long threads wait for a processor. At the end, the list has the longest time."""
    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_watch_delays, args=(pids, theirs))
    process.start()
    longest_s: list[float] = []
    try:
        yield longest_s
    finally:
        ours.send("stop")
        longest_s.append(ours.recv())
        process.join()


def _watch_delays(pids: list[int], pipe: Pipe) -> None:
    samples: deque[dict[str, float]] = deque(maxlen=DELAY_SAMPLES)
    longest_s = 0.0
    while not pipe.poll(DELAY_SAMPLE_S):
        samples.append({task: delay_s for pid in pids for task, delay_s in _delays(pid)})
        first = samples[0]
        longest_s = max(longest_s, *(samples[-1][one] - first[one] for one in first
                                     if one in samples[-1]), 0.0)  # fmt: skip
    pipe.send(longest_s)


def _delays(pid: int) -> Iterator[tuple[str, float]]:
    """Yield the time for which each thread of a process was ready but did not run, in seconds."""
    for task in Path(f"/proc/{pid}/task").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the thread has ended
            yield task.name, int((task / "schedstat").read_text().split()[1]) / 1e9


# -- slow clients, in their own process ----------------------------------------------------------


@contextlib.contextmanager
def attacking(port: int, attack: Attack, tenants: tuple[str, ...]) -> Iterator[dict[str, int]]:
    """Run slow clients until the end of the block. Then, the yielded dict contains their counts."""
    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_attack, args=(port, attack, tenants, theirs))
    process.start()
    ours.recv()  # Wait until all connections are open.
    figures: dict[str, int] = {}
    try:
        yield figures
    finally:
        ours.send("stop")
        figures.update(ours.recv())
        process.join()


@dataclass
class _SlowClient:
    """One connection of the process that attacks, until `close`."""

    sock: socket.socket
    closed_at: float = 0.0
    """Time at which the client noticed that the server has closed its end, or 0."""

    def close(self) -> None:
        """Close the client's end."""
        self.sock.close()


def _attack(port: int, attack: Attack, tenants: tuple[str, ...], pipe: Pipe) -> None:
    """Keep `CONNECTIONS` slow clients of each tenant until the pipe has a message."""
    slots = [(tenant, _connect(port, attack, tenant)) for tenant in tenants * CONNECTIONS]
    pipe.send("ready")
    opened = len(slots)
    sent = received = 0
    while not pipe.poll(TICK_S):
        for index, (tenant, client) in enumerate(slots):
            sent += _send(client, attack.piece)
            received += _receive(client, attack.read_bytes)
            if client.closed_at and time.monotonic() >= client.closed_at + attack.held_s:
                client.close()
                slots[index] = (tenant, _connect(port, attack, tenant))
                opened += 1
    alive = sum(not client.closed_at for _, client in slots)
    for _, client in slots:
        client.close()
    pipe.send({"opened": opened, "not closed by the server": alive,
               "bytes sent": sent, "bytes received": received})  # fmt: skip


def _connect(port: int, attack: Attack, tenant: str) -> _SlowClient:
    sock = socket.socket()
    if attack.read_bytes < 4096:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(30)
    sock.connect(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client = _SlowClient(sock)
    try:
        sock.sendall(attack.opening.replace("TENANT", tenant).encode())
    except OSError:
        client.closed_at = time.monotonic()
    sock.setblocking(False)
    return client


def _send(client: _SlowClient, piece: bytes) -> int:
    if not piece or client.closed_at:
        return 0
    try:
        return client.sock.send(piece)
    except OSError:
        client.closed_at = time.monotonic()
        return 0


def _receive(client: _SlowClient, size_bytes: int) -> int:
    if client.closed_at:
        return 0
    try:
        data = client.sock.recv(size_bytes)
    except BlockingIOError:
        return 0
    except OSError:
        data = b""
    if not data:
        client.closed_at = time.monotonic()
    return len(data)


if __name__ == "__main__":
    main()
