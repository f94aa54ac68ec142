"""Checks what clients of healthy tenants see while workers restart or die.

    python tests/bench/restarts.py [--quick] [CASE…]

One gunicorn serves all tenants with 2 workers of 8 threads. The tenants globex and initech have
keep-alive clients, and clients that open a connection per request. The tenant file of acme is
broken. The cases are:

- `restart`: The benchmark runs `tenantry restart`.
- `HUP`: The benchmark sends SIGHUP to the master.
- `USR2`: The benchmark upgrades the master with USR2, and then sends TERM to the old master.
- `kill`: The benchmark kills a worker with `kill -9`.
- `TERM`: The benchmark stops a worker with SIGTERM, and gunicorn starts another.
- `stop`, `recycle`, `freeze`: See `worker_ends.py`.

Each case happens several times on one server, between calm windows, so that other load on the
machine affects both kinds of windows equally. No request of a healthy tenant may fail, except in
the first 2 s after a `kill`. A connection that the server closes just as a request arrives counts
as failed, although a client can repeat the request. With `restart`, the longest wait and the p99
may be at most 3 times the calm p99.

For `restart`, additional windows do only the work of a restart, in processes that serve no
requests: the processes import the code three times, for one trial and two workers. The additional
windows show which part of the waits is due to processor load.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import worker_ends
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
"""Seconds after which a killed worker may cause no more failures.

Requests in flight in the killed worker fail immediately.
"""

NAMES = ("globex", "initech")
Window = tuple[float, float]


def main() -> None:
    """Run each case on a new server."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one short round of each case")
    parser.add_argument("cases", nargs="*", choices=[[], *CASES, *worker_ends.CASES])
    arguments = parser.parse_args()
    bounds = Bounds()
    for case in arguments.cases or [*CASES, *worker_ends.CASES]:
        with tempfile.TemporaryDirectory() as folder:
            if case in CASES:
                measure(case, Path(folder), bounds, is_quick=arguments.quick)
            else:
                worker_ends.CASES[case](Path(folder), bounds, is_quick=arguments.quick)
    bounds.end()


def measure(case: str, folder: Path, bounds: Bounds, *, is_quick: bool) -> None:
    """Print what clients of healthy tenants saw in calm windows and during the case."""
    tenants = make_site(folder)
    for name in ("acme", *NAMES):
        (tenants / f"{name}.py").write_text(versioned_tenant_text(name, 0))
    calm: list[Window] = []
    busy: list[Window] = []
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
            for _ in range(1 if is_quick else ROUNDS):
                calm.append(window(lambda: time.sleep(CALM_S / 2 if is_quick else CALM_S)))
                if case == "restart":
                    only_work.append(window(lambda: (work(folder), time.sleep(AFTER_S))))
                busy.append(window(lambda: (CASES[case](server, folder), time.sleep(AFTER_S))))
        end_all(server, folder)
    report(case, clients, calm, busy, bounds)
    if only_work:
        times = [x for one in clients for x in one.seconds(only_work)]
        print(f"  only the work of a restart:\n         {describe(times)}")


def report(
    case: str, clients: list[Client], calm: list[Window], busy: list[Window], bounds: Bounds
) -> None:
    """Print each figure, and its bound if the figure has a bound."""
    calm_s, busy_s = ([x for one in clients for x in one.seconds(w)] for w in (calm, busy))
    print(f"{case}, {len(busy)} times:\n  calm   {describe(calm_s)}\n  busy   {describe(busy_s)}")
    p99, is_killed = percentile(calm_s, 99), case == "kill"
    for each in busy:
        longest = max(x for one in clients for x in one.seconds([each]))
        print(f"    took {each[1] - each[0] - AFTER_S:.1f} s, longest wait {1000 * longest:.1f} ms")
    failures = [one for client in clients for one in client.failures]
    repeated = [one for client in clients for one in client.reconnects]
    for one in (failures + repeated)[:5]:
        print(f"  failed at {one.at - busy[0][0]:.2f} s: {one.text}")
    late = [one for one in failures if not any(0 <= one.at - s < LATE_S for s, _ in busy)]
    if is_killed:
        print(f"  failed at once, in the killed worker: {len(failures) - len(late)}")
        bounds.check(f"{case}: failed later than {LATE_S:g} s after it", len(late), 0)
    else:
        bounds.check(f"{case}: failed requests of healthy tenants", len(failures), 0)
        bounds.check(f"{case}: connections closed as a request arrived", len(repeated), 0)
    print(f"  longest calm wait ÷ calm p99: {max(calm_s) / p99:.2f}")
    if case == "restart":
        bounds.check(f"{case}: longest wait ÷ calm p99", max(busy_s) / p99, WAIT_RATIO)
        bounds.check(f"{case}: p99 ÷ calm p99", percentile(busy_s, 99) / p99, WAIT_RATIO)
    else:
        print(f"  longest wait ÷ calm p99: {max(busy_s) / p99:.2f}")


def window(function: Callable[[], object]) -> Window:
    """Call a function, and return the start and end time of the call."""
    start = time.perf_counter()
    function()
    return start, time.perf_counter()


def restart(server: Server, folder: Path) -> None:
    """Replace the workers with `tenantry restart`."""
    old = server.workers()
    tenantry = str(Path(sys.executable).with_name("tenantry"))
    subprocess.run(
        [tenantry, "restart", "--force"], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    if set(old) & set(server.workers()):
        raise SystemExit("an old worker is still there")


def work(folder: Path) -> None:
    """Do the same work as a restart, without restarting anything."""
    for _ in range(3):
        subprocess.run([sys.executable, "-c", "import tenantry.wsgi"], cwd=folder, check=True)


def hang_up(server: Server, folder: Path) -> None:
    """Replace all workers with SIGHUP."""
    del folder
    old = server.workers()
    os.kill(server.process.pid, signal.SIGHUP)
    wait_until(lambda: not set(old) & set(server.workers()))


def upgrade(server: Server, folder: Path) -> None:
    """Start a second master on the same sockets, and then stop the first master."""
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
    """Kill a worker, as the kernel does when memory is short."""
    del folder
    os.kill(server.workers()[0], signal.SIGKILL)


def end_worker(server: Server, folder: Path) -> None:
    """Stop a worker gracefully, and wait until gunicorn has started another."""
    old = server.workers()
    os.kill(old[0], signal.SIGTERM)
    wait_until(lambda: old[0] not in server.workers())
    wait_until(lambda: {one.pid for one in read_workers(folder / "instance")} > {old[1]})


def master(folder: Path) -> int:
    """Return the process ID of the master that owns the sockets, or 0 during a change."""
    try:
        return int((folder / "pid").read_text())
    except (OSError, ValueError):
        return 0


def end_all(server: Server, folder: Path) -> None:
    """Stop a master that replaced the first master."""
    if (last := master(folder)) not in (0, server.process.pid):
        os.kill(last, signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{last}").exists(), 40)


CASES: dict[str, Callable[[Server, Path], None]] = {
    "restart": restart, "HUP": hang_up, "USR2": upgrade, "kill": kill_worker,
    "TERM": end_worker,
}  # fmt: skip


if __name__ == "__main__":
    main()
