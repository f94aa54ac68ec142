"""Measures what the usage counters and the access log add to the cost of a request.

    python tests/bench/usage_counters.py [--rounds 4] [--windows 30] [--requests 200]

Four gunicorns run alternately in short windows. Each gunicorn has the shipped configuration, one
worker, and one tenant or app:

- The first gunicorn runs a host with everything on, and writes a JSON log to a file.
- The second gunicorn runs a host that decides by the query string whether to count a request. Both
  sides of this comparison are in one process, because the memory layouts of two processes differ by
  more than the bound.
- The third gunicorn runs the bare Flask app with the same endpoint, gunicorn's own threaded worker
  and gunicorn's access log.
- The fourth gunicorn runs the bare Flask app in Tenantry's worker, to separate the cost of the
  worker from the cost of the host.

The counters may cost at most 3 %. Everything together may cost at most 8 % more than the bare app
with an access log. The figures are the processor time per request of all threads of the worker,
from `/proc`. Other load on the machine only adds processor time, so each figure is the first decile
of all windows.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from loads import Bounds, Connection, Server, landing_text, serving

COUNTED, UNCOUNTED = "/acme/?n=1", "/acme/?n=2"
WARM = 300

SWITCH = """\
import tenantry.host

class Switch(tenantry.host.Accounting):
    def _finish(self, record):
        if record.environ is None or record.environ["QUERY_STRING"] == "n=1":
            super()._finish(record)
        else:
            record.environ = record.connection = None
            self._in_flight.leave(record)

tenantry.host.Accounting = Switch
application = tenantry.host.create_host()
"""

BARE = """\
from flask import Flask
from tenantry.endpoints.landing.blueprint import landing_bp
application = Flask("acme")
application.config["SECRET_KEY"] = "-" * 32
application.register_blueprint(landing_bp, url_prefix="/acme")
"""

SIDES = {
    "all": ("all", COUNTED),
    "counters": ("switch", COUNTED),
    "neither": ("switch", UNCOUNTED),
    "bare": ("bare", COUNTED),
    "bare in our worker": ("bare in our worker", COUNTED),
}
"""The server and the request path of each compared side."""


def main() -> None:
    """Run the benchmark and print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4, help="rounds, each with new servers")
    parser.add_argument("--windows", type=int, default=30, help="windows per round")
    parser.add_argument("--requests", type=int, default=200, help="requests per window")
    arguments = parser.parse_args()
    costs: dict[str, list[float]] = {side: [] for side in SIDES}
    # The memory layout of a process changes the cost by some percent, so start new processes.
    for _ in range(arguments.rounds):
        take_turns(costs, arguments.windows, arguments.requests)
    bounds = Bounds()
    print(
        f"  load average {os.getloadavg()[0]:.1f}, {arguments.rounds} x {arguments.windows} windows"
    )
    for side, each in costs.items():
        print(f"  {side:<18}{1e6 * first_decile(each):7.1f} µs of processor time per request, "
              f"median {1e6 * statistics.median(each):7.1f} µs")  # fmt: skip
    bounds.check("the counters alone ÷ neither", ratio(costs, "counters", "neither"), 1.03)
    bounds.check("all ÷ the bare app with an access log", ratio(costs, "all", "bare"), 1.08)
    print(f"  counters and access log ÷ neither: {ratio(costs, 'all', 'neither'):.3f}")
    print(f"  all ÷ the bare app in our worker: {ratio(costs, 'all', 'bare in our worker'):.3f}")
    bounds.end()


def take_turns(costs: dict[str, list[float]], windows: int, requests: int) -> None:
    """Serve all sides, send requests in turn, and record the cost per request."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as servers:
        site = make_site(Path(folder))
        connections: dict[str, Connection] = {}
        running: dict[str, Server] = {}
        for name, path in SIDES.values():
            if name not in running:
                running[name] = servers.enter_context(serve(site, name))
                connections[name] = Connection(running[name].port)
                servers.callback(connections[name].close)
            window(running[name], connections[name], path, WARM)
        sides = list(SIDES)
        for turn in range(windows):
            first = turn % len(sides)
            for side in sides[first:] + sides[:first]:
                name, path = SIDES[side]
                cost_s = window(running[name], connections[name], path, requests)
                costs[side].append(cost_s / requests)


def ratio(costs: dict[str, list[float]], one: str, other: str) -> float:
    """Return the cost of one server, divided by the cost of another server."""
    return first_decile(costs[one]) / first_decile(costs[other])


def first_decile(costs: list[float]) -> float:
    """Return the first decile of the windows' costs."""
    return statistics.quantiles(costs, n=10)[0]


def make_site(folder: Path) -> Path:
    """Create a tenants folder with one tenant, and modules with the bare apps."""
    (folder / "tenants").mkdir()
    (folder / "tenants/acme.py").write_text(landing_text("acme"))
    for name, text in {"switch": SWITCH, "bare": BARE}.items():
        (folder / f"{name}_side.py").write_text(text)
    return folder


@contextlib.contextmanager
def serve(site: Path, name: str) -> Iterator[Server]:
    """Run one server until the end of the block.

    The server has answered one request when the block begins.
    """
    module = name.partition(" ")[0]
    options = ["--access-logfile", str(site / f"{name}.log")] if module == "bare" else []
    options += ["-k", "gthread"] if name == "bare" else []
    options += [] if name == "all" else [f"{module}_side:application"]
    data_dir = str(site / f"instance-{name}")
    environ = {
        "TENANTRY_LOG_FORMAT": "json",
        "TENANTRY_DATA_DIR": data_dir,
        "PYTHONHASHSEED": "0",  # The layout of hash tables also changes the cost by some percent.
    }
    with serving(site, 1, *options, **environ) as server:
        server.wait_for(COUNTED, 201)
        yield server


def window(server: Server, connection: Connection, path: str, requests: int) -> float:
    """Return the processor seconds that the worker took for `requests` requests."""
    before_s = cpu_s(server)
    for _ in range(requests):
        status = connection.get(path)[0]
        if status != 201:
            raise SystemExit(f"{path} answered {status}")
    return cpu_s(server) - before_s


def cpu_s(server: Server) -> float:
    """Return the processor seconds that the worker's threads have used, to the microsecond."""
    (worker,) = server.workers()
    tasks = Path(f"/proc/{worker}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


if __name__ == "__main__":
    main()
