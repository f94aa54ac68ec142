"""The writer of log lines, on real pipes and files."""

import contextlib
import fcntl
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from werkzeug.test import Client

from servers import wait_until
from tenantry.host import Host
from tenantry.observability import log_writer
from tenantry.observability.access_log import AccessLog
from tenantry.observability.log_writer import FILE_BYTES, PIPE_BYTES, STDERR, LogWriter
from tenantry.observability.logging import configure_logging
from tenantry.settings import HostSettings

ONE_PAGE_BYTES = 4096


class Pipe:
    """A pipe for log lines, which holds 4 KiB until `read` reads it."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, ONE_PAGE_BYTES)
        os.set_blocking(self.reader, False)
        self._read = b""

    def lines(self) -> list[str]:
        """Return all lines that the pipe has got so far."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.reader, 1 << 16):
                self._read += part
        return self._read.decode().splitlines()

    def close(self) -> None:
        """Close both ends."""
        for fd in (self.reader, self.writer):
            os.close(fd)


@pytest.fixture(name="pipe")
def _pipe() -> Iterator[Pipe]:
    """Return a pipe."""
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture(name="writer")
def _writer(pipe: Pipe) -> Iterator[LogWriter]:
    """Return a writer with a thread, which writes to the pipe."""
    writer = LogWriter(pipe.writer)
    writer.start()
    yield writer
    while writer.is_running:
        pipe.lines()
        writer.close()


def test_without_a_thread_the_caller_writes_the_line(pipe: Pipe) -> None:
    """In a process that does not serve, a line is written before `put` returns."""
    LogWriter(pipe.writer).put("a line\n")

    assert ["a line"] == pipe.lines()


def test_without_a_thread_the_caller_does_not_wait_for_a_stalled_reader(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gunicorn's master, which writes its own lines, never blocks, and counts lost lines."""
    monkeypatch.setattr(log_writer, "FLUSH_S", 0.01)
    writer = LogWriter(pipe.writer)
    for _ in range(5):
        writer.put("x" * 1023 + "\n")

    assert writer.dropped_total > 0
    assert 5 == writer.dropped_total + len(pipe.lines())


def test_lines_keep_their_order(writer: LogWriter, pipe: Pipe) -> None:
    """Rendered lines and finished lines are written in the order in which they came."""
    for number in range(0, 100, 2):
        writer.queue.append((lambda first, second: f"{first}{second}\n", number, ""))
        writer.put(f"{number + 1}\n")
    writer.flush()

    assert [str(number) for number in range(100)] == pipe.lines()


def test_the_first_line_after_a_pause_wakes_the_thread(writer: LogWriter, pipe: Pipe) -> None:
    """An idle thread writes the next line without another call."""
    for expected in (["a"], ["a", "b"]):
        wait_until(lambda: not writer.is_awake)
        writer.put(f"{expected[-1]}\n")
        wait_until(lambda expected=expected: expected == pipe.lines())


def test_a_stalled_reader_costs_lines_and_no_time(
    writer: LogWriter,
    pipe: Pipe,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lines beyond the queue are dropped and counted, and a line reports them afterwards."""
    monkeypatch.setattr(log_writer, "MAX_QUEUED", 100)
    line = "x" * 1023 + "\n"
    for _ in range(4):  # these lines fill the pipe
        writer.put(line)
    writer.flush()
    writer.put(line)  # this line holds the thread in a write
    wait_until(lambda: not writer.queue)
    for _ in range(150):
        writer.put(line)
    dropped = writer.dropped_total

    wait_until(lambda: 105 == len(pipe.lines()))
    wait_until(lambda: bool(caplog.records))

    assert 50 == dropped
    assert [("log.lines_dropped", 50)] == [
        (record.message, vars(record)["dropped"]) for record in caplog.records
    ]


def test_requests_go_on_while_the_reader_of_the_log_stalls(
    settings: HostSettings,
    write_tenant: Callable[..., Path],
    writer: LogWriter,
    pipe: Pipe,
) -> None:
    """Each of 300 requests gets its answer, although the pipe of the log holds 20 lines."""
    write_tenant("acme")
    host = Host(settings, AccessLog("json", writer))
    host.load()
    client = Client(host)

    statuses = [client.get("/acme/", buffered=True).status_code for _ in range(300)]
    host.close()

    assert [201] * 300 == statuses
    wait_until(lambda: 300 == len(pipe.lines()))
    assert {"request.ended"} == {json.loads(line)["event"] for line in pipe.lines()}


def test_nobody_reads_the_log(pipe: Pipe, caplog: pytest.LogCaptureFixture) -> None:
    """Lines to a closed pipe are dropped and counted, and reported when writing works again."""
    reader, target = os.pipe()
    os.close(reader)
    writer = LogWriter(target)
    for _ in range(3):
        writer.put("lost\n")
    before = len(caplog.records)
    os.dup2(pipe.writer, target)

    writer.put("kept\n")
    os.close(target)

    assert (0, [3], ["kept"]) == (
        before, [vars(record)["dropped"] for record in caplog.records], pipe.lines(),
    )  # fmt: skip


@pytest.mark.parametrize(("is_file", "max_bytes"), [(False, PIPE_BYTES), (True, FILE_BYTES)])
def test_each_write_ends_at_a_line_end(
    *, pipe: Pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_file: bool, max_bytes: int
) -> None:
    """A write to a pipe has at most `PIPE_BUF` bytes, so lines of several workers do not mix."""
    written: list[bytes] = []
    monkeypatch.setattr(os, "write", lambda _, data: written.append(data) or len(data))
    with (tmp_path / "log").open("wb") as file:
        writer = LogWriter(file.fileno() if is_file else pipe.writer)
        writer.queue.extend(["\u00e9" * 150 + "\n"] * 200)
        writer.wake()

    assert all(data.endswith(b"\n") for data in written)
    assert max_bytes - 301 < max(map(len, written)) <= max_bytes
    assert 200 * 301 == sum(map(len, written))


def test_a_line_that_cannot_be_rendered_costs_only_itself(writer: LogWriter, pipe: Pipe) -> None:
    """An exception while a line is rendered does not end the thread."""
    writer.queue.append((lambda *_: str(1 // 0), None, None))
    writer.put("next\n")
    writer.flush()

    assert (["next"], 1) == (pipe.lines(), writer.dropped_total)


def test_close_writes_what_waits(pipe: Pipe) -> None:
    """`close` writes all waiting lines, and callers write later lines themselves."""
    writer = LogWriter(pipe.writer)
    writer.start()
    writer.queue.append("waits\n")

    writer.close()
    before = pipe.lines()
    writer.put("later\n")

    assert (["waits"], ["waits", "later"]) == (before, pipe.lines())
    assert not writer.is_running


def test_close_waits_for_a_stalled_reader_only_until_the_deadline(
    writer: LogWriter, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends waits for a stalled reader for a limited time only."""
    monkeypatch.setattr(log_writer, "FLUSH_S", 0.01)
    for _ in range(3):
        writer.put("x" * ONE_PAGE_BYTES)

    writer.close()
    writer.flush()
    writer.put("not written now\n")

    assert (True, 1) == (writer.is_running, len(pipe.lines()))


def test_a_forked_process_starts_without_the_queue_and_the_thread_of_its_parent(
    monkeypatch: pytest.MonkeyPatch, pipe: Pipe
) -> None:
    """A forked child writes only its own lines, once, and the parent's thread continues."""
    monkeypatch.setattr(STDERR, "_fd", pipe.writer)
    STDERR.start()
    wait_until(lambda: not STDERR.is_awake)
    STDERR.queue.append("of the parent\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns about a fork with threads
        child = os.fork()
    if not child:
        STDERR.put("of the child\n")
        os._exit(0 if not STDERR.is_running else 1)
    _, status = os.waitpid(child, 0)
    STDERR.close()

    assert (0, ["of the child", "of the parent"]) == (status, pipe.lines())


def test_other_log_lines_take_the_same_way(
    monkeypatch: pytest.MonkeyPatch, pipe: Pipe, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process that serves, each line of `logging` goes through the queue of the access log."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    configure_logging("json", "info")
    monkeypatch.setattr(STDERR, "_fd", pipe.writer)
    STDERR.start()
    try:
        STDERR.queue.append("first\n")
        logging.getLogger("tenant.acme").warning("second")
        for handler in root.handlers:
            handler.flush()
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        STDERR.close()

    first, second = pipe.lines()
    assert ("first", "second", "") == (first, json.loads(second)["event"], capsys.readouterr().err)
