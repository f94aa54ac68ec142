"""What a healthy tenant's clients see when workers restart or die while a neighbour is broken.

    python tests/bench/restarts.py [BLOW…]

One gunicorn, 2 workers of 8 threads; globex and initech have keep-alive clients and ones that
connect anew for each request; acme's file is broken. The blows: `restart` (the command), `HUP`,
`USR2` (a binary upgrade, then TERM of the old master), `kill` (-9 of a worker). Each is dealt
several times to one server, between calm windows, so that noise of the machine meets both sides.
Beside a restart there are windows in which only its work is done, in processes that serve nobody:
the code is imported three times (the trial, two workers). Waits in these are the processors'.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from loads import (
    Bounds,
    Client,
    Server,
    children,
    describe,
    load,
    make_site,
    percentile,
    serving,
    versioned_tenant_text,
    wait_until,
)

from tenantry.observability.control_socket import read_workers

PAUSE_S = 0.02
CALM_S = 4.0
AFTER_S = 2.0
ROUNDS = 5
WAIT_RATIO = 3
LATE_S = 2.0
"""What a killed worker had in hand may fail at once, but nothing any more after this (A34)."""

NAMES = ("globex", "initech")
Window = tuple[float, float]


def main(blows: list[str]) -> None:
    """Deal each blow on a server of its own."""
    bounds = Bounds()
    for blow in blows or BLOWS:
        with tempfile.TemporaryDirectory() as folder:
            take(blow, Path(folder), bounds)
    bounds.end()


def take(blow: str, folder: Path, bounds: Bounds) -> None:
    """Print what the healthy tenants' clients saw in calm windows and under blows."""
    tenants = make_site(folder)
    for name in ("acme", *NAMES):
        (tenants / f"{name}.py").write_text(versioned_tenant_text(name, 0))
    calm: list[Window] = []
    struck: list[Window] = []
    only_work: list[Window] = []
    with serving(folder, 2, "--pid", str(folder / "pid")) as server:
        server.wait_for("/-/readyz", 200)
        (tenants / "acme.py").write_text("SECRET_KEY = ")
        clients = [
            Client(server.port, name, PAUSE_S, is_keeping=is_keeping)
            for name in NAMES
            for is_keeping in (True, True, False)
        ]
        with load(clients):
            time.sleep(1)
            for _ in range(ROUNDS):
                calm.append(window(lambda: time.sleep(CALM_S)))
                if blow == "restart":
                    only_work.append(window(lambda: (work(folder), time.sleep(AFTER_S))))
                struck.append(window(lambda: (BLOWS[blow](server, folder), time.sleep(AFTER_S))))
        end_all(server, folder)
    report(blow, clients, calm, struck, bounds)
    if only_work:
        times = [x for one in clients for x in one.seconds(only_work)]
        print(f"  only the work of a restart, nothing restarted:\n         {describe(times)}")


def report(
    blow: str, clients: list[Client], calm: list[Window], struck: list[Window], bounds: Bounds
) -> None:
    """Print the figures, each beside its bound where it has one."""
    calm_s, struck_s = ([x for one in clients for x in one.seconds(w)] for w in (calm, struck))
    print(f"{blow}, {ROUNDS} times:\n  calm   {describe(calm_s)}\n  struck {describe(struck_s)}")
    p99, is_killed = percentile(calm_s, 99), blow == "kill"
    for each in struck:
        longest = max(x for one in clients for x in one.seconds([each]))
        print(f"    took {each[1] - each[0] - AFTER_S:.1f} s, longest wait {1000 * longest:.1f} ms")
    failures = [one for client in clients for one in client.failures]
    for at, text in failures[:5]:
        print(f"  failed at {at - struck[0][0]:.2f} s: {text}")
    late = [at for at, _ in failures if not any(0 <= at - s < LATE_S for s, _ in struck)]
    if is_killed:
        print(f"  failed at once, in the killed worker: {len(failures) - len(late)}")
        bounds.check(f"{blow}: failed from {LATE_S:g} s after it on", len(late), 0)
    else:
        bounds.check(f"{blow}: failed requests of healthy tenants", len(failures), 0)
    print(f"  longest calm wait ÷ calm p99: {max(calm_s) / p99:.2f}")
    if blow == "restart":
        bounds.check(f"{blow}: longest wait ÷ calm p99", max(struck_s) / p99, WAIT_RATIO)
        bounds.check(f"{blow}: p99 ÷ calm p99", percentile(struck_s, 99) / p99, WAIT_RATIO)
    else:
        print(f"  longest wait ÷ calm p99: {max(struck_s) / p99:.2f}")


def window(act: Callable[[], object]) -> Window:
    """Do it; return from when to when."""
    start = time.perf_counter()
    act()
    return start, time.perf_counter()


def restart(server: Server, folder: Path) -> None:
    """Replace the workers as an operator does."""
    old = server.workers()
    tenantry = str(Path(sys.executable).with_name("tenantry"))
    subprocess.run(
        [tenantry, "restart", "--force"], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    if set(old) & set(server.workers()):
        raise SystemExit("an old worker is still there")


def work(folder: Path) -> None:
    """Do what a restart costs the processors, and restart nothing."""
    for _ in range(3):
        subprocess.run([sys.executable, "-c", "import tenantry.wsgi"], cwd=folder, check=True)


def hang_up(server: Server, folder: Path) -> None:
    """Reload gunicorn: every worker replaced."""
    del folder
    old = server.workers()
    os.kill(server.process.pid, signal.SIGHUP)
    wait_until(lambda: not set(old) & set(server.workers()))


def upgrade(server: Server, folder: Path) -> None:
    """Start a second master on the same sockets, then end the first, and the other way around."""
    old = master(folder)
    os.kill(old, signal.SIGUSR2)
    wait_until(lambda: (folder / "pid.2").exists() and (folder / "pid.2").read_text() != "")
    new = int((folder / "pid.2").read_text())
    wait_until(lambda: sum(one.master == new for one in read_workers(folder / "instance")) == 2)
    os.kill(old, signal.SIGTERM)
    wait_until(lambda: master(folder) == new and not children(old))
    if old == server.process.pid:
        server.process.wait(40)


def kill_worker(server: Server, folder: Path) -> None:
    """End a worker as the kernel does when memory is short."""
    del folder
    os.kill(server.workers()[0], signal.SIGKILL)


def master(folder: Path) -> int:
    """Return the pid of the gunicorn that owns the sockets now; 0 while it changes."""
    try:
        return int((folder / "pid").read_text())
    except (OSError, ValueError):
        return 0


def end_all(server: Server, folder: Path) -> None:
    """End a master that took the first one's place."""
    if (last := master(folder)) not in (0, server.process.pid):
        os.kill(last, signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{last}").exists(), 40)


BLOWS: dict[str, Callable[[Server, Path], None]] = {
    "restart": restart, "HUP": hang_up, "USR2": upgrade, "kill": kill_worker,
}  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
