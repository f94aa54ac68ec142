"""The crash budget: which tenant is blamed for a dead worker, and when a tenant is parked."""

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.workers.workertmp import WorkerTmp

from servers import wait_until
from tenantry.observability.scoreboard import Row, Scoreboard
from tenantry.server.crash_budget import WINDOW_S, CrashBudget, blame
from tenantry.server.crash_report import CrashReport
from tenantry.server.heartbeat import Heartbeat
from tenantry.server.worker import TenantWorker
from tenantry.tenants.operator_state import (
    DEFAULT_OPERATOR_STATE,
    OperatorState,
    operator_state_file,
    read_operator_state,
    write_operator_state,
)

ACME, GLOBEX = "acme", "globex"


class Clock:
    """A clock that a test sets."""

    now_s = 1000.0

    def __call__(self) -> float:
        """Return the time that the test has set on the clock."""
        return self.now_s


@pytest.fixture(name="clock")
def _clock() -> Clock:
    return Clock()


@pytest.fixture(name="budget")
def _budget(data_dir: Path, clock: Clock) -> CrashBudget:
    """Return a crash budget over the data folder."""
    return CrashBudget(data_dir, clock=clock)


def parked_tenants(data_dir: Path) -> list[str]:
    """Return which of the two tenants are parked."""
    return [name for name in ("acme", "globex") if read_operator_state(data_dir, name).parked]


ALONE, BOTH = ["acme"], ["acme", "globex"]


@pytest.mark.parametrize(
    ("deaths", "parked"),
    [
        ([ALONE] * 2, []),
        ([ALONE] * 3, ["acme"]),
        ([BOTH] * 9, []),
        ([BOTH] * 3 + [ALONE], []),
        ([BOTH] * 9 + [ALONE], []),
        ([BOTH] * 2 + [ALONE] * 2, ["acme"]),
    ],
)
def test_a_tenant_is_parked_after_three_deaths(
    budget: CrashBudget, data_dir: Path, deaths: list[list[str]], parked: list[str]
) -> None:
    """A death with several suspects counts partly for each; shares alone never park a tenant."""
    for suspects in deaths:
        budget.note(suspects, "the reason")

    assert parked == parked_tenants(data_dir)


def test_old_deaths_do_not_count(budget: CrashBudget, data_dir: Path, clock: Clock) -> None:
    """Only deaths within `WINDOW_S`, on a monotonic clock, count."""
    for clock.now_s in (0.0, 200.0, WINDOW_S + 1):
        budget.note(ALONE, "the reason")

    assert [] == parked_tenants(data_dir)


def test_parking_again_lasts_longer(budget: CrashBudget, data_dir: Path, clock: Clock) -> None:
    """A death right after parking does not count, and a later death parks the tenant again."""
    times = []
    for clock.now_s in (0.0, 1.0, 2.0, 3.0, 70.0, 200.0):
        budget.note(ALONE, "the reason")
        times.append(read_operator_state(data_dir, "acme").times_parked)

    assert [0, 0, 1, 1, 2, 3] == times
    assert (
        "parked: the reason; fix it, then run: tenantry enable acme"
        == read_operator_state(data_dir, "acme").parked
    )


def test_shared_deaths_extend_parking_only_when_they_add_up(
    budget: CrashBudget, data_dir: Path, clock: Clock
) -> None:
    """After parking, two deaths with two suspects each count as one death."""
    times = []
    for clock.now_s, suspects in enumerate([ALONE] * 3):
        budget.note(suspects, "why")
    for clock.now_s in (70.0, 130.0, 131.0, 200.0, 300.0):
        budget.note(BOTH, "why")
        times.append(read_operator_state(data_dir, "acme").times_parked)

    assert [1, 2, 2, 2, 3] == times


def test_parking_keeps_other_operator_state(budget: CrashBudget, data_dir: Path) -> None:
    """An operator's maintenance message is kept when the tenant is parked."""
    write_operator_state(data_dir, "acme", OperatorState(maintenance="Back at noon."))

    for _ in range(3):
        budget.note(ALONE, "why")

    reason = "parked: why; fix it, then run: tenantry enable acme"
    assert OperatorState("Back at noon.", False, reason, 1) == read_operator_state(data_dir, "acme")


def test_a_broken_data_folder_does_not_stop_the_master(
    budget: CrashBudget, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed write is logged, and the tenant is parked at the next death after the repair."""
    data_dir.write_text("no folder")
    for _ in range(4):
        budget.note(ALONE, "the reason")
    logged = {record.message for record in caplog.records}
    data_dir.unlink()

    budget.note(ALONE, "the reason")

    assert {"tenant.struck", "tenant.not_parked"} == logged
    assert ["acme"] == parked_tenants(data_dir)


def test_unreadable_operator_state_is_not_overwritten(budget: CrashBudget, data_dir: Path) -> None:
    """A state file that cannot be parsed is kept unchanged for an operator to read."""
    path = operator_state_file(data_dir, "acme")
    path.parent.mkdir(parents=True)
    path.write_text("nonsense")

    for _ in range(4):
        budget.note(ALONE, "the reason")

    assert "nonsense" == path.read_text()


# -- blame ---------------------------------------------------------------------------------------


@pytest.fixture(name="row")
def _row() -> Row:
    """Return a worker's row on the scoreboard."""
    row = Scoreboard().claim_row()
    assert row is not None
    return row


@pytest.fixture(name="heartbeat")
def _heartbeat(row: Row) -> Any:
    """Return a worker heartbeat with the process ID of the test process."""
    heartbeat = Heartbeat(Config(), SimpleNamespace(pid=os.getpid()), row, lambda _: False)
    yield heartbeat
    heartbeat.close()


def test_the_heartbeat_is_limited_to_a_few_per_second(
    heartbeat: Heartbeat, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call touches the heartbeat file, and later calls only every `TOUCH_S`."""
    touched: list[float] = []
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(WorkerTmp, "notify", lambda _: touched.append(clock.now_s))
    for clock.now_s in (1.0, 1.1, 1.2, 1.3, 2.0):
        heartbeat.notify()

    assert [1.0, 1.3, 2.0] == touched


def test_all_tenants_in_flight_are_suspects(row: Row, heartbeat: Heartbeat) -> None:
    """Each tenant with requests in flight is a suspect once."""
    for tenant in (GLOBEX, ACME, GLOBEX):
        row.enter(tenant)

    suspects, reason = blame(row, heartbeat)

    assert (["acme", "globex"], True) == (
        suspects,
        reason.endswith("in flight, and 1 other tenant's"),
    )


@pytest.mark.parametrize("is_build", [False, True])
def test_the_tenant_of_the_crashed_thread_is_blamed(
    row: Row, heartbeat: Heartbeat, *, is_build: bool
) -> None:
    """The tenant of the crashed thread is the only suspect, if the thread is known."""
    row.enter(ACME, is_build=is_build)
    thread = threading.Thread(target=row.enter, args=(GLOBEX,))
    thread.start()
    thread.join()

    suspects, reason = blame(row, heartbeat, threading.get_ident())

    assert (["acme"], reason.endswith("ended a worker")) == (suspects, True)
    assert (1 if is_build else 2) == len(blame(row, heartbeat, -1)[0])


def test_a_tenant_being_built_is_the_only_suspect(row: Row, heartbeat: Heartbeat) -> None:
    """A tenant that is being built is blamed instead of tenants with requests in flight."""
    row.enter(GLOBEX)
    cell = row.enter(ACME, is_build=True)

    during = blame(row, heartbeat)
    row.leave(cell)

    assert (["acme"], "a worker ended while it was being built") == during
    assert ["globex"] == blame(row, heartbeat)[0]


def test_no_tenant_is_blamed_for_a_planned_stop(row: Row, heartbeat: Heartbeat) -> None:
    """A worker that is stopped deliberately has no suspects, although requests are in flight."""
    row.enter(ACME)
    row.stop()

    assert [] == blame(row, heartbeat)[0]


def test_the_busy_thread_of_a_frozen_worker_is_blamed(row: Row, heartbeat: Heartbeat) -> None:
    """The tenant of the thread that uses the CPU is blamed, until the main loop runs again."""
    stop, started = threading.Event(), threading.Event()
    row.enter(GLOBEX)

    def work() -> None:
        row.enter(ACME)
        started.set()
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()

    def is_found() -> bool:
        heartbeat._look(2.0)
        stop.wait(0.2)
        return heartbeat.culprit is not None

    wait_until(is_found)
    suspects, reason = blame(row, heartbeat)
    stop.set()
    thread.join()
    heartbeat._look(0.5)

    assert (["acme"], None) == (suspects, heartbeat.culprit)
    assert "one of its requests held the interpreter lock for 2 s" == reason


def test_a_frozen_worker_is_killed_at_the_timeout(
    row: Row, heartbeat: Heartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant that has recently ended a worker may block the next worker for less time."""
    killed: list[tuple[object, ...]] = []
    monkeypatch.setattr("tenantry.server.heartbeat.os.kill", lambda *call: killed.append(call))
    monkeypatch.setattr("tenantry.server.heartbeat._busiest", lambda *_: threading.get_native_id())
    heartbeat._timeout_s = 5.0
    counts = []

    heartbeat._look(6.0)
    counts.append(len(killed))
    row.enter(ACME)
    for silent_s, has_struck in ((4.0, False), (5.1, False), (2.9, True), (3.1, True)):
        heartbeat._has_struck = lambda _, has_struck=has_struck: has_struck
        heartbeat._look(silent_s)
        counts.append(len(killed))

    assert [0, 0, 1, 1, 2] == counts


def test_an_error_in_blaming_does_not_stop_the_master(
    row: Row,
    heartbeat: Heartbeat,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An exception while blaming is logged, and the worker's scoreboard row is released."""
    row.enter(ACME)
    worker: TenantWorker = object.__new__(TenantWorker)
    worker.row, worker.tmp, worker.app = row, heartbeat, SimpleNamespace()
    worker.crash_report = CrashReport()
    os.write(worker.crash_report._fd, b"Current thread 0x1\n")
    monkeypatch.setenv("TENANTRY_NONSENSE", "1")

    worker.note_exit()

    assert ["worker.blame_failed"] == [record.message for record in caplog.records]
    assert not list(row.scoreboard._rows())


# -- operator state --------------------------------------------------------------------------------


@pytest.mark.parametrize("has_run_out_of_memory", [False, True])
def test_presence_is_not_guilt(
    row: Row,
    heartbeat: Heartbeat,
    data_dir: Path,
    *,
    has_run_out_of_memory: bool,
) -> None:
    """Workers killed for lack of memory park a tenant, but workers killed from outside do not."""
    app = SimpleNamespace()
    for _ in range(4):
        worker: TenantWorker = object.__new__(TenantWorker)
        worker.row, worker.tmp, worker.app = row.scoreboard.claim_row(), heartbeat, app
        assert worker.row is not None
        worker.row.enter(ACME)
        worker.crash_report = CrashReport()
        if has_run_out_of_memory:
            worker.crash_report._oom_kills = -1
        worker.note_exit()

    assert (["acme"] if has_run_out_of_memory else []) == parked_tenants(data_dir)


def test_operator_state_of_an_older_release_is_read(data_dir: Path) -> None:
    """A file without the fields for parking is valid."""
    path = operator_state_file(data_dir, "acme")
    path.parent.mkdir(parents=True)
    path.write_text('{"maintenance": true, "is_disabled": false}')

    assert OperatorState(maintenance=True) == read_operator_state(data_dir, "acme")
    assert DEFAULT_OPERATOR_STATE == read_operator_state(data_dir, "globex")
