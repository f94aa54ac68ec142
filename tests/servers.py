"""Starts real servers for tests on free ports."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

DEADLINE_S = 60.0
"""Seconds that a test waits for an event before the test fails.

A wait for an event ends as soon as the event occurs.
"""

CONFIG_FILE = str(Path(__file__).parents[1] / "config/gunicorn.conf.py")


class Server:
    """A real server process on a free port of the loopback interface.

    The code that starts a `Server` must stop the server.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    def get(
        self, path: str, headers: Mapping[str, str] | None = None, *, port: int = 0
    ) -> tuple[HTTPResponse, bytes]:
        """Send one GET on a new connection."""
        connection = HTTPConnection("127.0.0.1", port or self.port, timeout=DEADLINE_S)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=dict(headers or {}))
            response = connection.getresponse()
            return response, response.read()

    def send(self, data: bytes) -> bytes:
        """Send raw bytes. Return what the server sends until it closes or is silent for 2 s."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(data)
            received = b""
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                while part := connection.recv(65536):
                    received += part
            return received

    def stop(self) -> None:
        """Stop the server and all its child processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def free_port() -> int:
    """Return a port on which no process listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    command: list[str],
    folder: Path,
    ready_path: str = "/-/livez",
    is_ready: Callable[[Server], bool] | None = None,
    **environ: str,
) -> Iterator[Server]:
    """Run a server in `folder` until the end of the block.

    The placeholders `{bind}` and `{port}` in the command are replaced. The first word of the
    command is a program of the Python environment or of the system. Of Tenantry's settings, only
    those in `environ` are set.
    """
    port = free_port()
    words = [word.format(bind=f"127.0.0.1:{port}", port=port) for word in command]
    log = folder / f"server-{port}.log"
    inherited = {key: value for key, value in os.environ.items() if key[:9] != "TENANTRY_"}
    settings = {"TENANTRY_ADMIN_BIND": "off", "PYTHONUNBUFFERED": "1"} | environ
    with log.open("wb") as file:
        process = subprocess.Popen(
            [program(words[0]), *words[1:]],
            cwd=folder,
            env=inherited | settings,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(process, port, log)
    try:
        is_up = is_ready or (lambda server: answers_at(server, ready_path))
        wait_until(lambda: process.poll() is not None or is_up(server))
        assert process.poll() is None, log.read_text()
        yield server
    finally:
        server.stop()
        wait_until(lambda: not group(process.pid))


def program(name: str) -> str:
    """Return the path of a program of the Python environment or of the system."""
    if os.sep in name:
        return name
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else str(shutil.which(name))


def debian_tool(name: str, package: str) -> str:
    """Return the path of a tool from a Debian package.

    If the tool is missing, skip the test, or fail the test in CI.
    """
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if path is None:
        text = f"{name} is missing: apt-get install {package}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(text)
    return str(path)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until the condition is true, or fail the test after `DEADLINE_S`."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        threading.Event().wait(0.05)


@contextlib.contextmanager
def in_threads(*works: Callable[[threading.Event], object]) -> Iterator[None]:
    """Run each function in a thread, and pass it an event that is set at the end of the block."""
    stop = threading.Event()
    threads = [threading.Thread(target=work, args=(stop,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def answers_at(server: Server, path: str) -> bool:
    """Return whether the server answers at `path` with a status below 300."""
    with contextlib.suppress(OSError):
        return server.get(path)[0].status < 300
    return False


def group(leader: int) -> list[int]:
    """Return the running processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            if group == str(leader) and state != "Z":
                found.append(int(stat.parent.name))
    return found
