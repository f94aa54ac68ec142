"""Usage totals stay exact while processes start, end and are killed."""

import random
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from request_records import request_record
from servers import wait_until
from tenantry.errors import TenantryError
from tenantry.observability import usage_store as usage
from tenantry.observability.usage_counters import Counts, UsageCounters, counters_folder
from tenantry.observability.usage_store import (
    DAY,
    HOUR,
    MINUTE,
    collect,
    collect_periodically,
    totals,
    usage_file,
    used_since,
)

KILLED_IN_COLLECTION = """
import os, signal, sys
from pathlib import Path
from tenantry.observability import usage_store as usage

die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "unlink":
    Path.unlink = die
else:
    setattr(usage, sys.argv[2], die)
usage.collect(Path(sys.argv[1]))
"""

COUNTS_AND_COLLECTS = """
import sys
from pathlib import Path
from tenantry.http.request_record import RequestRecord
from tenantry.observability.usage_counters import UsageCounters, counters_folder
from tenantry.observability.usage_store import collect

data_dir = Path(sys.argv[1])
record = RequestRecord()
record.tenant = "acme"
counters = UsageCounters()
counters.open(counters_folder(data_dir))
for number in range(200):
    counters.add_request(record)
    if number % 20 == 0:
        collect(data_dir)
print("counted", flush=True)
while True:
    collect(data_dir)
"""


def count(data_dir: Path, *tenants: str, times: int = 1) -> UsageCounters:
    """Return counters with `times` requests of each tenant: 1 byte in, 10 bytes out each."""
    counters = UsageCounters()
    counters.open(counters_folder(data_dir))
    for name in tenants * times:
        counters.add_request(
            request_record(name, bytes_in=1, bytes_out=10, wall_ns=100, processor_ns=1000)
        )
    return counters


def make_older(path: Path) -> None:
    """Remove two columns from the usage database, as in an older release."""
    with closing(sqlite3.connect(path)) as connection:
        for table in ("bucket", "total", "folded"):
            for name in ("overdue", "uncounted"):
                connection.execute(f"ALTER TABLE {table} DROP COLUMN {name}")
        connection.commit()


def requests(used: dict[str, Counts]) -> dict[str, int]:
    """Return the number of requests of each tenant."""
    return {name: counts.requests for name, counts in used.items()}


def files(data_dir: Path) -> int:
    """Return the number of counter files."""
    return len([*counters_folder(data_dir).glob("*.ledger")])


def test_reading_creates_nothing(data_dir: Path) -> None:
    """Without a host, reading usage finds nothing and does not create the data folder."""
    assert ({}, {}, False) == (totals(data_dir), used_since(data_dir, 0), data_dir.exists())


def test_a_collection_changes_no_total(data_dir: Path) -> None:
    """Collecting counter files changes no totals, and deletes the files of ended processes."""
    counters = count(data_dir, "acme", "globex", "acme")
    seen = [totals(data_dir)]
    for _ in range(3):
        collect(data_dir)
        seen.append(totals(data_dir))
    living = files(data_dir)
    counters.close()
    for _ in range(2):
        collect(data_dir)
        seen.append(totals(data_dir))

    assert [{"acme": 2, "globex": 1}] * 6 == [requests(each) for each in seen]
    assert (20, 2000) == (seen[-1]["acme"].bytes_out, seen[-1]["acme"].processor_ns)
    assert (1, 0) == (living, files(data_dir))


def test_processes_add_up(data_dir: Path) -> None:
    """Usage totals include running processes, ended processes, and collected processes."""
    first, second = count(data_dir, "acme"), count(data_dir, "acme", "globex")
    collect(data_dir)
    first.close()
    second.add_request(
        request_record("acme", bytes_in=1, bytes_out=10, wall_ns=100, processor_ns=1000)
    )
    third = count(data_dir, "acme")

    assert {"acme": 4, "globex": 1} == requests(totals(data_dir))
    collect(data_dir)
    assert {"acme": 4, "globex": 1} == requests(totals(data_dir))
    assert 2 == files(data_dir)
    second.close()
    third.close()


@pytest.mark.live
@pytest.mark.parametrize(
    "where", ["_add_new_counts", "_merge_old_buckets", "_forget_deleted_files", "unlink"]
)
def test_a_killed_collection_doubles_and_loses_nothing(data_dir: Path, where: str) -> None:
    """If a process is killed while it collects counter files, the totals stay exact."""
    count(data_dir, "acme", times=3).close()

    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_COLLECTION, str(data_dir), where], check=False
    )

    after = [requests(totals(data_dir))]
    for _ in range(2):
        collect(data_dir)
        after.append(requests(totals(data_dir)))
    assert -signal.SIGKILL == killed.returncode
    assert ([{"acme": 3}] * 3, 0) == (after, files(data_dir))


@pytest.mark.live
def test_workers_that_are_killed_while_all_collect_lose_nothing(data_dir: Path) -> None:
    """Totals stay exact while six processes count requests, collect usage and are killed."""
    command = [sys.executable, "-c", COUNTS_AND_COLLECTS, str(data_dir)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(6)]
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()
        # Kill the process at a random point of a collection.
        threading.Event().wait(random.random() / 20)
        worker.kill()
        worker.wait()
        worker.stdout.close()

    seen = requests(totals(data_dir))
    collect(data_dir)

    assert ({"acme": 1200}, {"acme": 1200}) == (seen, requests(totals(data_dir)))
    assert 0 == files(data_dir)


def test_used_since_includes_later_usage_only(data_dir: Path) -> None:
    """Usage since a time includes the minute of that time, and counts not collected yet."""
    counters = count(data_dir, "acme")
    used_s = totals(data_dir)["acme"].used_ns / 1e9
    collect(data_dir)
    collected = used_since(data_dir, used_s), used_since(data_dir, used_s + 2 * MINUTE)
    counters.add_request(
        request_record("globex", bytes_in=1, bytes_out=10, wall_ns=100, processor_ns=1000)
    )

    assert ({"acme": 1}, {}) == tuple(map(requests, collected))
    assert {"acme": 1, "globex": 1} == requests(used_since(data_dir, used_s))
    counters.close()


def test_old_buckets_become_coarser(data_dir: Path) -> None:
    """Usage per minute is merged into hours and later into days, and the sums stay the same."""
    count(data_dir, "acme", times=5).close()
    collect(data_dir)
    used_s = totals(data_dir)["acme"].used_ns / 1e9
    lengths = []
    for days in (0, 4, 70):
        collect(data_dir, now=used_s + days * DAY)
        with closing(sqlite3.connect(usage_file(data_dir))) as connection:
            lengths += connection.execute("SELECT length, requests FROM bucket").fetchall()

    assert [(MINUTE, 5), (HOUR, 5), (DAY, 5)] == lengths
    assert {"acme": 5} == requests(used_since(data_dir, used_s))
    assert {} == used_since(data_dir, used_s + DAY)


def test_what_was_collected_from_a_deleted_file_is_forgotten(data_dir: Path) -> None:
    """The record of a deleted counter file is removed after an hour, but its counts stay."""
    count(data_dir, "acme").close()
    left = []
    for later_s in (0, 60, 7200):
        now = usage.time.time() + later_s
        collect(data_dir, now=now)
        with closing(sqlite3.connect(usage_file(data_dir))) as connection:
            left += connection.execute("SELECT count(*) FROM folded").fetchone()

    assert ([1, 1, 0], {"acme": 1}) == (left, requests(totals(data_dir)))


def test_a_recent_collection_is_not_repeated(data_dir: Path) -> None:
    """A process does not collect usage if another process has just collected it."""
    counters = count(data_dir, "acme")
    collect(data_dir, min_interval_s=30)
    counters.close()

    collect(data_dir, min_interval_s=30)

    assert (1, {"acme": 1}) == (files(data_dir), requests(totals(data_dir)))


def test_a_host_collects_periodically_and_logs_a_failure_once(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged usage database is logged once; when it is deleted, collecting continues."""
    monkeypatch.setattr(usage, "FIRST_DELAY_S", 0.0)
    monkeypatch.setattr(usage, "INTERVAL_S", 0.001)
    count(data_dir, "acme").close()
    usage_file(data_dir).write_bytes(b"no database" * 1000)
    stopping = threading.Event()
    thread = threading.Thread(target=collect_periodically, args=(data_dir, stopping))
    thread.start()
    wait_until(lambda: bool(caplog.records))

    try:
        with pytest.raises(TenantryError, match=r"cannot read the usage database .*: .*delete it"):
            totals(data_dir)
        usage_file(data_dir).unlink()
        wait_until(lambda: files(data_dir) == 0)
    finally:
        stopping.set()
        thread.join()

    assert ["usage.collection_failed"] == [record.message for record in caplog.records]
    assert {"acme": 1} == requests(totals(data_dir))


def test_a_database_of_an_older_release_is_upgraded(data_dir: Path) -> None:
    """If a usage database of an older release lacks a column, the column counts as 0."""
    count(data_dir, "acme", times=2).close()
    collect(data_dir)
    make_older(usage_file(data_dir))
    before = totals(data_dir), used_since(data_dir, 0)
    counters = count(data_dir, "acme")
    counters.add("acme", overdue=1)
    uncollected = totals(data_dir)["acme"]
    collect(data_dir)

    counts = totals(data_dir)["acme"]
    assert [{"acme": 2}] * 2 == [requests(used) for used in before]
    assert (3, 1, 0, 30) == (counts.requests, counts.overdue, counts.uncounted, counts.bytes_out)
    assert (uncollected, counts) == (counts, used_since(data_dir, 0)["acme"])
    counters.close()
