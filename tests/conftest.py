"""Fixtures of all tests: a folder for tenants, real servers, and a check that nothing leaks."""

import contextlib
import gc
import os
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
from flask.globals import _cv_app
from werkzeug.test import Client

from config.settings import HostSettings
from core.host import Host

DEADLINE_S = 20.0
"""How long a test waits for an event before it fails; every wait ends with the event."""

KEY = "0123456789abcdef0123456789abcdef"


def tenant_text(name: str = "acme", **keys: object) -> str:
    """Return a good tenant file, with keys replaced (`repr`), or left out where None."""
    values: dict[str, object] = {"SECRET_KEY": f"{name}-{KEY}", "BLUEPRINTS": ["landing"]} | keys
    return "".join(f"{key} = {value!r}\n" for key, value in values.items() if value is not None)


@pytest.fixture(autouse=True)
def _no_tenantry_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings of whoever runs it."""
    for name in list(os.environ):
        if name.startswith("TENANTRY_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _leak_detector() -> Iterator[None]:
    """Fail a test that leaves a context, a thread, a file descriptor or a private module behind."""
    gc.collect()  # what an earlier test dropped
    before = _held()
    yield
    deadline = time.monotonic() + DEADLINE_S
    while _is_more(after := _held(), before) and time.monotonic() < deadline:
        gc.collect()
        threading.Event().wait(0.01)  # a thread or a socket of a server that has just stopped
    assert _cv_app.get(None) is None, "a test left a Flask context pushed"
    assert not _is_more(after, before), (
        f"{before} → {after}: a test left threads, file descriptors or private modules behind"
    )


def _held() -> tuple[int, int, int]:
    private = sum("@" in name for name in sys.modules)
    return (threading.active_count(), len(list(Path("/proc/self/fd").iterdir())), private)


def _is_more(after: tuple[int, ...], before: tuple[int, ...]) -> bool:
    return any(now > then for now, then in zip(after, before, strict=True))


@pytest.fixture(name="data_dir")
def _data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty data folder, named in the environment."""
    folder = tmp_path / "instance"
    monkeypatch.setenv("TENANTRY_DATA_DIR", str(folder))
    return folder


@pytest.fixture(name="tenants_dir")
def _tenants_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty tenants folder, named in the environment."""
    folder = tmp_path / "tenants"
    folder.mkdir()
    monkeypatch.setenv("TENANTRY_TENANTS_DIR", str(folder))
    return folder


@pytest.fixture(name="settings")
def _settings(tenants_dir: Path, data_dir: Path) -> HostSettings:
    """Return the settings of a host over both folders."""
    return HostSettings(tenants_dir=tenants_dir, data_dir=data_dir)


@pytest.fixture(name="write_tenant")
def _write_tenant(tenants_dir: Path) -> Callable[..., Path]:
    """Return a function that writes a tenant file: `write_tenant("acme", URL_PREFIX="/a")`."""

    def write(name: str, text: str | None = None, **keys: object) -> Path:
        path = tenants_dir / f"{name}.py"
        path.write_text(tenant_text(name, **keys) if text is None else text, encoding="utf-8")
        return path

    return write


@pytest.fixture(name="host")
def _host(settings: HostSettings) -> Iterator[Host]:
    """Return a host that has not read its tenants folder yet; closed after the test."""
    host = Host(settings)
    yield host
    host.close()


@pytest.fixture(name="client")
def _client(host: Host) -> Client:
    """Return a client of that host, in process."""
    return Client(host.wsgi)


class Server:
    """A real server process on a free port of the loopback; stopped by whoever started it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    def get(
        self, path: str, headers: Mapping[str, str] | None = None, *, port: int = 0
    ) -> tuple[HTTPResponse, bytes]:
        """Send one GET on a connection of its own."""
        connection = HTTPConnection("127.0.0.1", port or self.port, timeout=DEADLINE_S)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=dict(headers or {}))
            response = connection.getresponse()
            return response, response.read()

    def send(self, data: bytes) -> bytes:
        """Send raw bytes and return all that comes back until the server closes or is silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(data)
            received = b""
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                while part := connection.recv(65536):
                    received += part
            return received

    def wait_until_it_answers(self) -> None:
        """Return as soon as `/-/livez` answers.

        Raises:
            AssertionError: it does not in time; the text has the server's log.
        """
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if self.get("/-/livez")[0].status == 200:
                    return
            threading.Event().wait(0.02)
        raise AssertionError(f"the server did not start:\n{self.log.read_text()}")

    def stop(self) -> None:
        """End the server and everything that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(name="start_server")
def _start_server(
    tmp_path: Path,
    data_dir: Path,  # noqa: ARG001 - the server finds it in the environment
) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a server and waits until it answers.

    `start_server(["tenantry", "serve", "--bind", "{bind}"], TENANTRY_ADMIN_BIND="off")`: `{bind}`
    and `{port}` are replaced, the rest goes to the environment; it runs in `tmp_path`.
    """
    servers: list[Server] = []

    def start(command: list[str], **environ: str) -> Server:
        port = free_port()
        arguments = [word.format(bind=f"127.0.0.1:{port}", port=port) for word in command]
        program = Path(sys.executable).with_name(arguments[0])
        log = tmp_path / f"server-{len(servers)}.log"
        variables = {"TENANTRY_ADMIN_BIND": "off", "PYTHONUNBUFFERED": "1"} | environ
        with log.open("wb") as file:
            process = subprocess.Popen(
                [program, *arguments[1:]],
                cwd=tmp_path,
                env=dict(os.environ) | variables,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = Server(process, port, log)
        servers.append(server)
        server.wait_until_it_answers()
        return server

    yield start
    for server in servers:
        server.stop()
