"""What a tenant's clients see when workers die or restart while their neighbour's file is broken.

    python tests/bench/restarts.py

One gunicorn, 2 workers of 8 threads; globex and initech have keep-alive clients, acme's file is
broken. Then: `kill -9` of a worker, HUP, a binary upgrade (USR2, then QUIT of the old master).
"""

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from loads import (
    Bounds,
    Client,
    Server,
    describe,
    load,
    make_site,
    serving,
    teller_text,
    wait_until,
)

PAUSE_S = 0.02
CALM_S = 4.0
AFTER_S = 5.0
NAMES = ("globex", "initech")


def main() -> None:
    """Take each blow on a server of its own."""
    bounds = Bounds()
    for what, blow in (("kill -9", kill_worker), ("HUP", hang_up), ("USR2", upgrade)):
        with tempfile.TemporaryDirectory() as folder:
            take(what, blow, Path(folder), bounds)
    bounds.end()


def take(what: str, blow: Callable[[Server, Path], None], folder: Path, bounds: Bounds) -> None:
    """Print what the healthy tenants' clients saw before and after the blow."""
    tenants = make_site(folder)
    for name in ("acme", *NAMES):
        (tenants / f"{name}.py").write_text(teller_text(name, 0))
    with serving(folder, 2, "--pid", str(folder / "pid")) as server:
        server.wait_for("/-/readyz", 200)
        (tenants / "acme.py").write_text("SECRET_KEY = ")
        clients = [Client(server.port, name, PAUSE_S) for name in NAMES * 3]
        with load(clients):
            time.sleep(CALM_S)
            start = time.perf_counter()
            blow(server, folder)
            time.sleep(AFTER_S)
    calm = [one.seconds for client in clients for one in client.answers if one.at < start]
    after = [one.seconds for client in clients for one in client.answers if one.at >= start]
    failures = [one for client in clients for one in client.failures]
    print(f"{what}:\n  calm   {describe(calm)}\n  after  {describe(after)}")
    closed = sum(len(one.reconnects) for one in clients)
    print(f"  {closed} idle connections were closed by the server")
    for at, text in failures[:5]:
        print(f"  failed {at - start:.2f} s after: {text}")
    if what == "kill -9":
        late = [at for at, _ in failures if at > start + 2]
        bounds.check(f"{what}: failed from 2 s after it on", len(late), 0)
        print(f"  failed at once, in the killed worker: {len(failures) - len(late)}")
    else:
        bounds.check(f"{what}: failed answers of healthy tenants", len(failures), 0)


def kill_worker(server: Server, folder: Path) -> None:
    """End a worker as the kernel does when memory is short."""
    del folder
    os.kill(server.workers()[0], signal.SIGKILL)


def hang_up(server: Server, folder: Path) -> None:
    """Reload gunicorn: every worker replaced."""
    del folder
    old = server.workers()
    os.kill(server.process.pid, signal.SIGHUP)
    wait_until(lambda: not set(old) & set(server.workers()))


def upgrade(server: Server, folder: Path) -> None:
    """Start a second master on the same sockets, then end the first."""
    os.kill(server.process.pid, signal.SIGUSR2)
    wait_until((folder / "pid.2").exists)
    time.sleep(2)  # its workers are up
    os.kill(server.process.pid, signal.SIGTERM)
    server.process.wait(40)
    time.sleep(2)
    os.kill(int((folder / "pid").read_text()), signal.SIGTERM)


if __name__ == "__main__":
    main()
