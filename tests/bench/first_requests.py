"""Counts the failed requests while hosts start, and after all workers were killed at once.

    python tests/bench/first_requests.py
    python tests/bench/first_requests.py --rounds 20 --kills 10 --tenants 100

- idle: A host of two workers starts with 100 idle tenants, whose endpoints have 150 lines. As soon
  as the host answers, 8 clients request all tenants in the same order, so that up to 8 requests
  wait for each build. Each round starts a new host.
- killed: 8 clients request the tenants in turn, each time on a new connection. While the clients
  run, all workers are killed at once (SIGKILL), several times. A request that a killed worker has
  accepted may be cut.

No tenant is at fault, so every response must have the status 200.
"""

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from loads import Bounds, Connection, Server, describe, make_site, serving

sys.path.append(str(Path(__file__).parents[1]))

from versioned_site import versioned_tenant_text

CLIENTS = 8
LINES = 150
BETWEEN_KILLS_S = 4.0
"""Seconds between two kills. During this time, the workers start again."""

LONGEST_S = 20.0
"""Maximum seconds that a request waits before the host responds with 503."""


class Requests:
    """The results that the clients of one case have seen. Each client appends to the lists."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.seconds: list[float] = []
        self.cut: list[str] = []
        self.failures: list[str] = []

    def request(self, name: str) -> None:
        """Request a tenant on a new connection."""
        began = time.perf_counter()
        try:
            connection = Connection(self.server.port)
        except OSError as error:
            self.failures.append(f"{name}: {error}")
            return
        try:
            status, body = connection.get(f"/{name}/")
        except (OSError, EOFError) as error:
            self.cut.append(f"{name}: {error}")
            return
        finally:
            connection.close()
        self.seconds.append(time.perf_counter() - began)
        if status != 200:
            self.failures.append(f"{name}: {status} {body[:120]!r}")

    def request_all(self, names: list[str]) -> None:
        """Request all tenants in turn."""
        for name in names:
            self.request(name)


def idle(folder: Path, bounds: Bounds, *, rounds: int, names: list[str]) -> None:
    """Start a host, and request all its idle tenants, several times."""
    seconds, failures = list[float](), list[str]()
    for _ in range(rounds):
        with serving(folder) as server:
            server.wait_for("/-/livez", 200)
            seen = Requests(server)
            clients = [
                threading.Thread(target=seen.request_all, args=(names,)) for _ in range(CLIENTS)
            ]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
        seconds += seen.seconds
        failures += seen.failures + seen.cut
    _report("idle", seconds, failures, bounds)


def killed(folder: Path, bounds: Bounds, *, kills: int, names: list[str]) -> None:
    """Kill all workers at once under load, several times."""
    stop = threading.Event()
    with serving(folder) as server:
        server.wait_for(f"/{names[0]}/", 200)
        seen = Requests(server)

        def run(first: int) -> None:
            number = first
            while not stop.is_set():
                seen.request(names[number % len(names)])
                number += 1

        clients = [threading.Thread(target=run, args=(13 * number,)) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        for _ in range(kills):
            time.sleep(BETWEEN_KILLS_S)
            for pid in server.workers():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(BETWEEN_KILLS_S)
        stop.set()
        for client in clients:
            client.join()
        parked = server.log.read_text().count("tenant.parked")
    print(f"killed: {len(seen.cut)} requests were cut")
    _report("killed", seen.seconds, seen.failures, bounds)
    # Each client has at most one request in a worker that is killed.
    bounds.check("killed: cut requests", len(seen.cut), kills * CLIENTS)
    bounds.check("killed: parked tenants", parked, 0)


def _report(case: str, seconds: list[float], failures: list[str], bounds: Bounds) -> None:
    print(f"{case:<8}{describe(seconds)}")
    for failure in failures[:5]:
        print(f"  failed: {failure}")
    bounds.check(f"{case}: failed requests", len(failures), 0)
    bounds.check(f"{case}: longest wait", max(seconds), LONGEST_S, " s")


def make_tenants(folder: Path, count: int) -> list[str]:
    """Create the endpoint of 150 lines and its tenants. Return the tenants' names."""
    tenants = make_site(folder)
    blueprint = folder / "sites/version/blueprint.py"
    text = blueprint.read_text()
    lines = LINES - len(text.splitlines())
    rules = [
        f'@version_bp.route("/item-{number}/<int:item>")\n'
        f"def show_{number}(item):\n    return {{}}\n"
        for number in range(lines // 3)
    ]
    blueprint.write_text(text + "\n" + "".join(rules))
    names = [f"tenant-{number}" for number in range(count)]
    for name in names:
        (tenants / f"{name}.py").write_text(versioned_tenant_text(name, 0))
    return names


def main() -> None:
    """Run both cases."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--tenants", type=int, default=100)
    options = parser.parse_args()
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = make_tenants(folder, options.tenants)
        idle(folder, bounds, rounds=options.rounds, names=names)
        killed(folder, bounds, kills=options.kills, names=names)
    bounds.end()


if __name__ == "__main__":
    main()
