"""Runs PgBouncer from Debian, for tests and benchmarks."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from postgres import Postgres

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

DEADLINE_S = 30.0


def need_pgbouncer() -> None:
    """Skip the test if PgBouncer is missing. In CI, a missing PgBouncer fails the test."""
    if PROGRAM is None and os.environ.get("CI"):
        pytest.fail("PgBouncer is missing: apt-get install pgbouncer")
    if PROGRAM is None:
        pytest.skip("PgBouncer is missing: apt-get install pgbouncer")


@contextlib.contextmanager
def running_pgbouncer(
    server: Postgres, mode: str = "transaction", **settings: str
) -> Iterator[int]:
    """Run a PgBouncer in front of a server until the end of the block, and yield its port.

    The server processes of all clients change after each transaction, as on a busy machine, because
    the pooler uses the server connections in rotation.
    """
    folder = Path(tempfile.mkdtemp(prefix="tenantry-pgbouncer-"))
    user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": mode,
        "max_client_conn": "500",
        "default_pool_size": "2",
        "server_round_robin": "1",
        "logfile": str(folder / "log"),
    } | settings
    lines = [f"{name} = {value}" for name, value in values.items()]
    databases = f"* = host=127.0.0.1 port={server.port} user=postgres"
    path = folder / "pgbouncer.ini"
    path.write_text("\n".join(["[databases]", databases, "[pgbouncer]", *lines, ""]))
    if user is not None:
        os.chown(folder, user, -1)
        path.chmod(0o644)
    process = subprocess.Popen(
        [str(PROGRAM), "-q", str(path)], user=user, cwd="/", stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait_until_open(port, process)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        shutil.rmtree(folder)


def _wait_until_open(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        threading.Event().wait(0.02)
    raise RuntimeError(f"PgBouncer does not start (exit code {process.poll()})")
