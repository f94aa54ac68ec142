"""Sends mutated requests of the wire corpus to Tenantry's worker.

    python tests/wire/fuzz.py [COUNT] [--seed N] [--first NUMBER]

Each connection carries a whole request, a mutated one, and another whole request. Each request has
a nonce that the app returns. The fuzzer fails if one of these happens:

- A worker process ends, or a worker logs a failure of its own.
- A response is not well-formed, or is cut off, or the connection is reset or silent.
- A response has a nonce that its connection did not send, or that comes out of order.
- The first request, which is complete, is not answered.
- The app gets a request for a tenant other than the one that the worker has admitted.

To repeat one mutant, give its number and the seed: `fuzz.py 1 --seed 7 --first 1234`.
"""

import argparse
import contextlib
import re
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from exchange import Address
from mutation import Mutant, make_mutant
from response_reader import CutResponseError, MalformedResponseError, Response, ResponseReader
from wire_servers import OURS, group, gunicorn, running

BATCH = 32
"""Number of mutants that are sent together, each on its own connection."""
BATCHES_AT_ONCE = 3
MAX_FAILURES = 200
"""Number of failures after which the fuzzer stops."""
DEADLINE_S = 20.0
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: close() resets the connection
_NONCE = re.compile(rb"n[0-9]{9}[abm]")
_FAILURE = re.compile(r"Traceback|worker\.\w*failed|Exception in worker|Worker \(pid")


@dataclass
class Report:
    """The results of a run of the fuzzer."""

    mutants: int = 0
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    compared: int = 0
    """Number of requests whose admitted tenant was compared with the tenant that answered."""
    failures: list[str] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Add the figures of another report, except its seconds."""
        self.mutants += other.mutants
        self.statuses.update(other.statuses)
        self.compared += other.compared
        self.failures += other.failures


# -- one connection -------------------------------------------------------------------------------


class Received:
    """The bytes of a connection that has ended, with the method of a socket that a reader needs."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def recv(self, size: int) -> bytes:
        """Return the next bytes."""
        data, self._data = self._data[:size], self._data[size:]
        return data


def find_problem(mutant: Mutant, data: bytes, report: Report) -> str:
    """Return what is wrong with the received bytes of a mutant; empty if the bytes are correct."""
    try:
        responses = list(_responses(data, is_head=b"HEAD" in mutant.sent))
    except (MalformedResponseError, CutResponseError) as error:
        return f"{type(error).__name__}: {error}"
    report.statuses.update(response.status for response in responses)
    answered = [response for response in responses if "x-nonce" in response.headers]
    first = answered[0].headers if answered else {}
    if (first.get("x-nonce"), first.get("x-tenant")) != (mutant.first_nonce, mutant.first_tenant):
        return f"the first request got {[response.status for response in responses]}: {first}"
    return _mixed_up(mutant.sent, answered) or _mismatch(answered, report)


def _responses(data: bytes, *, is_head: bool) -> Iterator[Response]:
    reader = ResponseReader(Received(data))
    while (response := reader.next(is_head=is_head)) is not None:
        yield response


def _mixed_up(sent: bytes, answered: Sequence[Response]) -> str:
    """Return which nonce was not sent on this connection, or was not sent in this order."""
    nonces = [match[0].decode() for match in _NONCE.finditer(sent)]
    left = iter(nonces)
    for response in answered:
        nonce = response.headers["x-nonce"]
        is_head = response.headers["x-seen-method"] == "HEAD"
        if not is_head and response.body.decode() != nonce:
            return f"the body of {nonce} is {response.body!r}"
        if nonce != "none" and nonce not in left:  # the loop consumes the nonces up to this nonce
            return f"the nonce {nonce} is not the next one of {nonces}"
    return ""


def _mismatch(answered: Sequence[Response], report: Report) -> str:
    """Return the request that reached a tenant other than the one that the worker has admitted."""
    for response in answered:
        admitted, tenant = response.headers["x-admitted"], response.headers["x-tenant"]
        report.compared += 1
        if admitted != tenant:
            return f"admitted as {admitted or 'no tenant'}, served by {tenant or 'the host'}"
    return ""


# -- batches --------------------------------------------------------------------------------------


def _play_batch(address: Address, mutants: Sequence[Mutant]) -> Report:
    """Send mutants over parallel connections, and check each connection at its end."""
    report = Report(mutants=len(mutants))
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in mutants:
            connection = socket.create_connection(address, timeout=DEADLINE_S)
            connections.append(stack.enter_context(connection))
        _send_all(connections, mutants)
        for connection, mutant in zip(connections, mutants, strict=True):
            if mutant.is_aborted:
                continue
            try:
                problem = find_problem(mutant, _receive_all(connection), report)
            except OSError as error:
                problem = f"{type(error).__name__}: {error}"
            if problem:
                sent = f"{mutant.sent[:2000]!r}"
                report.failures.append(f"mutant {mutant.number}: {problem}\n  {sent}")
    return report


def _send_all(connections: Sequence[socket.socket], mutants: Sequence[Mutant]) -> None:
    """Send piece by piece, each piece of all connections before the next piece."""
    for turn in range(max(len(mutant.pieces) for mutant in mutants)):
        for connection, mutant in zip(connections, mutants, strict=True):
            # After an early answer, the server may have closed the connection.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                if turn < len(mutant.pieces):
                    connection.sendall(mutant.pieces[turn])
                if turn == len(mutant.pieces) - 1:
                    _end(connection, mutant)


def _end(connection: socket.socket, mutant: Mutant) -> None:
    if mutant.is_aborted:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        connection.close()
    else:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)


def _receive_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


# -- the run --------------------------------------------------------------------------------------


def fuzz(folder: Path, count: int, *, seed: int = 1, first: int = 0) -> Report:
    """Send mutants to a new server in `folder`, and return the report.

    Args:
        folder: an empty folder.
        count: number of mutants.
        seed: the seed of all mutants.
        first: the number of the first mutant.
    """
    command = gunicorn(OURS, "fuzz_app:application", "--max-requests", "0", "--workers", "2")
    with running(command, folder) as server:
        processes = set(group(server.process.pid))
        begun = time.monotonic()
        report = _play_all(("127.0.0.1", server.port), range(first, first + count), seed)
        report.seconds = time.monotonic() - begun
        if processes - set(group(server.process.pid)):
            report.failures.append("a process of the server has ended")
        report.failures += logged_failures(server.log.read_text())
    return report


def _play_all(address: Address, numbers: range, seed: int) -> Report:
    """Send the mutants in batches, a few batches at once; stop after many failures."""
    total = Report()

    def play(start: int) -> Report:
        chosen = range(start, min(start + BATCH, numbers.stop))
        return _play_batch(address, [make_mutant(seed, number) for number in chosen])

    with ThreadPoolExecutor(BATCHES_AT_ONCE) as pool:
        for report in pool.map(play, numbers[::BATCH]):
            total.add(report)
            if len(total.failures) >= MAX_FAILURES:
                pool.shutdown(wait=False, cancel_futures=True)
                break
    return total


def logged_failures(log: str) -> list[str]:
    """Return the lines of a server's log that report a failure of a worker, at most 20."""
    found = [line for line in log.splitlines() if _FAILURE.search(line)]
    return [f"the log says: {line}" for line in found[:20]]


def main() -> int:
    """Run the fuzzer, print the report, and return the exit code."""
    parser = argparse.ArgumentParser(description="Sends mutated requests to Tenantry's worker.")
    parser.add_argument("count", nargs="?", type=int, default=1_000_000, help="number of mutants")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = fuzz(Path(folder), options.count, seed=options.seed, first=options.first)
    speed = report.mutants / max(report.seconds, 0.001)
    print(f"{report.mutants} mutants with seed {options.seed}, {speed:.0f} per second")
    print("statuses:", ", ".join(f"{key}: {n}" for key, n in sorted(report.statuses.items())))
    print(f"tenants compared: {report.compared}")
    print(f"failures: {len(report.failures)}", *report.failures, sep="\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
