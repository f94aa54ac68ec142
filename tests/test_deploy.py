"""nginx and systemd accept the deployment examples in `config/`."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from sandbox import read_unit
from servers import CONFIG_FILE, DEADLINE_S, Server, debian_tool, free_port

pytestmark = pytest.mark.live

CONFIG = Path(__file__).parent.parent / "config"


def _nginx_config(folder: Path, upstream: int, port: int) -> Path:
    site = (CONFIG / "nginx-site.conf").read_text()
    site = site.replace("server 127.0.0.1:8000;", f"server 127.0.0.1:{upstream};")
    site = site.replace("listen 80;", f"listen 127.0.0.1:{port};")
    paths = "".join(
        f"{name}_temp_path {folder / name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off; pid {folder / 'nginx.pid'}; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {paths} {site} }}\n"
    )
    return path


@pytest.fixture(name="start_nginx")
def _start_nginx(tmp_path: Path) -> Iterator[Callable[[int], int]]:
    """Return a function that starts nginx in front of a port and returns nginx's own port."""
    program = debian_tool("nginx", "nginx-light")
    processes: list[subprocess.Popen[bytes]] = []

    def start(upstream: int) -> int:
        port = free_port()
        config = _nginx_config(tmp_path, upstream, port)
        command = [program, "-p", str(tmp_path), "-c", str(config), "-e", "stderr"]
        processes.append(subprocess.Popen(command, start_new_session=True))
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), contextlib.closing(_connect(port)):
                return port
            threading.Event().wait(0.02)
        raise AssertionError("nginx did not start")

    yield start
    for process in processes:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(DEADLINE_S)


def _connect(port: int) -> HTTPConnection:
    connection = HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    connection.connect()
    return connection


def test_the_systemd_unit_is_valid(tmp_path: Path) -> None:
    """`systemd-analyze verify` reports no problem of the example unit."""
    tool = debian_tool("systemd-analyze", "systemd")
    program = Path(sys.executable).with_name("tenantry")
    text = (CONFIG / "tenantry.service").read_text()
    unit = tmp_path / "tenantry.service"
    text = text.replace("/opt/tenantry/.venv/bin/tenantry", str(program))
    unit.write_text(text.replace("EnvironmentFile=/", "EnvironmentFile=-/"))

    result = subprocess.run(
        [tool, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )

    assert (0, "") == (result.returncode, result.stderr)


def test_the_systemd_unit_is_a_sandbox() -> None:
    """`systemd-analyze security` gives the example unit an exposure of at most 3.0 of 10."""
    tool = debian_tool("systemd-analyze", "systemd")
    command = [tool, "security", "--offline=true", "--threshold=30", "--no-pager"]

    result = subprocess.run(
        [*command, str(CONFIG / "tenantry.service")], capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stdout


def test_the_systemd_unit_bounds_memory_and_tasks() -> None:
    """The example unit limits memory and tasks, and the end of one worker ends no other worker."""
    unit = read_unit(CONFIG / "tenantry.service")

    assert {"MemoryHigh", "MemoryMax", "TasksMax"} <= unit.keys()
    assert ["continue"] == unit["OOMPolicy"]


def test_the_nginx_site_is_valid(tmp_path: Path) -> None:
    """`nginx -t` accepts the example configuration."""
    tool = debian_tool("nginx", "nginx-light")
    config = _nginx_config(tmp_path, 8000, 8080)

    result = subprocess.run(
        [tool, "-t", "-p", str(tmp_path), "-c", str(config), "-e", "stderr"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr


def test_a_tenant_answers_through_nginx(
    start_server: Callable[..., Server],
    start_nginx: Callable[[int], int],
    write_tenant: Callable[..., Path],
) -> None:
    """Behind nginx, a tenant's redirect stays under its prefix, and the host's pages get 404."""
    write_tenant("acme")
    command = ["gunicorn", "-c", CONFIG_FILE, "--bind", "{bind}", "--workers", "1"]
    server = start_server(command, TENANTRY_TRUSTED_PROXIES="1")
    port = start_nginx(server.port)

    landing, redirect, host_page = (
        server.get(path, port=port)[0] for path in ("/acme/", "/acme", "/-/readyz")
    )

    assert [201, 308, 404] == [answer.status for answer in (landing, redirect, host_page)]
    assert redirect.getheader("Location") == "/acme/"
