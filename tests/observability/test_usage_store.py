"""What was used, summed up over processes that come, go and are killed."""

import random
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from servers import wait_until
from tenantry.errors import TenantryError
from tenantry.observability import usage_store as usage
from tenantry.observability.usage_counters import Counts, UsageCounters, counters_folder
from tenantry.observability.usage_store import (
    DAY,
    HOUR,
    MINUTE,
    collect_periodically,
    fold,
    totals,
    usage_file,
    used_since,
)

KILLED_IN_FOLD = """
import os, signal, sys
from pathlib import Path
from tenantry.observability import usage_store as usage

die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "unlink":
    Path.unlink = die
else:
    setattr(usage, sys.argv[2], die)
usage.fold(Path(sys.argv[1]))
"""

COUNTS_AND_FOLDS = """
import sys
from pathlib import Path
from tenantry.observability.usage_counters import UsageCounters, counters_folder
from tenantry.observability.usage_store import fold

data_dir = Path(sys.argv[1])
ledger = UsageCounters()
ledger.open(counters_folder(data_dir))
for number in range(200):
    ledger.note_request("acme", False, False, 1, 2, 3, 4)
    if number % 20 == 0:
        fold(data_dir)
print("counted", flush=True)
while True:
    fold(data_dir)
"""


def count(data_dir: Path, *tenants: str, times: int = 1) -> UsageCounters:
    """Return the ledger of a process that has served these, each so often, in so many bytes."""
    ledger = UsageCounters()
    ledger.open(counters_folder(data_dir))
    for name in tenants * times:
        ledger.note_request(name, False, False, 1, 10, 100, 1000)
    return ledger


def make_older(path: Path) -> None:
    """Make the file as a release left it that did not know all counts."""
    with closing(sqlite3.connect(path)) as connection:
        for table in ("bucket", "total", "folded"):
            for name in ("overdue", "uncounted"):
                connection.execute(f"ALTER TABLE {table} DROP COLUMN {name}")
        connection.commit()


def requests(used: dict[str, Counts]) -> dict[str, int]:
    """Return the requests of each tenant."""
    return {name: counts.requests for name, counts in used.items()}


def files(data_dir: Path) -> int:
    """Return how many ledgers there are."""
    return len([*counters_folder(data_dir).glob("*.ledger")])


def test_before_anything_was_used(data_dir: Path) -> None:
    """Nothing was, and nothing is made to say so."""
    assert ({}, {}, False) == (totals(data_dir), used_since(data_dir, 0), data_dir.exists())


def test_a_fold_changes_no_total(data_dir: Path) -> None:
    """However often, before and after the process ends; then its file goes."""
    ledger = count(data_dir, "acme", "globex", "acme")
    seen = [totals(data_dir)]
    for _ in range(3):
        fold(data_dir)
        seen.append(totals(data_dir))
    living = files(data_dir)
    ledger.close()
    for _ in range(2):
        fold(data_dir)
        seen.append(totals(data_dir))

    assert [{"acme": 2, "globex": 1}] * 6 == [requests(each) for each in seen]
    assert (20, 2000) == (seen[-1]["acme"].bytes_out, seen[-1]["acme"].processor_ns)
    assert (1, 0) == (living, files(data_dir))


def test_processes_add_up(data_dir: Path) -> None:
    """Those that live, that were folded, and that ended since."""
    first, second = count(data_dir, "acme"), count(data_dir, "acme", "globex")
    fold(data_dir)
    first.close()
    second.note_request("acme", False, False, 1, 10, 100, 1000)
    third = count(data_dir, "acme")

    assert {"acme": 4, "globex": 1} == requests(totals(data_dir))
    fold(data_dir)
    assert {"acme": 4, "globex": 1} == requests(totals(data_dir))
    assert 2 == files(data_dir)
    second.close()
    third.close()


@pytest.mark.live
@pytest.mark.parametrize("where", ["_take", "_make_coarser", "_forget", "unlink"])
def test_a_fold_that_is_killed_doubles_and_loses_nothing(data_dir: Path, where: str) -> None:
    """`kill -9` before, amid and after what it writes; the next fold does the rest."""
    count(data_dir, "acme", times=3).close()

    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_FOLD, str(data_dir), where], check=False
    )

    after = [requests(totals(data_dir))]
    for _ in range(2):
        fold(data_dir)
        after.append(requests(totals(data_dir)))
    assert -signal.SIGKILL == killed.returncode
    assert ([{"acme": 3}] * 3, 0) == (after, files(data_dir))


@pytest.mark.live
def test_workers_that_are_killed_while_all_fold_lose_nothing(data_dir: Path) -> None:
    """Six processes count and fold each other's files, and are killed one after the other."""
    command = [sys.executable, "-c", COUNTS_AND_FOLDS, str(data_dir)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(6)]
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()
        threading.Event().wait(random.random() / 20)  # somewhere in a fold
        worker.kill()
        worker.wait()
        worker.stdout.close()

    seen = requests(totals(data_dir))
    fold(data_dir)

    assert ({"acme": 1200}, {"acme": 1200}) == (seen, requests(totals(data_dir)))
    assert 0 == files(data_dir)


def test_since_counts_what_was_used_then(data_dir: Path) -> None:
    """What was folded in its minute, and what is not folded yet."""
    ledger = count(data_dir, "acme")
    used_s = totals(data_dir)["acme"].used_ns / 1e9
    fold(data_dir)
    folded = used_since(data_dir, used_s), used_since(data_dir, used_s + 2 * MINUTE)
    ledger.note_request("globex", False, False, 1, 10, 100, 1000)

    assert ({"acme": 1}, {}) == tuple(map(requests, folded))
    assert {"acme": 1, "globex": 1} == requests(used_since(data_dir, used_s))
    ledger.close()


def test_old_buckets_become_coarser(data_dir: Path) -> None:
    """Minutes become hours, and hours days; nothing is lost on the way."""
    count(data_dir, "acme", times=5).close()
    fold(data_dir)
    used_s = totals(data_dir)["acme"].used_ns / 1e9
    lengths = []
    for days in (0, 4, 70):
        fold(data_dir, now=used_s + days * DAY)
        with closing(sqlite3.connect(usage_file(data_dir))) as connection:
            lengths += connection.execute("SELECT length, requests FROM bucket").fetchall()

    assert [(MINUTE, 5), (HOUR, 5), (DAY, 5)] == lengths
    assert {"acme": 5} == requests(used_since(data_dir, used_s))
    assert {} == used_since(data_dir, used_s + DAY)


def test_what_was_taken_from_a_file_is_forgotten_at_last(data_dir: Path) -> None:
    """An hour after the file is gone; the totals stay."""
    count(data_dir, "acme").close()
    left = []
    for later_s in (0, 60, 7200):
        now = usage.time.time() + later_s
        fold(data_dir, now=now)
        with closing(sqlite3.connect(usage_file(data_dir))) as connection:
            left += connection.execute("SELECT count(*) FROM folded").fetchone()

    assert ([1, 1, 0], {"acme": 1}) == (left, requests(totals(data_dir)))


def test_processes_take_turns(data_dir: Path) -> None:
    """Who finds that another one has just folded leaves it at that."""
    ledger = count(data_dir, "acme")
    fold(data_dir, at_most_every_s=30)
    ledger.close()

    fold(data_dir, at_most_every_s=30)

    assert (1, {"acme": 1}) == (files(data_dir), requests(totals(data_dir)))


def test_a_host_folds_by_itself_and_says_once_that_it_cannot(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is no database is one line in the log; when it is mended, it goes on."""
    monkeypatch.setattr(usage, "FIRST_FOLD_S", 0.0)
    monkeypatch.setattr(usage, "FOLD_S", 0.001)
    count(data_dir, "acme").close()
    usage_file(data_dir).write_bytes(b"no database" * 1000)
    stopping = threading.Event()
    thread = threading.Thread(target=collect_periodically, args=(data_dir, stopping))
    thread.start()
    wait_until(lambda: bool(caplog.records))

    with pytest.raises(TenantryError, match=r"cannot read the usage in .*; mend or remove it\."):
        totals(data_dir)
    usage_file(data_dir).unlink()
    wait_until(lambda: files(data_dir) == 0)
    stopping.set()
    thread.join()

    assert ["usage.not_folded"] == [record.message for record in caplog.records]
    assert {"acme": 1} == requests(totals(data_dir))


def test_a_file_of_an_older_release_is_read_and_goes_on(data_dir: Path) -> None:
    """What it does not know is 0 until then; nothing that it knows is lost."""
    count(data_dir, "acme", times=2).close()
    fold(data_dir)
    make_older(usage_file(data_dir))
    before = totals(data_dir), used_since(data_dir, 0)
    ledger = count(data_dir, "acme")
    ledger.note_overdue("acme")
    unfolded = totals(data_dir)["acme"]
    fold(data_dir)

    counts = totals(data_dir)["acme"]
    assert [{"acme": 2}] * 2 == [requests(used) for used in before]
    assert (3, 1, 0, 30) == (counts.requests, counts.overdue, counts.uncounted, counts.bytes_out)
    assert (unfolded, counts) == (counts, used_since(data_dir, 0)["acme"])
    ledger.close()
