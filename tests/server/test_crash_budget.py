"""Strikes: who is to blame for a dead worker, and who is parked for it."""

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
from tenantry.server.crash_budget import WINDOW_S, CrashBudget
from tenantry.server.crash_report import CrashReport
from tenantry.server.heartbeat import Heartbeat, blame
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
    """A clock that a test moves."""

    now_s = 1000.0

    def __call__(self) -> float:
        """Return its time."""
        return self.now_s


@pytest.fixture(name="clock")
def _clock() -> Clock:
    return Clock()


@pytest.fixture(name="strikes")
def _strikes(data_dir: Path, clock: Clock) -> CrashBudget:
    """Return strikes over the data folder."""
    return CrashBudget(data_dir, clock=clock)


def are_parked(data_dir: Path) -> list[str]:
    """Return who of the two is parked."""
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
def test_three_strikes_park(
    strikes: CrashBudget, data_dir: Path, deaths: list[list[str]], parked: list[str]
) -> None:
    """Of several in flight each has a share, and nobody is parked for shares alone."""
    for suspects in deaths:
        strikes.note(suspects, "the reason")

    assert parked == are_parked(data_dir)


def test_strikes_are_forgotten(strikes: CrashBudget, data_dir: Path, clock: Clock) -> None:
    """Three within five minutes count, by a clock that nobody sets."""
    for clock.now_s in (0.0, 200.0, WINDOW_S + 1):
        strikes.note(ALONE, "the reason")

    assert [] == are_parked(data_dir)


def test_parking_again_lasts_longer(strikes: CrashBudget, data_dir: Path, clock: Clock) -> None:
    """A try that ends a worker counts; what was in flight when it was parked does not."""
    times = []
    for clock.now_s in (0.0, 1.0, 2.0, 3.0, 70.0, 200.0):
        strikes.note(ALONE, "the reason")
        times.append(read_operator_state(data_dir, "acme").times_parked)

    assert [0, 0, 1, 1, 2, 3] == times
    assert "parked: the reason" == read_operator_state(data_dir, "acme").parked


def test_who_is_parked_stays_longer_for_a_whole_strike_only(
    strikes: CrashBudget, data_dir: Path, clock: Clock
) -> None:
    """Of shares, as many as make one: a try beside others may not have been it."""
    times = []
    for clock.now_s, suspects in enumerate([ALONE] * 3):
        strikes.note(suspects, "why")
    for clock.now_s in (70.0, 130.0, 131.0, 200.0, 300.0):
        strikes.note(BOTH, "why")
        times.append(read_operator_state(data_dir, "acme").times_parked)

    assert [1, 2, 2, 2, 3] == times


def test_other_operator_state_stays_when_a_tenant_is_parked(
    strikes: CrashBudget, data_dir: Path
) -> None:
    """An operator's message is not lost."""
    write_operator_state(data_dir, "acme", OperatorState(maintenance="Back at noon."))

    for _ in range(3):
        strikes.note(ALONE, "why")

    assert OperatorState("Back at noon.", False, "parked: why", 1) == read_operator_state(
        data_dir, "acme"
    )


def test_a_broken_data_folder_breaks_no_master(
    strikes: CrashBudget, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged; who has enough strikes is parked at the next when the folder is mended."""
    data_dir.write_text("no folder")
    for _ in range(4):
        strikes.note(ALONE, "the reason")
    logged = {record.message for record in caplog.records}
    data_dir.unlink()

    strikes.note(ALONE, "the reason")

    assert {"tenant.struck", "tenant.not_parked"} == logged
    assert ["acme"] == are_parked(data_dir)


def test_operator_state_that_cannot_be_read_is_left_alone(
    strikes: CrashBudget, data_dir: Path
) -> None:
    """Whatever is in the file, an operator has to look at it."""
    path = operator_state_file(data_dir, "acme")
    path.parent.mkdir(parents=True)
    path.write_text("nonsense")

    for _ in range(4):
        strikes.note(ALONE, "the reason")

    assert "nonsense" == path.read_text()


# -- who is to blame ------------------------------------------------------------------------------


@pytest.fixture(name="row")
def _row() -> Row:
    """Return a worker's row on the scoreboard."""
    row = Scoreboard().claim_row()
    assert row is not None
    return row


@pytest.fixture(name="heartbeat")
def _heartbeat(row: Row) -> Any:
    """Return the heartbeat of a worker that is this process."""
    heartbeat = Heartbeat(Config(), SimpleNamespace(pid=os.getpid()), row, lambda _: False)
    yield heartbeat
    heartbeat.close()


def test_a_heart_beats_a_few_times_a_second(
    heartbeat: Heartbeat, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the main loop comes round; the first time at once."""
    touched: list[float] = []
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(WorkerTmp, "notify", lambda _: touched.append(clock.now_s))
    for clock.now_s in (1.0, 1.1, 1.2, 1.3, 2.0):
        heartbeat.notify()

    assert [1.0, 1.3, 2.0] == touched


def test_all_in_flight_are_suspected(row: Row, heartbeat: Heartbeat) -> None:
    """Each tenant once."""
    for whose in (GLOBEX, ACME, GLOBEX):
        row.enter(whose)

    suspects, reason = blame(row, heartbeat)

    assert (["acme", "globex"], True) == (suspects, reason.endswith("with those of 1 others"))


@pytest.mark.parametrize("is_build", [False, True])
def test_whose_thread_ended_the_worker_is_to_blame(
    row: Row, heartbeat: Heartbeat, *, is_build: bool
) -> None:
    """Nobody else; where the thread is not on the scoreboard, all are suspected."""
    row.enter(ACME, is_build=is_build)
    thread = threading.Thread(target=row.enter, args=(GLOBEX,))
    thread.start()
    thread.join()

    suspects, reason = blame(row, heartbeat, threading.get_ident())

    assert (["acme"], reason.endswith("ended a worker")) == (suspects, True)
    assert (1 if is_build else 2) == len(blame(row, heartbeat, -1)[0])


def test_who_is_being_built_is_suspected_first(row: Row, heartbeat: Heartbeat) -> None:
    """Code of an import ends a process; requests of others are there at any time."""
    row.enter(GLOBEX)
    cell = row.enter(ACME, is_build=True)

    during = blame(row, heartbeat)
    row.leave(cell)

    assert (["acme"], "a worker ended while it was being built") == during
    assert ["globex"] == blame(row, heartbeat)[0]


def test_nobody_is_to_blame_for_an_orderly_end(row: Row, heartbeat: Heartbeat) -> None:
    """A worker that was to stop, with requests or without."""
    row.enter(ACME)
    row.stop()

    assert [] == blame(row, heartbeat)[0]


def test_who_works_while_the_heart_stands_still_is_to_blame(row: Row, heartbeat: Heartbeat) -> None:
    """The others in flight are not; and nobody is while the heart beats."""
    is_over, has_begun = threading.Event(), threading.Event()
    row.enter(GLOBEX)

    def work() -> None:
        row.enter(ACME)
        has_begun.set()
        while not is_over.is_set():
            sum(range(1000))

    thread = threading.Thread(target=work)
    thread.start()
    has_begun.wait()

    def is_found() -> bool:
        heartbeat._look(2.0)
        is_over.wait(0.2)
        return heartbeat.culprit is not None

    wait_until(is_found)
    suspects, reason = blame(row, heartbeat)
    is_over.set()
    thread.join()
    heartbeat._look(0.5)

    assert (["acme"], None) == (suspects, heartbeat.culprit)
    assert "a request of it held the interpreter lock for 2 s" == reason


def test_a_held_worker_is_killed_when_its_time_is_over(
    row: Row, heartbeat: Heartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sooner one that has ended a worker lately; without a culprit gunicorn decides."""
    killed: list[tuple[object, ...]] = []
    monkeypatch.setattr("tenantry.server.heartbeat.os.kill", lambda *call: killed.append(call))
    monkeypatch.setattr("tenantry.server.heartbeat._busiest", lambda *_: threading.get_native_id())
    heartbeat._timeout_s = 5.0
    counts = []

    heartbeat._look(6.0)
    counts.append(len(killed))
    row.enter(ACME)
    for silent_s, is_known in ((4.0, False), (5.1, False), (2.9, True), (3.1, True)):
        heartbeat._is_known = lambda _, is_known=is_known: is_known
        heartbeat._look(silent_s)
        counts.append(len(killed))

    assert [0, 0, 1, 1, 2] == counts


def test_the_end_of_a_worker_never_ends_the_master(
    row: Row,
    heartbeat: Heartbeat,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever fails is logged, and the place on the scoreboard is free."""
    row.enter(ACME)
    worker = TenantWorker.__new__(TenantWorker)
    worker.row, worker.tmp, worker.app = row, heartbeat, SimpleNamespace()
    worker.crash_report = CrashReport()
    monkeypatch.setenv("TENANTRY_NONSENSE", "1")

    worker.note_exit()

    assert ["worker.blame_failed"] == [record.message for record in caplog.records]
    assert 0 == row.scoreboard.serving_processes()


# -- operator state --------------------------------------------------------------------------------


def test_a_file_of_an_older_release_is_read(data_dir: Path) -> None:
    """It has no word about parking."""
    path = operator_state_file(data_dir, "acme")
    path.parent.mkdir(parents=True)
    path.write_text('{"maintenance": true, "is_disabled": false}')

    assert OperatorState(maintenance=True) == read_operator_state(data_dir, "acme")
    assert DEFAULT_OPERATOR_STATE == read_operator_state(data_dir, "globex")
