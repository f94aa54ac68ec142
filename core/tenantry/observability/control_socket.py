"""Control sockets: each worker answers commands on a Unix socket under `<data>/.workers/`.

Unlike a file, a socket is never out of date, needs no disk space, and refuses connections when its
worker has been killed. Only the user that runs the host can connect to a control socket, because
the folder has mode 0700.
"""

import contextlib
import json
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANSWER_TIMEOUT_S = 5.0
"""Seconds within which a worker must answer a command, and a client must read the answer. An answer
with 10,000 tenants takes 0.1 s."""

RETRY_PAUSE_S = 1.0
"""Seconds to pause after a failed `accept`, so that a file descriptor can become free."""

STARTUP_S = 10.0
"""Seconds within which a new worker must open its control socket. Imports take one second, and a
worker waits at most three more seconds before accepting connections."""

_START_TIME = 19
"""Index of a process's start time among the fields after the name in `/proc/<pid>/stat` (field 22
in proc(5))."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerStatus:
    """The status of one worker, from the worker's answer to the command `list`."""

    pid: int
    master: int
    """Process ID of the parent process, which replaces the worker when the worker ends."""
    is_ready: bool
    """Whether the worker has validated every tenant file once."""
    mounts: tuple[dict[str, Any], ...]
    """The name, prefix, state, reason, time, digest and endpoints of each tenant."""
    only: tuple[str, ...] = ()
    """The names of the tenants that the host serves; empty if the host serves all tenants."""
    server: str = ""
    """Name of the WSGI server; `gunicorn` if the worker is a `TenantWorker`. Under any other
    server, `master` may be any process."""
    code: str = ""
    """Name of the folder with the host's code snapshots; empty if the host serves files on disk."""


def workers_folder(data_dir: Path) -> Path:
    """Return the folder of the control sockets."""
    return data_dir / ".workers"


class ControlSocket:
    """The control socket of this process. A thread answers commands until `close()`.

    Args:
        data_dir: the host's data folder.
        commands: the function for each command. The function receives the words after the command
            and returns JSON data.

    Raises:
        OSError: the socket cannot be created.
    """

    def __init__(self, data_dir: Path, commands: Mapping[str, Callable[..., Any]]) -> None:
        self._commands = commands
        self._name = f"{os.getpid()}.sock"
        self._folder = workers_folder(data_dir)
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _short_path(self._folder) as folder:
                # The socket must listen before its file gets the suffix `.sock`, because clients
                # delete a `.sock` file that refuses connections.
                temporary = folder / f"{os.getpid()}.new"
                temporary.unlink(missing_ok=True)
                self._listener.bind(str(temporary))
                self._listener.listen()
                temporary.replace(folder / self._name)
        except OSError:
            self._listener.close()
            raise
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="tenantry-control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering commands, and delete the control socket. Idempotent."""
        self._closing.set()
        with contextlib.suppress(OSError):  # the socket is already closed
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the answering thread
        self._thread.join()
        self._listener.close()
        with contextlib.suppress(OSError):  # clients delete the socket file later
            (self._folder / self._name).unlink()

    def leave_to_parent(self) -> None:
        """In a forked process, close the copy of the socket; the parent keeps answering."""
        self._listener.close()

    def _serve(self) -> None:
        is_failing = False
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError as error:  # for example, no file descriptor is free
                if not is_failing and not self._closing.is_set():
                    _logger.error("control_socket.accept_failed", extra={"reason": str(error)})
                is_failing = True
                self._closing.wait(RETRY_PAUSE_S)
                continue
            is_failing = False
            with client:
                self._answer(client)

    def _answer(self, client: socket.socket) -> None:
        try:
            client.settimeout(ANSWER_TIMEOUT_S)
            command, *words = client.recv(64).decode().split() or [""]
            run = self._commands.get(command)
            if run is not None:
                client.sendall(json.dumps(run(*words)).encode())
        except OSError:
            pass  # the client has disconnected
        except Exception:
            _logger.exception("control_socket.command_failed")


# -- clients --------------------------------------------------------------------------------------


def read_workers(data_dir: Path) -> list[WorkerStatus]:
    """Return the status of each worker that uses the data folder `data_dir`."""
    return read_all_workers(data_dir)[0]


def read_all_workers(data_dir: Path) -> tuple[list[WorkerStatus], list[int]]:
    """Return the status of each worker, and the process IDs of workers that do not answer."""
    answers = _ask_all(data_dir, "list", ANSWER_TIMEOUT_S)
    workers = [
        WorkerStatus(
            pid=pid,
            master=answer["master"],
            is_ready=answer["is_ready"],
            mounts=tuple(answer["mounts"]),
            only=tuple(answer["only"]),
            server=answer["server"],
            code=answer.get("code", ""),  # missing in a worker of an earlier version
        )
        for pid, answer in answers.items()
        if answer
    ]
    return workers, [pid for pid, answer in answers.items() if not answer]


def ask_workers(
    data_dir: Path, command: str, timeout_s: float | None = None
) -> dict[int, dict[str, Any]]:
    """Return the answers of the workers by process ID.

    Workers that do not answer in time are missing from the result.

    Args:
        data_dir: the host's data folder.
        command: the command and its arguments, separated by spaces.
        timeout_s: seconds in which each worker must answer; `ANSWER_TIMEOUT_S` if None.
    """
    answers = _ask_all(data_dir, command, timeout_s or ANSWER_TIMEOUT_S)
    return {pid: answer for pid, answer in answers.items() if answer}


def starting_workers(workers: Collection[WorkerStatus]) -> set[int]:
    """Return the process IDs of new workers that have not opened a control socket yet.

    A new worker has the same parent process and the same command line as one of `workers`. A
    process older than `STARTUP_S` does not count: either it is not a worker (like the HTTP router
    of uWSGI), or it could not create its socket.
    """
    answering = {worker.pid for worker in workers}
    masters = {worker.master for worker in workers}
    commands = {_read(f"/proc/{pid}/cmdline") for pid in answering}
    children = {pid for master in masters for pid in child_processes(master)}
    return {
        pid
        for pid in children - answering - masters
        if _read(f"/proc/{pid}/cmdline") in commands and _age_s(pid) < STARTUP_S
    }


def child_processes(parent: int) -> list[int]:
    """Return the running child processes of a process; empty if the process has ended."""
    return [int(pid) for pid in _read(f"/proc/{parent}/task/{parent}/children").split()]


def _age_s(pid: int) -> float:
    """Return the age of a process in seconds, or infinity if the process has ended."""
    stat = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    if len(stat) <= _START_TIME or stat[0] == b"Z":
        return math.inf
    started_s = int(stat[_START_TIME]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""  # the process has ended


def _ask_all(data_dir: Path, command: str, timeout_s: float) -> dict[int, dict[str, Any]]:
    """Return the answer of each running worker; empty for a worker without an answer."""
    paths = sorted(workers_folder(data_dir).glob("*.sock"))
    answers = {int(path.stem): _ask(path, command, timeout_s) for path in paths}
    return {pid: answer for pid, answer in answers.items() if answer is not None}


def _ask(path: Path, command: str, timeout_s: float) -> dict[str, Any] | None:
    with socket.socket(socket.AF_UNIX) as connection, _short_path(path.parent) as folder:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(folder / path.name))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)  # the worker of the socket was killed
            return None
        except OSError:  # the worker has just ended, or belongs to another user
            return None
        parts = []
        # After a timeout or a lost connection, `json.loads` shows whether the received bytes are a
        # complete answer.
        with contextlib.suppress(OSError):
            connection.sendall(command.encode())
            while part := connection.recv(1 << 16):
                parts.append(part)
    try:
        answer: dict[str, Any] = json.loads(b"".join(parts))
    except ValueError:
        return {}  # the answer is missing or incomplete
    return answer


@contextlib.contextmanager
def _short_path(folder: Path) -> Iterator[Path]:
    """Yield a short path to a folder, because a Unix socket address has at most 107 characters."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
