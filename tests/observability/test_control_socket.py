"""Workers answer commands on their control sockets."""

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

ANSWER: dict[str, Any] = {
    "master": 7,
    "is_ready": True,
    "mounts": [{"name": "acme"}],
    "only": [],
    "server": "gunicorn",
}


@pytest.fixture(name="control")
def _control(data_dir: Path) -> Iterator[ControlSocket]:
    """Return the control socket of the test process. The fixture closes the socket."""
    opened = ControlSocket(data_dir, {"list": lambda: ANSWER})
    yield opened
    opened.close()


@pytest.mark.usefixtures("control")
def test_a_worker_answers(data_dir: Path) -> None:
    """A client gets the answer of the worker, with the worker's process ID."""
    expected = WorkerStatus(
        os.getpid(), 7, is_ready=True, mounts=({"name": "acme"},), server="gunicorn"
    )

    assert [expected] == read_workers(data_dir)


def test_a_forked_process_leaves_the_socket_to_its_parent(
    control: ControlSocket, data_dir: Path
) -> None:
    """The parent process still answers after a child process has closed its copy of the socket."""
    child = os.fork()
    if not child:
        try:
            control.leave_to_parent()
        finally:
            os._exit(0)
    os.waitpid(child, 0)

    assert [os.getpid()] == [worker.pid for worker in read_workers(data_dir)]


def test_a_lack_of_file_descriptors_is_temporary(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has one line, and the worker answers when a descriptor is free again."""
    failures = [OSError(errno.EMFILE, "Too many open files")] * 3

    class Failing(socket.socket):
        def accept(self) -> tuple[socket.socket, Any]:
            if failures:
                raise failures.pop()
            return super().accept()

    monkeypatch.setattr("tenantry.observability.control_socket.RETRY_PAUSE_S", 0.0)
    monkeypatch.setattr(socket, "socket", Failing)
    opened = ControlSocket(data_dir, {"list": lambda: ANSWER})
    workers = read_workers(data_dir)
    opened.close()

    assert ([], 1) == (failures, len(workers))
    assert 1 == caplog.text.count("control_socket.accept_failed")


def test_a_socket_is_not_visible_before_it_listens(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client in between would be refused, and delete the socket."""
    found: list[Path] = []

    class Watched(socket.socket):
        def listen(self, *args: int) -> None:
            found.extend(workers_folder(data_dir).glob("*.sock"))
            super().listen(*args)

    monkeypatch.setattr(socket, "socket", Watched)
    opened = ControlSocket(data_dir, {"list": lambda: ANSWER})
    workers = read_workers(data_dir)
    opened.close()

    assert ([], 1) == (found, len(workers))


def test_a_closed_socket_is_deleted(control: ControlSocket, data_dir: Path) -> None:
    """After `close()`, which can be called twice, no socket answers and no file exists."""
    control.close()
    control.close()

    assert ([], []) == (read_workers(data_dir), list(workers_folder(data_dir).iterdir()))


def test_the_socket_of_a_killed_worker_is_deleted(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next client deletes the socket of a process that has ended."""
    folder = workers_folder(data_dir)
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as dead:
        monkeypatch.chdir(folder)
        dead.bind("1.sock")

    assert ([], []) == (read_workers(data_dir), list(folder.iterdir()))


def test_a_worker_without_a_complete_answer_is_left_out(data_dir: Path) -> None:
    """An incomplete answer is ignored."""
    # an answer that is not JSON
    control = ControlSocket(data_dir, {"list": lambda: {"mounts": object()}})

    workers = read_workers(data_dir)
    control.close()

    assert [] == workers


def test_without_a_host_there_are_no_workers(data_dir: Path) -> None:
    """The folder of the sockets need not exist."""
    assert [] == read_workers(data_dir)


@pytest.mark.usefixtures("control")
def test_only_the_owner_can_connect(data_dir: Path) -> None:
    """Other users have no access to the folder of the sockets."""
    assert 0o700 == workers_folder(data_dir).stat().st_mode & 0o777


def test_a_data_folder_can_have_a_long_path(tmp_path: Path) -> None:
    """A path can be longer than the address of a Unix socket."""
    deep = tmp_path.joinpath(*["a" * 40] * 4)
    opened = ControlSocket(deep, {"list": lambda: ANSWER})

    workers = read_workers(deep)
    opened.close()

    assert 1 == len(workers)


@pytest.fixture(name="children")
def _children() -> Iterator[list[int]]:
    """Return two processes with one command line, and one with another; ended after the test."""
    codes = ["input()", "input()", "input('')"]
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) for code in codes
    ]
    commands = [Path(f"/proc/{each.pid}/cmdline") for each in started]
    # the command line of a new process is empty at first
    wait_until(lambda: all(command.read_bytes() for command in commands))
    yield [each.pid for each in started]
    for each in started:
        each.communicate()


def test_a_worker_without_a_socket_is_starting(children: list[int]) -> None:
    """A starting worker is a new process with an answering worker's master and command line."""
    answering = WorkerStatus(children[0], os.getpid(), is_ready=True, mounts=())

    assert {children[1]} == starting_workers([answering])


def test_an_old_process_without_a_socket_is_not_a_worker(
    children: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No command waits for a process that serves no requests, such as uWSGI's router."""
    monkeypatch.setattr("tenantry.observability.control_socket.STARTUP_S", 0.0)
    answering = WorkerStatus(children[0], os.getpid(), is_ready=True, mounts=())

    assert set() == starting_workers([answering])
