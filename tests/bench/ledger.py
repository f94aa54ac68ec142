"""What the ledger and the request line cost a landing request.

    python tests/bench/ledger.py [--rounds 4] [--windows 30] [--requests 200]

Four gunicorns of one worker each, with the shipped configuration and one tenant or app: the host
with all that is on, lines as JSON to a file; the host with the ledger alone; the host with neither;
and the bare Flask app with the same endpoint and gunicorn's access log to a file. They take turns
in short windows; figures are processor time per request, of all the worker's threads, out of
`/proc`: the median of the windows, and its ratio to that of the other in the same round.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from loads import Bounds, Connection, Server, landing_text, serving

PATH = "/acme/"
WARM = 300

NEITHER = """\
import core.host
core.host.Metering = lambda app, ledger, note: app
application = core.host.create_host()
"""

LEDGER = """\
import core.host
application = core.host.create_host()
"""

BARE = """\
from flask import Flask
from core.endpoints.landing.blueprint import landing_bp
application = Flask("acme")
application.config["SECRET_KEY"] = "-" * 32
application.register_blueprint(landing_bp, url_prefix="/acme")
"""

SIDES = ("all", "ledger", "neither", "bare")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4, help="of new servers")
    parser.add_argument("--windows", type=int, default=30, help="of each round")
    parser.add_argument("--requests", type=int, default=200, help="of a window")
    asked = parser.parse_args()
    costs: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(asked.rounds):  # where a process's objects lie is worth some percent
        take_turns(costs, asked.windows, asked.requests)
    bounds = Bounds()
    print(f"  load average {os.getloadavg()[0]:.1f}, {asked.rounds} x {asked.windows} windows")
    for side, each in costs.items():
        print(f"  {side:<8}{1e6 * statistics.median(each):7.1f} µs of processor per request")
    bounds.check("the ledger alone ÷ neither", ratio(costs, "ledger", "neither"), 1.03)
    bounds.check("all ÷ the bare app with an access log", ratio(costs, "all", "bare"), 1.08)
    print(f"  ledger and line ÷ neither: {ratio(costs, 'all', 'neither'):.3f}")
    bounds.end()


def take_turns(costs: dict[str, list[float]], windows: int, requests: int) -> None:
    """Serve all sides, ask each in each window, and add up what a request cost."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as servers:
        site = make_site(Path(folder))
        running = {side: servers.enter_context(serve(site, side)) for side in SIDES}
        connections = {side: Connection(server.port) for side, server in running.items()}
        for side, connection in connections.items():
            servers.callback(connection.close)
            window(running[side], connection, WARM)
        for turn in range(windows):
            for side in SIDES[turn % 4 :] + SIDES[: turn % 4]:
                cost_s = window(running[side], connections[side], requests)
                costs[side].append(cost_s / requests)


def ratio(costs: dict[str, list[float]], one: str, other: str) -> float:
    """Return the median of what one costs ÷ what the other does, round by round."""
    return statistics.median(a / b for a, b in zip(costs[one], costs[other], strict=True))


def make_site(folder: Path) -> Path:
    """Make a tenants folder with one tenant, and the modules of the other sides."""
    (folder / "tenants").mkdir()
    (folder / "tenants/acme.py").write_text(landing_text("acme"))
    for name, text in {"neither": NEITHER, "ledger": LEDGER, "bare": BARE}.items():
        (folder / f"{name}_side.py").write_text(text)
    return folder


@contextlib.contextmanager
def serve(site: Path, side: str) -> Iterator[Server]:
    """Serve one side until the end of the block; it has answered once."""
    options = ["--access-logfile", str(site / "access.log")] if side == "bare" else []
    options += [] if side == "all" else [f"{side}_side:application"]
    data_dir = str(site / f"instance-{side}")
    environ = {"TENANTRY_LOG_FORMAT": "json", "TENANTRY_DATA_DIR": data_dir}
    with serving(site, 1, *options, **environ) as server:
        server.wait_for(PATH, 201)
        yield server


def window(server: Server, connection: Connection, requests: int) -> float:
    """Return the processor seconds that the worker took for so many requests."""
    before_s = cpu_s(server)
    for _ in range(requests):
        status = connection.get(PATH)[0]
        if status != 201:
            raise SystemExit(f"{PATH} answered {status}")
    return cpu_s(server) - before_s


def cpu_s(server: Server) -> float:
    """Return the processor seconds that the worker's threads have had, to the microsecond."""
    (worker,) = server.workers()
    tasks = Path(f"/proc/{worker}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


if __name__ == "__main__":
    main()
