"""What each process counts, in a file that outlives it."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tenantry.observability.usage_counters import (
    NOTHING,
    OVERFLOW,
    Counts,
    UsageCounters,
    lock_if_ended,
    read_counters,
    read_counters_file,
    total,
)

COUNTING = """
import os, sys
from pathlib import Path
from tenantry.observability.usage_counters import UsageCounters

ledger = UsageCounters()
ledger.open(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    ledger.note_request("acme", False, False, 1, 2, 3, 4)
print("counted", flush=True)
sys.stdin.read()
"""


def note(ledger: UsageCounters, tenant: str = "acme", *, is_error: bool = False) -> None:
    """Count one request of 10 bytes in and 20 out that took 30 ns, 40 of a processor."""
    ledger.note_request(tenant, is_error, False, 10, 20, 30, 40)


def seen(folder: Path) -> dict[str, Counts]:
    """Return what the one file in the folder says."""
    [reading] = read_counters(folder)
    return reading.counts


def test_a_tenant_without_a_request_has_no_row(tmp_path: Path) -> None:
    """An open ledger is empty, and says whose it is."""
    ledger = UsageCounters()
    ledger.open(tmp_path)

    [reading] = read_counters(tmp_path)

    assert (os.getpid(), {}) == (reading.pid, reading.counts)
    ledger.close()


def test_what_is_counted_can_be_read_by_others(tmp_path: Path) -> None:
    """Each kind of count has its place in the row of its tenant."""
    ledger = UsageCounters()
    ledger.open(tmp_path)

    note(ledger)
    note(ledger, is_error=True)
    ledger.note_request("globex", False, True, 0, 9, 1, 1)
    ledger.note_query("acme", 7)
    ledger.note_build("acme", 100, is_good=True)
    ledger.note_build("acme", 50, is_good=False)
    ledger.note_sleep("acme")
    ledger.note_overdue("acme")
    for _ in range(3):
        ledger.note_uncounted("acme")

    found = seen(tmp_path)
    used_ns = found["acme"].used_ns
    assert Counts(2, 1, 0, 20, 40, 60, 80, 7, 1, 150, 1, 1, 1, 3, used_ns) == found["acme"]
    assert (1, 0, 1, 9) == found["globex"][:3] + found["globex"][4:5]
    assert 0 < found["acme"].used_ns <= found["globex"].used_ns
    ledger.close()


def test_what_threads_count_at_once_is_exact(tmp_path: Path) -> None:
    """No request of eight threads is lost."""
    ledger = UsageCounters()
    ledger.open(tmp_path)

    def work() -> None:
        for _ in range(2_000):
            note(ledger)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (16_000, 160_000) == (seen(tmp_path)["acme"].requests, seen(tmp_path)["acme"].bytes_in)
    ledger.close()


def test_what_a_killed_process_counted_is_there(tmp_path: Path) -> None:
    """The file says it after `kill -9`, and can be taken then, not before."""
    with subprocess.Popen(
        [sys.executable, "-c", COUNTING, str(tmp_path), "1000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        [path] = tmp_path.glob("*.ledger")
        taken_before = lock_if_ended(path)
        process.send_signal(signal.SIGKILL)
        process.wait()

    taken = lock_if_ended(path)

    assert taken is not None
    os.close(taken)
    assert (None, 1000) == (taken_before, seen(tmp_path)["acme"].requests)


def test_a_disk_without_room_costs_the_file_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts in memory then, leaves no file behind and says so once."""

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    ledger = UsageCounters()
    ledger.open(tmp_path)

    note(ledger)

    assert (1, []) == (ledger.counts()["acme"].requests, [*tmp_path.iterdir()])
    assert ["ledger.kept_in_memory"] == [record.message for record in caplog.records]


def test_tenants_beyond_the_rows_share_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they use is counted, though not by name."""
    monkeypatch.setattr("tenantry.observability.usage_counters.ROWS", 3)
    ledger = UsageCounters()
    ledger.open(tmp_path)

    for name in ("a", "b", "c", "d", "a"):
        note(ledger, name)

    assert {"a": 2, "b": 1, OVERFLOW: 2} == {
        name: counts.requests for name, counts in seen(tmp_path).items()
    }
    ledger.close()


def test_a_forked_process_counts_for_itself(tmp_path: Path) -> None:
    """What it inherits is its parent's: after `begin_anew` it writes nothing there."""
    ledger = UsageCounters()
    ledger.open(tmp_path)
    note(ledger)
    child = os.fork()
    if not child:
        ledger.begin_anew()
        note(ledger)
        os._exit(0 if ledger.counts()["acme"].requests == 1 else 1)

    assert 0 == os.waitpid(child, 0)[1]
    assert 1 == seen(tmp_path)["acme"].requests
    ledger.close()


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 8192])
def test_a_file_that_is_none_of_ours_is_passed_over(tmp_path: Path, content: bytes) -> None:
    """An empty one is just being made."""
    path = tmp_path / "1-0.ledger"
    path.write_bytes(content)

    assert (None, []) == (read_counters_file(path), read_counters(tmp_path))


def test_counts_add_up() -> None:
    """Of a sum the last use is the latest; a difference keeps it."""
    early, late = Counts(requests=2, used_ns=5), Counts(requests=3, errors=1, used_ns=9)

    assert Counts(requests=5, errors=1, used_ns=9) == total([early, late]) == late.plus(early)
    assert Counts(requests=1, errors=1, used_ns=9) == late.minus(early)
    assert NOTHING == total([])
