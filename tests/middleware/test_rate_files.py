"""All processes of a host count rates together, in files with one lock for each tenant."""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from limits import parse, parse_many

from tenantry.middleware import rate_files
from tenantry.middleware.rate_files import KEPT_S, HostStorage, delete_counts

RATE = (parse("3/minute"),)

PROCESS = """
import sys
from pathlib import Path
from limits import parse
from tenantry.middleware.rate_files import HostStorage
storage, rates = HostStorage(Path(sys.argv[1])), (parse(sys.argv[2]),)
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.readline()
print(sum(storage.hit("acme", rates)[0].has_fit for _ in range(int(sys.argv[3]))))
"""


def _admitted(storage: HostStorage, tenant: str = "acme", requests: int = 6) -> int:
    counts = [storage.hit(tenant, RATE) or pytest.fail("not counted") for _ in range(requests)]
    return sum(count[0].has_fit for count in counts)


def _count_in_processes(folder: Path, rate: str, requests: int) -> list[int]:
    """Return the number of admitted requests in each of three processes that count at once."""
    command = [sys.executable, "-c", PROCESS, str(folder), rate, str(requests)]
    processes = [Popen(command, stdin=PIPE, stdout=PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    return [int(process.communicate("go\n", timeout=60)[0]) for process in processes]


@pytest.mark.parametrize(("rate", "limit"), [("100/hour", 100), ("1000/hour", 1000)])
def test_processes_admit_exactly_the_rate(tmp_path: Path, rate: str, limit: int) -> None:
    """Three processes that count at the same time together admit exactly the rate."""
    assert limit == sum(_count_in_processes(tmp_path, rate, limit))


def test_threads_admit_exactly_the_rate(tmp_path: Path) -> None:
    """Eight threads that count at the same time together admit exactly the rate."""
    storage, rates = HostStorage(tmp_path), (parse("100/hour"),)
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda _: storage.hit("acme", rates), range(400)))

    assert 100 == sum(count is not None and count[0].has_fit for count in counts)


def test_counts_outlive_their_process(tmp_path: Path) -> None:
    """A process that replaces another process continues its counts; other tenants start at zero."""
    first = _admitted(HostStorage(tmp_path))

    second = HostStorage(tmp_path)

    assert (3, 0, 3) == (first, _admitted(second), _admitted(second, "globex"))


def test_counts_do_not_outlive_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries from before a restart of the system do not count."""
    _admitted(HostStorage(tmp_path))
    monkeypatch.setattr(rate_files, "_BOOT", b"another boot    ")

    assert 3 == _admitted(HostStorage(tmp_path))


def test_only_the_owner_can_read_the_files(tmp_path: Path) -> None:
    """The folder has mode 0700, and the files have mode 0600, whatever the umask."""
    umask = os.umask(0)
    try:
        _admitted(HostStorage(tmp_path / "rates"))
    finally:
        os.umask(umask)

    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "rates", *tmp_path.glob("*/*"))]
    assert [0o700, 0o600] == modes


def test_a_process_that_keeps_the_lock_delays_one_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process keeps the lock, requests are not counted, and only one waits."""
    monkeypatch.setattr(rate_files, "LOCK_WAIT_S", 0.05)
    monkeypatch.setattr(rate_files, "LOCK_PAUSE_S", 60.0)
    storage = HostStorage(tmp_path)
    _admitted(storage, requests=1)
    (path,) = tmp_path.iterdir()
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        first = _seconds(lambda: storage.hit("acme", RATE))
        second = _seconds(lambda: storage.hit("acme", RATE))
        globex = _admitted(storage, "globex")

    assert (3, 2, 2) == (globex, storage.unanswered_total, _admitted(storage))
    assert second < 0.05 <= first


def test_a_full_window_refuses_without_the_lock(tmp_path: Path) -> None:
    """While a rate is exceeded, a request is refused even if another process keeps the lock."""
    now_s = 1000.0
    storage = HostStorage(tmp_path, clock=lambda: now_s)
    _admitted(storage)
    (path,) = tmp_path.iterdir()
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        now_s += 10
        [refused] = storage.hit("acme", RATE) or []
    now_s += RATE[0].get_expiry()

    assert (False, 3, RATE[0].get_expiry() - 10) == (refused[0], refused[1], refused[4])
    assert (0, 3) == (storage.unanswered_total, _admitted(storage))


def _seconds(act: Callable[[], object]) -> float:
    begun = time.monotonic()
    assert act() is None
    return time.monotonic() - begun


def test_a_killed_process_frees_its_lock(tmp_path: Path) -> None:
    """If a process is killed while counting, its lock is released."""
    storage = HostStorage(tmp_path)
    _admitted(storage, requests=1)
    (path,) = tmp_path.iterdir()
    code = (
        "import fcntl, sys, signal; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX);"
        "print(flush=True); signal.pause()"
    )
    with Popen([sys.executable, "-c", code, str(path)], stdout=PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)

    assert 2 == _admitted(storage)


def test_without_room_for_files_each_process_counts_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If the file cannot be created, the process counts alone, and one log line says so."""
    storage = HostStorage(tmp_path / "rates")
    (tmp_path / "rates").rmdir()

    assert 3 == _admitted(storage)
    assert ["rates.file_failed"] == [record.message for record in caplog.records]


def test_more_tenants_than_open_files_are_counted(tmp_path: Path) -> None:
    """A file that is closed because too many files are open keeps its counts."""
    storage = HostStorage(tmp_path)
    storage._max_files = 2
    names = [f"tenant-{number}" for number in range(5)]

    assert [3] * 5 + [0] * 5 == [_admitted(storage, name) for name in names * 2]
    assert 2 == len(storage._files)


def test_old_files_are_deleted(tmp_path: Path) -> None:
    """A new process deletes files in which no rate counts a request any longer."""
    storage = HostStorage(tmp_path)
    day_long = tuple(parse_many("3/30 days; 3/minute"))
    _admitted(storage)
    storage.hit("globex", day_long)
    long_ago = time.time() - KEPT_S - 120
    for path in tmp_path.iterdir():
        os.utime(path, (long_ago, long_ago))
    HostStorage(tmp_path)
    left = [path.name.partition("@")[0] for path in tmp_path.iterdir()]

    assert (["globex"], 3) == (left, _admitted(storage))
    assert 2 == len(list(tmp_path.iterdir()))


def test_a_removed_tenant_leaves_no_counts(tmp_path: Path) -> None:
    """A new tenant of the name begins at zero, also in a process that has the old file open."""
    storages = HostStorage(tmp_path), HostStorage(tmp_path)
    first = [_admitted(storages[0], tenant) for tenant in ("acme", "acme-2")]

    delete_counts(tmp_path, "acme")

    again = [[_admitted(one, tenant, 2) for tenant in ("acme", "acme-2")] for one in storages]
    assert ([3, 3], [[2, 0], [1, 0]]) == (first, again)
