"""One side of the comparison while it serves: its folder, its processes and what they use."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from loads import landing_text, wait_until

ENDPOINT = Path(__file__).parents[3] / "core/tenantry/endpoints/landing"

ONE_APP = """\
import os
from pathlib import Path

from flask import Flask
from landing.blueprint import landing_bp


def build(name):
    app = Flask(name)
    app.config.from_pyfile(Path("tenants", f"{name}.py").resolve())
    app.register_blueprint(landing_bp)
    return app


if "TENANT" in os.environ:
    application = build(os.environ["TENANT"])
"""
"""The Flask app that a developer writes for one tenant, with the same endpoint and tenant file."""

ALL_APPS = """\
from pathlib import Path

from one_app import build
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware

apps = {f"/{file.stem}": build(file.stem) for file in Path("tenants").glob("*.py")}
application = DispatcherMiddleware(NotFound(), apps)
"""
"""The dispatcher that a developer writes by hand. The dispatcher builds every tenant's app at the
start."""

STOP_S = 30.0
"""Seconds after `SIGTERM` before the benchmark kills a process."""

SETTLE_S = 0.5
"""Seconds between two readings of memory that must agree."""


def program(name: str) -> str | None:
    """Return the path of a program of the Python environment or of the system, or None."""
    beside = Path(sys.executable).with_name(name)
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return str(beside) if beside.exists() else shutil.which(name, path=path)


def free_port() -> int:
    """Return a port on which no process listens now.

    The port is below the range that the kernel gives to clients, because a client of another side
    could take a port of that range before the server listens.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Service:
    """A folder with tenants, and the processes that serve them. `stop` ends the processes."""

    def __init__(self, folder: Path, tenants: int, workers: int) -> None:
        self.folder = folder
        self.port = free_port()
        self.names = [f"t{number}" for number in range(tenants)]
        self.workers = workers
        """Workers of each app server, with 8 threads each."""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("tenants", "run", "log", "vassals", "nginx"):
            (folder / name).mkdir(parents=True)
        shutil.copytree(ENDPOINT, folder / "landing")
        (folder / "one_app.py").write_text(ONE_APP)
        (folder / "all_apps.py").write_text(ALL_APPS)
        for name in self.names:
            self.write_tenant(name)

    @property
    def bind(self) -> str:
        """The address that clients use."""
        return f"127.0.0.1:{self.port}"

    def write_tenant(self, name: str, version: int = 0) -> None:
        """Write the file of a tenant. Another version changes the secret key."""
        text = landing_text(f"{name}-{version}")
        file = self.folder / "tenants" / f"{name}.py"
        written = file.with_suffix(".new")
        written.write_text(text)
        written.rename(file)

    def run(self, *command: str, key: str = "server", **environ: str) -> None:
        """Start a process of the service. `key` names the process for `signal` and `end`."""
        path = program(command[0])
        if path is None:
            raise SystemExit(f"{command[0]} is not installed")
        inherited = {name: value for name, value in os.environ.items() if name[:9] != "TENANTRY_"}
        with (self.folder / "log" / f"{key}.log").open("ab") as log:
            self._processes[key] = subprocess.Popen(
                [path, *command[1:]],
                cwd=self.folder,
                env=inherited | environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check_is_running(self) -> None:
        """End the benchmark if a process of the service has ended."""
        for key, process in self._processes.items():
            if process.poll() is not None:
                raise SystemExit(f"{key} ended with {process.returncode}")

    def signal(self, number: signal.Signals, key: str = "server") -> None:
        """Send a signal to one of the processes."""
        self._processes[key].send_signal(number)

    def end(self, key: str = "server") -> None:
        """Stop one of the processes and its child processes."""
        process = self._processes.pop(key)
        process.terminate()
        self._wait_for_end(process)

    def terminate(self) -> None:
        """Tell all processes to stop, without waiting."""
        for process in self._processes.values():
            process.terminate()

    def stop(self) -> None:
        """Stop all processes."""
        self.terminate()
        for process in self._processes.values():
            self._wait_for_end(process)

    def _wait_for_end(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def pids(self) -> list[int]:
        """Return all processes of the service."""
        found: list[int] = []
        waiting = [process.pid for process in self._processes.values()]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    waiting += map(int, children.read_text().split())
        return found

    def cpu_s(self) -> float:
        """Return the processor seconds, user and system, of all processes so far."""
        ticks = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, stat[11:15]))  # the process and its ended child processes
        return ticks / os.sysconf("SC_CLK_TCK")

    def settled_pss_mib(self) -> float:
        """Return the total memory once two consecutive readings differ by less than 1%."""
        readings = [self._pss_mib()]

        def is_settled() -> bool:
            time.sleep(SETTLE_S)
            readings.append(self._pss_mib())
            return abs(readings[-1] - readings[-2]) < 0.01 * readings[-1]

        wait_until(is_settled, 300)
        return readings[-1]

    def _pss_mib(self) -> float:
        """Return the proportional set size: a shared page counts in parts."""
        kib = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        kib += int(line.split()[1])
        return kib / 1024
