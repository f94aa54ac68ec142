"""Quarantine: a parked tenant gets one request now and then, over all processes of a host."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import create_environ, run_wsgi_app

from conftest import KEY
from tenantry.host import Host
from tenantry.routing.instance import Instance
from tenantry.routing.mount import Mount
from tenantry.routing.quarantine import PROBE_S, Quarantine, wait_s
from tenantry.tenants.model import parse_tenant
from tenantry.tenants.operator_state import OperatorState, read_operator_state, write_operator_state


class Clock:
    """A clock that a test moves."""

    now_s = 0.0

    def __call__(self) -> float:
        """Return its time."""
        return self.now_s


@pytest.fixture(name="clock")
def _clock() -> Clock:
    return Clock()


class Site:
    """A parked tenant in two processes, which one test plays."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.settled: list[bool] = []
        file = folder / "parked.lock"
        self.first, self.second = (
            Quarantine("why", 1, file, self.settled.append, clock=clock) for _ in range(2)
        )


@pytest.fixture(name="site")
def _site(tmp_path: Path, clock: Clock) -> Site:
    """Return a tenant that has just been parked."""
    return Site(tmp_path, clock)


def asked(quarantine: Quarantine, status: str = "200 OK", act: Callable[[], None] = int) -> bool:
    """Send a request; whether it was the try. `act` is called while it is in flight."""

    def app(_: object, start_response: Callable[..., object]) -> Iterable[bytes]:
        start_response(status, [])
        act()
        return []

    tried = quarantine.begin_try()
    if tried is None:
        return False
    body: Any = tried.answer(app, create_environ(), lambda *_: lambda _: None)
    body.close()
    body.close()
    return True


def test_nobody_is_let_through_before_its_time(site: Site, clock: Clock) -> None:
    """A minute; then one, and the next a minute later."""
    told = []
    for clock.now_s in (0.0, 59.0, 60.0, 61.0, 121.0):
        told.append(asked(site.first))

    assert [False, False, True, False, True] == told
    assert [True, True] == site.settled


def test_one_request_of_all_processes_tries(site: Site, clock: Clock) -> None:
    """Whoever comes meanwhile is refused, and is the next when that has ended."""
    clock.now_s = 60.0
    meanwhile: list[bool] = []

    asked(site.first, act=lambda: meanwhile.append(asked(site.second)))

    assert [False, True] == [*meanwhile, asked(site.second)]


def test_a_try_that_takes_too_long_has_failed(site: Site, clock: Clock) -> None:
    """Whatever it answers."""
    clock.now_s = 60.0

    asked(site.first, act=lambda: setattr(clock, "now_s", clock.now_s + PROBE_S + 1))

    assert [False] == site.settled


def test_an_answer_that_may_not_be_the_app_s_is_no_try(site: Site, clock: Clock) -> None:
    """A refusal by the host says nothing about the tenant: the next request tries."""
    clock.now_s = 60.0

    told = [asked(site.first, "429 Too Many Requests"), asked(site.second, "500 Oh")]

    assert ([True, True], [True]) == (told, site.settled)


def test_a_try_that_killed_its_process_is_not_repeated_at_once(site: Site, clock: Clock) -> None:
    """The others wait for the master's word, or another round."""
    clock.now_s = 60.0
    dead = site.first.begin_try()
    assert dead is not None
    os.close(dead._fd.pop())  # its process is gone, and its lock with it

    told = [asked(site.second)]
    for clock.now_s in (119.0, 120.0):
        told.append(asked(site.second))

    assert [False, False, True] == told


def test_without_a_folder_it_stays_parked(tmp_path: Path, clock: Clock) -> None:
    """Nobody could be told how it went."""
    quarantine = Quarantine("why", 1, tmp_path / "no" / "lock", lambda _: None, clock=clock)
    clock.now_s = 60.0

    assert not asked(quarantine)


@pytest.mark.parametrize(
    ("times", "seconds"), [(1, 60), (2, 120), (6, 1920), (7, 3600), (10_000, 3600)]
)
def test_each_time_it_stays_twice_as_long(times: int, seconds: float) -> None:
    """Up to an hour."""
    assert seconds == wait_s(times)


def test_a_parked_mount_refuses(site: Site) -> None:
    """503 with the time to come again; its state is failed, with the reason."""
    values = {"SECRET_KEY": KEY, "BLUEPRINTS": ["landing"]}
    mount = Mount("acme", "/acme", lambda _: Instance(lambda *_: [], lambda: None))
    mount.accept(parse_tenant("acme", values, data_dir=Path("instance")))
    mount.parked = site.first

    environ = create_environ(environ_overrides={"SCRIPT_NAME": "/acme"})
    _, status, headers = run_wsgi_app(mount, environ, buffered=True)

    assert ("503 SERVICE UNAVAILABLE", "60") == (status.upper(), headers["Retry-After"])
    assert ("failed", "why", "") == (mount.state, mount.explanation, mount.reason)


def test_workers_follow_and_a_try_lets_the_tenant_back(
    host: Host, write_tenant: Callable[..., Path], data_dir: Path
) -> None:
    """The operator state says so; a later change of it does not restart the wait."""
    write_tenant("acme")
    host.load()
    write_operator_state(data_dir, "acme", OperatorState(parked="parked: why", times_parked=1))
    host.follower._next_care = 0
    host.follower.step()
    [mount] = host.mounts.all
    parked, told, is_parked = (
        mount.parked,
        host.report.listing()["mounts"][0],
        host.status()[0].is_parked,
    )
    write_operator_state(
        data_dir, "acme", OperatorState(maintenance=True, parked="parked: why", times_parked=1)
    )
    host.follower._next_care = 0
    host.follower.step()

    assert (True, True) == (parked is not None, is_parked)
    assert (parked, ("failed", "parked: why")) == (mount.parked, (told["state"], told["reason"]))
    assert parked is not None
    parked._settle(True)
    host.follower._next_care = 0
    host.follower.step()

    assert (None, OperatorState(maintenance=True)) == (
        mount.parked,
        read_operator_state(data_dir, "acme"),
    )
