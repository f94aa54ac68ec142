"""What each worker serves, told on a Unix socket of its own under `<data>/.workers/`.

A socket and not a file: what it tells is never old, a full disk does not matter, and a worker that
was killed simply does not answer. Only the user that runs the host can connect (mode 0700).
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
"""How long a worker may take to tell, and a client to read: 10,000 tenants take 0.1 s."""

PAUSE_S = 1.0
"""How long nobody is answered after one could not be: a file descriptor may be free by then."""

BIRTH_S = 10.0
"""How old a worker may get before it tells: importing takes one second, and the host waits three
more at most before it accepts connections."""

_STARTED = 19
"""Place of a process's start in `/proc/<pid>/stat`, counted from its state (proc(5): field 22)."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerStatus:
    """What one worker said."""

    pid: int
    master: int
    """The process that would start another one in its place."""
    is_ready: bool
    """Whether it has judged every tenant file once."""
    mounts: tuple[dict[str, Any], ...]
    """Name, prefix, state, reason, since, digest, endpoints of each tenant."""
    only: tuple[str, ...] = ()
    """The tenants that its host serves; empty for all."""
    server: str = ""
    """`gunicorn` where `TenantWorker` runs it; else nobody knows what its parent process is."""


def workers_folder(data_dir: Path) -> Path:
    """Return where the sockets are; no tenant's name begins with a dot."""
    return data_dir / ".workers"


class ControlSocket:
    """The socket of this process, and the thread that answers on it; `close()` ends both.

    Args:
        data_dir: where the socket is made.
        answers: question → what makes the answer, which JSON can take; called with the words that
            follow the question.
    """

    def __init__(self, data_dir: Path, answers: Mapping[str, Callable[..., Any]]) -> None:
        self._answers = answers
        self._name = f"{os.getpid()}.sock"
        self._folder = workers_folder(data_dir)
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _short(self._folder) as short:
                unheard = short / f"{os.getpid()}.new"  # who asks removes what nobody listens on
                unheard.unlink(missing_ok=True)
                self._listener.bind(str(unheard))
                self._listener.listen()
                unheard.replace(short / self._name)
        except OSError:
            self._listener.close()
            raise
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="tenantry-status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more. Idempotent."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join()
        self._listener.close()
        with contextlib.suppress(OSError):
            (self._folder / self._name).unlink()

    def leave_to_parent(self) -> None:
        """Let it go in a process that was forked; the parent goes on to answer on it."""
        self._listener.close()

    def _serve(self) -> None:
        has_told = False
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError as error:
                if not has_told and not self._closing.is_set():  # no file descriptor is free
                    _logger.error("status.silent", extra={"reason": str(error)})
                has_told = True
                self._closing.wait(PAUSE_S)
                continue
            has_told = False
            with client:
                try:
                    client.settimeout(ANSWER_TIMEOUT_S)
                    question, *words = client.recv(64).decode().split() or [""]
                    answer = self._answers.get(question)
                    if answer is not None:
                        client.sendall(json.dumps(answer(*words)).encode())
                except OSError:
                    pass  # the client has gone
                except Exception:
                    _logger.exception("status.failed")


def read_workers(data_dir: Path) -> list[WorkerStatus]:
    """Ask every worker of the hosts over `data_dir` what it serves."""
    return read_all_workers(data_dir)[0]


def read_all_workers(data_dir: Path) -> tuple[list[WorkerStatus], list[int]]:
    """Return what each worker serves, and the processes that listen but do not answer."""
    answers = _ask_all(data_dir, "list")
    workers = [
        WorkerStatus(
            pid,
            said["master"],
            said["is_ready"],
            tuple(said["mounts"]),
            tuple(said["only"]),
            said["server"],
        )
        for pid, said in answers.items()
        if said
    ]
    return workers, [pid for pid, said in answers.items() if not said]


def starting_workers(workers: Collection[WorkerStatus]) -> set[int]:
    """Return the siblings of `workers` that were started lately and do not tell yet.

    A sibling is a process of the same master with the same command line. An older one that does
    not tell never will: a process of the server's own (uWSGI's router), or a full disk.
    """
    telling = {worker.pid for worker in workers}
    commands = {_read(f"/proc/{pid}/cmdline") for pid in telling}
    masters = {worker.master for worker in workers}
    children = {pid for master in masters for pid in child_processes(master)}
    return {
        pid
        for pid in children - telling - masters
        if _read(f"/proc/{pid}/cmdline") in commands and _age_s(pid) < BIRTH_S
    }


def child_processes(parent: int) -> list[int]:
    """Return the processes that this one has started and not outlived; none if it has ended."""
    return [int(pid) for pid in _read(f"/proc/{parent}/task/{parent}/children").split()]


def _age_s(pid: int) -> float:
    """Return the seconds since a process was started; infinite when it has ended."""
    facts = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    if len(facts) <= _STARTED or facts[0] == b"Z":
        return math.inf
    started_s = int(facts[_STARTED]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""  # the process has ended


def ask_workers(
    data_dir: Path, question: str, timeout_s: float = ANSWER_TIMEOUT_S
) -> dict[int, dict[str, Any]]:
    """Return each worker's answer by its process id.

    Those that do not answer in `timeout_s` are left out.
    """
    told = _ask_all(data_dir, question, timeout_s)
    return {pid: answer for pid, answer in told.items() if answer}


def _ask_all(
    data_dir: Path, question: str, timeout_s: float = ANSWER_TIMEOUT_S
) -> dict[int, dict[str, Any]]:
    """Return each worker's answer, empty if it gives none; those that are no more are left out."""
    paths = sorted(workers_folder(data_dir).glob("*.sock"))
    answers = {int(path.stem): _ask(path, question, timeout_s) for path in paths}
    return {pid: answer for pid, answer in answers.items() if answer is not None}


def _ask(path: Path, question: str, timeout_s: float) -> dict[str, Any] | None:
    with socket.socket(socket.AF_UNIX) as connection, _short(path.parent) as short:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(short / path.name))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)  # of a worker that was killed
            return None
        except OSError:
            return None
        parts = []
        with contextlib.suppress(OSError):
            connection.sendall(question.encode())
            while part := connection.recv(1 << 16):
                parts.append(part)
    try:
        said: dict[str, Any] = json.loads(b"".join(parts))
    except ValueError:
        return {}  # it ended in the middle, or was silent
    return said


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[Path]:
    """Name a folder in few characters: a socket's address has room for 107."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
