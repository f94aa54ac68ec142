"""A parked tenant gets 503, except for occasional trial requests in one process."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import create_environ
from wsgi_apps import build, get, make_mount, make_tenant

from tenantry.host import Host
from tenantry.routing.quarantine import MAX_TRIAL_S, Quarantine, quarantine_s
from tenantry.tenants.operator_state import OperatorState, read_operator_state, write_operator_state


class Clock:
    """A clock that stands still until a test moves it."""

    now_s = 0.0

    def __call__(self) -> float:
        """Return the time that the test has set."""
        return self.now_s


@pytest.fixture(name="clock")
def _clock() -> Clock:
    return Clock()


class TwoProcesses:
    """The quarantine of one tenant in two processes."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.reported: list[bool] = []
        file = folder / "parked.lock"
        self.first, self.second = (
            Quarantine("why", 1, file, self.reported.append, clock=clock) for _ in range(2)
        )


@pytest.fixture(name="processes")
def _processes(tmp_path: Path, clock: Clock) -> TwoProcesses:
    """Return the quarantine of a tenant that has just been parked."""
    return TwoProcesses(tmp_path, clock)


def ask(
    quarantine: Quarantine, status: str = "200 OK", meanwhile: Callable[[], None] = int
) -> bool:
    """Send a request, and return whether it was a trial.

    The function `meanwhile` is called while the request is in flight.
    """

    def app(_: object, start_response: Callable[..., object]) -> Iterable[bytes]:
        start_response(status, [])
        meanwhile()
        return []

    trial = quarantine.begin_trial()
    if trial is None:
        return False
    body: Any = trial.answer(app, create_environ(), lambda *_: lambda _: None)
    body.close()
    body.close()
    return True


def test_a_request_is_a_trial_once_the_wait_is_over(processes: TwoProcesses, clock: Clock) -> None:
    """A parked tenant gets a trial request after one minute, and another after the next minute."""
    trials = []
    for clock.now_s in (0.0, 59.0, 60.0, 61.0, 121.0):
        trials.append(ask(processes.first))

    assert [False, False, True, False, True] == trials
    assert [True, True] == processes.reported


def test_one_process_tries_at_a_time(processes: TwoProcesses, clock: Clock) -> None:
    """Only one process at a time sends a trial request to a parked tenant."""
    clock.now_s = 60.0
    during: list[bool] = []

    ask(processes.first, meanwhile=lambda: during.append(ask(processes.second)))

    assert [False, True] == [*during, ask(processes.second)]


def test_a_trial_that_takes_too_long_has_failed(processes: TwoProcesses, clock: Clock) -> None:
    """A trial request that takes too long has failed, whatever the response."""
    clock.now_s = 60.0

    ask(
        processes.first,
        meanwhile=lambda: setattr(clock, "now_s", clock.now_s + MAX_TRIAL_S + 1),
    )

    assert [False] == processes.reported


def test_a_refusal_by_the_host_is_inconclusive(processes: TwoProcesses, clock: Clock) -> None:
    """If the host itself refuses a trial request, the next request is another trial."""
    clock.now_s = 60.0

    trials = [
        ask(processes.first, "429 Too Many Requests"),
        ask(processes.second, "500 Internal Server Error"),
    ]

    assert ([True, True], [True]) == (trials, processes.reported)


def test_a_trial_that_ended_its_process_is_not_repeated_at_once(
    processes: TwoProcesses, clock: Clock
) -> None:
    """If a trial request ends its process, other processes wait before the next trial."""
    clock.now_s = 60.0
    trial = processes.first.begin_trial()
    assert trial is not None
    os.close(trial._fds.pop())  # the lock is released when the process ends

    trials = [ask(processes.second)]
    for clock.now_s in (119.0, 120.0):
        trials.append(ask(processes.second))

    assert [False, False, True] == trials


def test_without_a_writable_folder_there_is_no_trial(tmp_path: Path, clock: Clock) -> None:
    """If the data folder is not writable, a parked tenant gets no trial requests."""
    quarantine = Quarantine("why", 1, tmp_path / "no" / "lock", lambda _: None, clock=clock)
    clock.now_s = 60.0

    assert not ask(quarantine)


@pytest.mark.parametrize(
    ("times", "seconds"), [(1, 60), (2, 120), (6, 1920), (7, 3600), (10_000, 3600)]
)
def test_each_time_in_a_row_doubles_the_wait(times: int, seconds: float) -> None:
    """The wait before a trial request doubles each time that a tenant is parked, up to an hour."""
    assert seconds == quarantine_s(times)


def test_a_parked_mount_answers_503(processes: TwoProcesses) -> None:
    """A parked tenant answers 503 and has the state `failed`, and operators see the reason."""
    mount = make_mount(make_tenant(), build)
    mount.quarantine = processes.first

    status, headers, _ = get(mount)

    assert (503, "60") == (status, headers["Retry-After"])
    assert ("failed", "why", "") == (mount.state, mount.explanation, mount.reason)


def test_workers_follow_the_operator_state(
    host: Host, write_tenant: Callable[..., Path], data_dir: Path
) -> None:
    """Changing a parked tenant's maintenance mode does not restart the wait for a trial request.

    A successful trial request ends the tenant's quarantine.
    """

    def look(state: OperatorState | None = None) -> None:
        if state is not None:
            write_operator_state(data_dir, "acme", state)
        host.follower._next_housekeeping = 0
        host.follower.step()

    write_tenant("acme")
    host.load()
    look(OperatorState(parked="parked: why", times_parked=1))
    [mount] = host.router.mounts
    quarantine, shown = mount.quarantine, host.report.listing()["mounts"][0]
    is_parked = host.status()[0].is_parked
    look(OperatorState(maintenance=True, parked="parked: why", times_parked=1))

    assert quarantine is not None
    assert (True, "failed", "parked: why") == (is_parked, shown["state"], shown["reason"])
    assert quarantine is mount.quarantine
    quarantine._report(True)
    look()

    assert mount.quarantine is None
    assert OperatorState(maintenance=True) == read_operator_state(data_dir, "acme")
