"""Each worker answers commands on its control socket."""

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
    """A client of a control socket gets the worker's answer and process ID."""
    expected = WorkerStatus(
        os.getpid(), 7, is_ready=True, mounts=({"name": "acme"},), server="gunicorn"
    )

    assert [expected] == read_workers(data_dir)


def test_a_forked_process_leaves_the_socket_to_its_parent(
    control: ControlSocket, data_dir: Path
) -> None:
    """After a worker forks, its control socket still answers, even if the child closes its copy."""
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
    """If file descriptors run out, the control socket logs one line and answers later."""
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
    """A control socket appears in its folder only when it accepts connections.

    A client deletes a socket that refuses connections.
    """
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
    """Closing a control socket, once or twice, deletes its file."""
    control.close()
    control.close()

    assert ([], []) == (read_workers(data_dir), list(workers_folder(data_dir).iterdir()))


def test_the_socket_of_a_killed_worker_is_deleted(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client deletes the control socket of a worker that has ended."""
    folder = workers_folder(data_dir)
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as dead:
        monkeypatch.chdir(folder)
        dead.bind("1.sock")

    assert ([], []) == (read_workers(data_dir), list(folder.iterdir()))


def test_a_worker_without_a_complete_answer_is_left_out(data_dir: Path) -> None:
    """A worker whose answer is incomplete is ignored."""
    # this answer is not JSON
    control = ControlSocket(data_dir, {"list": lambda: {"mounts": object()}})

    workers = read_workers(data_dir)
    control.close()

    assert [] == workers


def test_without_a_host_there_are_no_workers(data_dir: Path) -> None:
    """If the folder for control sockets does not exist, no workers are reported."""
    assert [] == read_workers(data_dir)


@pytest.mark.usefixtures("control")
def test_only_the_owner_can_connect(data_dir: Path) -> None:
    """Only the owner of the data folder can use its control sockets."""
    assert 0o700 == workers_folder(data_dir).stat().st_mode & 0o777


def test_a_data_folder_can_have_a_long_path(tmp_path: Path) -> None:
    """Control sockets work even if the path is longer than a UNIX socket address can be."""
    deep = tmp_path.joinpath(*["a" * 40] * 4)
    opened = ControlSocket(deep, {"list": lambda: ANSWER})

    workers = read_workers(deep)
    opened.close()

    assert 1 == len(workers)


@pytest.fixture(name="children")
def _children() -> Iterator[list[int]]:
    """Return two processes with the same command line, and one with another.

    The fixture ends the processes after the test.
    """
    codes = ["input()", "input()", "input('')"]
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) for code in codes
    ]
    commands = [Path(f"/proc/{each.pid}/cmdline") for each in started]
    # at first, the command line of a new process is empty
    wait_until(lambda: all(command.read_bytes() for command in commands))
    yield [each.pid for each in started]
    for each in started:
        each.communicate()


def test_a_worker_without_a_socket_is_starting(children: list[int]) -> None:
    """A process without a control socket counts as a starting worker if it looks like a worker.

    The process must have the same master and the same command line as a worker. Commands wait for a
    starting worker.
    """
    answering = WorkerStatus(children[0], os.getpid(), is_ready=True, mounts=())

    assert {children[1]} == starting_workers([answering])


def test_an_old_process_without_a_socket_is_not_a_worker(
    children: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands do not wait for an old process that never opens a control socket.

    For example, the router process of uWSGI serves no requests.
    """
    monkeypatch.setattr("tenantry.observability.control_socket.STARTUP_S", 0.0)
    answering = WorkerStatus(children[0], os.getpid(), is_ready=True, mounts=())

    assert set() == starting_workers([answering])
