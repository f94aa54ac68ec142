"""Each process counts usage in a file that survives the process."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from request_records import request_record
from tenantry.observability.usage_counters import (
    OVERFLOW,
    ZERO,
    Counts,
    UsageCounters,
    lock_if_ended,
    read_counters,
    read_counters_file,
    sum_counts,
)

COUNTING = """
import os, sys
from pathlib import Path
from tenantry.http.request_record import RequestRecord
from tenantry.observability.usage_counters import UsageCounters

record = RequestRecord()
record.tenant = "acme"
counters = UsageCounters()
counters.open(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    counters.add_request(record)
print("counted", flush=True)
sys.stdin.read()
"""


def count_request(counters: UsageCounters, tenant: str = "acme", *, is_error: bool = False) -> None:
    """Count one request: 10 bytes in, 20 bytes out, 30 ns, 40 ns of processor time."""
    counters.add_request(
        request_record(
            tenant, is_error=is_error, bytes_in=10, bytes_out=20, wall_ns=30, processor_ns=40
        )
    )


def read(folder: Path) -> dict[str, Counts]:
    """Return the content of the only counter file in the folder."""
    [file] = read_counters(folder)
    return file.counts


def test_a_tenant_without_a_request_has_no_row(tmp_path: Path) -> None:
    """A new counter file names its process and contains no tenants."""
    counters = UsageCounters()
    counters.open(tmp_path)

    [file] = read_counters(tmp_path)

    assert (os.getpid(), {}) == (file.pid, file.counts)
    counters.close()


def test_another_process_can_read_every_count(tmp_path: Path) -> None:
    """Another process can read all counts of a tenant from the counter file."""
    counters = UsageCounters()
    counters.open(tmp_path)

    count_request(counters)
    count_request(counters, is_error=True)
    counters.add_request(
        request_record("globex", is_refusal=True, bytes_out=9, wall_ns=1, processor_ns=1)
    )
    counters.add("acme", queries=1, database_ns=7)
    counters.add("acme", build_ns=100, builds=1)
    counters.add("acme", build_ns=50)
    counters.add("acme", sleeps=1)
    counters.add("acme", overdue=1)
    for _ in range(3):
        counters.add("acme", uncounted=1)

    found = read(tmp_path)
    used_ns = found["acme"].used_ns
    assert Counts(2, 1, 0, 20, 40, 60, 80, 7, 1, 150, 1, 1, 1, 3, used_ns) == found["acme"]
    assert (1, 0, 1, 9) == found["globex"][:3] + found["globex"][4:5]
    assert 0 < found["acme"].used_ns <= found["globex"].used_ns
    counters.close()


def test_threads_that_count_at_once_lose_nothing(tmp_path: Path) -> None:
    """If eight threads count 2,000 requests each, the counter file has all 16,000."""
    counters = UsageCounters()
    counters.open(tmp_path)

    def work() -> None:
        for _ in range(2_000):
            count_request(counters)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (16_000, 160_000) == (read(tmp_path)["acme"].requests, read(tmp_path)["acme"].bytes_in)
    counters.close()


def test_the_counts_of_a_killed_process_survive(tmp_path: Path) -> None:
    """After a process is killed with `kill -9`, its counter file has all counts.

    Another process can lock the counter file once the process has ended.
    """
    with subprocess.Popen(
        [sys.executable, "-c", COUNTING, str(tmp_path), "1000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        [path] = tmp_path.glob("*.ledger")
        locked_before = lock_if_ended(path)
        process.send_signal(signal.SIGKILL)
        process.wait()

    fd = lock_if_ended(path)

    assert fd is not None
    os.close(fd)
    assert (None, 1000) == (locked_before, read(tmp_path)["acme"].requests)


def test_on_a_full_disk_it_counts_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a full disk, usage is counted in memory, and the log has one line."""

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    counters = UsageCounters()
    counters.open(tmp_path)

    count_request(counters)

    assert (1, []) == (counters.counts()["acme"].requests, [*tmp_path.iterdir()])
    assert ["usage.kept_in_memory"] == [record.message for record in caplog.records]


def test_tenants_beyond_the_rows_share_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of tenants that do not fit into the counter file count together as `OVERFLOW`."""
    monkeypatch.setattr("tenantry.observability.usage_counters.ROWS", 3)
    counters = UsageCounters()
    counters.open(tmp_path)

    for name in ("a", "b", "c", "d", "a"):
        count_request(counters, name)

    assert {"a": 2, "b": 1, OVERFLOW: 2} == {
        name: counts.requests for name, counts in read(tmp_path).items()
    }
    counters.close()


def test_a_forked_process_counts_for_itself(tmp_path: Path) -> None:
    """A forked process does not count in its parent's file."""
    counters = UsageCounters()
    counters.open(tmp_path)
    count_request(counters)
    child = os.fork()
    if not child:
        status = 1
        try:
            counters.reset_after_fork()
            count_request(counters)
            status = 0 if counters.counts()["acme"].requests == 1 else 1
        finally:
            os._exit(status)

    assert 0 == os.waitpid(child, 0)[1]
    assert 1 == read(tmp_path)["acme"].requests
    counters.close()


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 8192])
def test_a_file_of_another_format_is_skipped(tmp_path: Path, content: bytes) -> None:
    """A file that is not a counter file, or is still empty, is skipped."""
    path = tmp_path / "1-0.ledger"
    path.write_bytes(content)

    assert (None, []) == (read_counters_file(path), read_counters(tmp_path))


def test_counts_add_up() -> None:
    """The sum of two counts has the later time of use."""
    early, late = Counts(requests=2, used_ns=5), Counts(requests=3, errors=1, used_ns=9)

    assert Counts(requests=5, errors=1, used_ns=9) == sum_counts([early, late]) == late.plus(early)
    assert Counts(requests=1, errors=1, used_ns=9) == late.minus(early)
    assert ZERO == sum_counts([])
