"""Builds beside: real lanes, a clock moved by hand."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import KEY
from servers import DEADLINE_S, wait_until
from tenantry.reload.rebuilds import STUCK_S, Rebuilds
from tenantry.reload.workers import ReloadWorkers
from tenantry.routing.build_failure import FIRST_PAUSE_S, MAX_PAUSE_S
from tenantry.routing.instance import Instance
from tenantry.routing.mount import Mount
from tenantry.tenants.model import Tenant, parse_tenant


class Beside:
    """The builds of acme, which fail as long as there is an error."""

    def __init__(self, data_dir: Path) -> None:
        self.now_s = 100.0
        self.error: Exception | None = None
        self.closed: list[str] = []
        self.given: list[Instance] = []
        self._data_dir = data_dir
        self._is_done = threading.Event()
        self.lanes = ReloadWorkers(data_dir, self.build, self._is_done.set)
        self.rebuilds = Rebuilds(self.lanes, lambda: self.now_s)
        self.mount = Mount("acme", "/acme", self.build)

    def tenant(self, app_name: str) -> Tenant:
        """Return one content of acme's file."""
        values = {"SECRET_KEY": KEY, "BLUEPRINTS": ["landing"], "APP_NAME": app_name}
        return parse_tenant("acme", values, data_dir=self._data_dir)

    def build(self, tenant: Tenant) -> Instance:
        """Build an instance, which tells when it is closed."""
        if self.error is not None:
            raise self.error
        return Instance(lambda _, __: [], lambda: self.closed.append(tenant.app_name))

    def begin(self, tenant: Tenant) -> None:
        """Begin a build."""
        self._is_done.clear()
        self.rebuilds.begin(self.mount, tenant, self.given.append)

    def finish(self) -> None:
        """Wait for a result, and take it in."""
        assert self._is_done.wait(DEADLINE_S)
        for result in self.lanes.collect():
            result()


@pytest.fixture(name="beside")
def _beside(data_dir: Path) -> Iterator[Beside]:
    """Return builds that end with the test."""
    beside = Beside(data_dir)
    yield beside
    beside.lanes.close()
    for instance in beside.given:
        instance.retire()


def test_what_was_built_is_handed_over(beside: Beside) -> None:
    """To whoever asked; nothing is swapped."""
    beside.begin(beside.tenant("v1"))
    beside.finish()

    assert (1, None, []) == (len(beside.given), beside.mount.instance, beside.closed)


@pytest.mark.parametrize("has_newer", [False, True])
def test_what_nobody_wants_any_more_is_closed(beside: Beside, *, has_newer: bool) -> None:
    """A build that was dropped while it went on, or is of older content."""
    beside.begin(beside.tenant("v1"))
    assert beside._is_done.wait(DEADLINE_S)
    if has_newer:
        beside.begin(beside.tenant("v2"))
    else:
        beside.rebuilds.drop("acme")

    beside.finish()

    assert ["v1"] == beside.closed


def test_a_build_that_fails_is_due_again_after_a_pause_that_doubles(beside: Beside) -> None:
    """Up to a minute; the mount says why."""
    beside.error = ValueError("no such table")
    tenant, pauses = beside.tenant("v1"), []
    for _ in range(8):
        beside.begin(tenant)
        beside.finish()
        begun_s = beside.now_s
        while not beside.rebuilds.due():
            beside.now_s += 1.0
        pauses.append(beside.now_s - begun_s)

    doubled = [min(FIRST_PAUSE_S * 2**count, MAX_PAUSE_S) for count in range(8)]
    assert doubled == pauses
    assert "cannot be built: no such table" in beside.mount.reason


def test_newer_content_has_no_back_off(beside: Beside) -> None:
    """Its first failure is its first."""
    beside.error = ValueError("no such table")
    for app_name in ("v1", "v1", "v2"):
        beside.begin(beside.tenant(app_name))
        beside.finish()

    beside.now_s += FIRST_PAUSE_S

    assert ["acme"] == beside.rebuilds.due()


def test_a_file_that_is_edited_while_its_builds_hang_takes_no_thread_each_time(
    beside: Beside,
) -> None:
    """Two are built; of the others the newest waits until one of these ends."""
    released, begun = threading.Event(), []

    def hang(tenant: Tenant) -> Instance:
        begun.append(tenant.app_name)
        assert released.wait(DEADLINE_S)
        return Instance(lambda _, __: [], lambda: beside.closed.append(tenant.app_name))

    beside.lanes._build = hang
    for number in range(6):
        beside.begin(beside.tenant(f"v{number}"))
        if number < 2:
            wait_until(lambda: len(begun) > number)  # noqa: B023 - it is called here only
    beside.now_s += STUCK_S + 1
    beside.rebuilds.due()
    before, reason = list(begun), beside.mount.reason

    released.set()

    def have_all_ended() -> bool:
        beside.finish()
        return bool(beside.given) and len(beside.closed) == 2

    wait_until(have_all_ended)
    assert (["v0", "v1"], "v5") == (before, begun[-1])
    assert (3, ["v0", "v1"]) == (len(begun), sorted(beside.closed))
    assert "waits for 2 builds of older content" in reason
