"""What each worker tells on its socket."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servers import wait_until
from tenantry.observability.control_socket import (
    ControlSocket,
    WorkerStatus,
    read_workers,
    starting_workers,
    workers_folder,
)

TOLD: dict[str, Any] = {
    "master": 7,
    "is_ready": True,
    "mounts": [{"name": "acme"}],
    "only": [],
    "server": "gunicorn",
}


@pytest.fixture(name="status_socket")
def _status_socket(data_dir: Path) -> Iterator[ControlSocket]:
    """Return a socket of this process; closed after the test."""
    opened = ControlSocket(data_dir, {"list": lambda: TOLD})
    yield opened
    opened.close()


@pytest.mark.usefixtures("status_socket")
def test_a_worker_tells(data_dir: Path) -> None:
    """Whoever asks gets what the worker tells, with its process id."""
    expected = WorkerStatus(
        os.getpid(), 7, is_ready=True, mounts=({"name": "acme"},), server="gunicorn"
    )

    assert [expected] == read_workers(data_dir)


def test_a_forked_process_leaves_it_to_its_parent(
    status_socket: ControlSocket, data_dir: Path
) -> None:
    """The parent tells on; a process that only closes its own files takes nothing away."""
    child = os.fork()
    if not child:
        try:
            status_socket.leave_to_parent()
        finally:
            os._exit(0)
    os.waitpid(child, 0)

    assert [os.getpid()] == [worker.pid for worker in read_workers(data_dir)]


def test_it_goes_on_after_a_moment_without_file_descriptors(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so once, and answers when one is free again."""
    failures = [OSError(errno.EMFILE, "Too many open files")] * 3

    class Failing(socket.socket):
        def accept(self) -> tuple[socket.socket, Any]:
            if failures:
                raise failures.pop()
            return super().accept()

    monkeypatch.setattr("tenantry.observability.control_socket.PAUSE_S", 0.0)
    monkeypatch.setattr(socket, "socket", Failing)
    opened = ControlSocket(data_dir, {"list": lambda: TOLD})
    workers = read_workers(data_dir)
    opened.close()

    assert ([], 1) == (failures, len(workers))
    assert 1 == caplog.text.count("status.silent")


def test_nobody_finds_it_before_it_listens(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asked in between would be refused, and remove the socket for ever."""
    found: list[Path] = []

    class Watched(socket.socket):
        def listen(self, *args: int) -> None:
            found.extend(workers_folder(data_dir).glob("*.sock"))
            super().listen(*args)

    monkeypatch.setattr(socket, "socket", Watched)
    opened = ControlSocket(data_dir, {"list": lambda: TOLD})
    workers = read_workers(data_dir)
    opened.close()

    assert ([], 1) == (found, len(workers))


def test_a_closed_worker_is_gone(status_socket: ControlSocket, data_dir: Path) -> None:
    """After `close()`, called twice or not, nobody answers and no file is left."""
    status_socket.close()
    status_socket.close()

    assert ([], []) == (read_workers(data_dir), list(workers_folder(data_dir).iterdir()))


def test_a_killed_worker_is_left_out(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket of a process that is no more is removed by the next who asks."""
    folder = workers_folder(data_dir)
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as dead:
        monkeypatch.chdir(folder)
        dead.bind("1.sock")

    assert ([], []) == (read_workers(data_dir), list(folder.iterdir()))


def test_a_worker_that_answers_nonsense_is_left_out(data_dir: Path) -> None:
    """An answer that ends in the middle is none."""
    told = ControlSocket(data_dir, {"list": lambda: {"mounts": object()}})  # no JSON: it breaks off

    workers = read_workers(data_dir)
    told.close()

    assert [] == workers


def test_no_host_is_no_worker(data_dir: Path) -> None:
    """Without a folder of sockets there is nobody to ask."""
    assert [] == read_workers(data_dir)


@pytest.mark.usefixtures("status_socket")
def test_only_the_owner_may_ask(data_dir: Path) -> None:
    """The folder of the sockets is closed to other users."""
    assert 0o700 == workers_folder(data_dir).stat().st_mode & 0o777


def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    """A data folder may lie deeper than a socket's address has room for."""
    deep = tmp_path.joinpath(*["a" * 40] * 4)
    opened = ControlSocket(deep, {"list": lambda: TOLD})

    workers = read_workers(deep)
    opened.close()

    assert 1 == len(workers)


@pytest.fixture(name="children")
def _children() -> Iterator[list[int]]:
    """Return two processes of one command line and one of another; ended after the test."""
    codes = ["input()", "input()", "input('')"]
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) for code in codes
    ]
    commands = [Path(f"/proc/{each.pid}/cmdline") for each in started]
    wait_until(lambda: all(command.read_bytes() for command in commands))  # empty while it begins
    yield [each.pid for each in started]
    for each in started:
        each.communicate()


def test_a_worker_that_does_not_tell_yet_is_known(children: list[int]) -> None:
    """A young process of the same master and command line as one that tells."""
    telling = WorkerStatus(children[0], os.getpid(), is_ready=True, mounts=())

    assert {children[1]} == starting_workers([telling])


def test_an_old_process_that_does_not_tell_is_no_worker(
    children: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """UWSGI's router, for one: nobody waits for it."""
    monkeypatch.setattr("tenantry.observability.control_socket.BIRTH_S", 0.0)
    telling = WorkerStatus(children[0], os.getpid(), is_ready=True, mounts=())

    assert set() == starting_workers([telling])
