"""Changed tenants are rebuilt in worker threads, with pauses after failures."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_instances import empty_app, make_tenant

from servers import DEADLINE_S, wait_until
from tenantry.reload.rebuilds import STUCK_AFTER_S, Rebuilds
from tenantry.reload.workers import ReloadWorkers
from tenantry.routing.build_failure import FIRST_PAUSE_S, MAX_PAUSE_S
from tenantry.routing.instance import Instance
from tenantry.routing.mount import Mount
from tenantry.settings import HostSettings
from tenantry.tenants.model import Tenant


class AcmeRebuilds:
    """The rebuilds of the tenant acme, which fail as long as `error` is set."""

    def __init__(self, data_dir: Path) -> None:
        self.now_s = 100.0
        self.error: Exception | None = None
        self.closed: list[str] = []
        self.built: list[Instance] = []
        self._data_dir = data_dir
        self._has_result = threading.Event()
        self.workers = ReloadWorkers(
            HostSettings(data_dir=data_dir), self.build, self._has_result.set
        )
        self.rebuilds = Rebuilds(self.workers, lambda: self.now_s)
        self.mount = Mount("acme", "/acme", self.build)

    def tenant(self, app_name: str) -> Tenant:
        """Return acme with the given app name."""
        return make_tenant(self._data_dir, APP_NAME=app_name)

    def build(self, tenant: Tenant) -> Instance:
        """Build an app instance that records when it is closed."""
        if self.error is not None:
            raise self.error
        return Instance(empty_app, lambda: self.closed.append(tenant.app_name))

    def start(self, tenant: Tenant) -> None:
        """Start a build of the given version of the tenant."""
        self._has_result.clear()
        self.rebuilds.start(self.mount, tenant, self.built.append)

    def wait(self) -> None:
        """Wait for a build to end, without handling the result."""
        assert self._has_result.wait(DEADLINE_S)

    def finish(self) -> None:
        """Wait for a build to end, and handle the result."""
        self.wait()
        for handle_result in self.workers.collect():
            handle_result()


@pytest.fixture(name="acme")
def _acme(data_dir: Path) -> Iterator[AcmeRebuilds]:
    """Return the rebuilds of the tenant acme. The fixture closes the rebuilds."""
    acme = AcmeRebuilds(data_dir)
    yield acme
    acme.workers.close()
    for instance in acme.built:
        instance.retire()


def test_the_instance_is_passed_on(acme: AcmeRebuilds) -> None:
    """A rebuilt app is passed to the caller, and does not replace the old app by itself."""
    acme.start(acme.tenant("v1"))
    acme.finish()

    assert (1, None, []) == (len(acme.built), acme.mount.instance, acme.closed)


@pytest.mark.parametrize("has_newer", [False, True])
def test_an_unwanted_instance_is_closed(acme: AcmeRebuilds, *, has_newer: bool) -> None:
    """If a build is canceled, or if its file has changed, the built app is closed."""
    acme.start(acme.tenant("v1"))
    acme.wait()
    if has_newer:
        acme.start(acme.tenant("v2"))
    else:
        acme.rebuilds.cancel("acme")

    acme.finish()

    assert ["v1"] == acme.closed


def test_a_failed_build_is_due_again_after_a_pause(acme: AcmeRebuilds) -> None:
    """After each failed build, the pause before the next build doubles, up to a minute.

    Operators see why the build failed.
    """
    acme.error = ValueError("no such table")
    tenant, pauses = acme.tenant("v1"), []
    for _ in range(8):
        acme.start(tenant)
        acme.finish()
        failed_at = acme.now_s
        while not acme.rebuilds.due():
            acme.now_s += 1.0
        pauses.append(acme.now_s - failed_at)

    doubled = [min(FIRST_PAUSE_S * 2**count, MAX_PAUSE_S) for count in range(8)]
    assert doubled == pauses
    assert "cannot be built: ValueError: no such table; see" in acme.mount.reason


def test_newer_content_starts_with_the_first_pause(acme: AcmeRebuilds) -> None:
    """Failures of an older version of a tenant file do not delay builds of a newer version."""
    acme.error = ValueError("no such table")
    for app_name in ("v1", "v1", "v2"):
        acme.start(acme.tenant(app_name))
        acme.finish()

    acme.now_s += FIRST_PAUSE_S

    assert ["acme"] == acme.rebuilds.due()


def test_a_build_that_runs_is_not_started_twice(acme: AcmeRebuilds) -> None:
    """Starting a build that already runs does not start a second build."""
    tenant = acme.tenant("v1")
    acme.start(tenant)
    acme.rebuilds.start(acme.mount, tenant, acme.built.append)
    acme.finish()

    assert (1, []) == (len(acme.built), acme.closed)


def test_a_stuck_build_is_reported(acme: AcmeRebuilds, caplog: pytest.LogCaptureFixture) -> None:
    """A build that does not end is shown as stuck, and the log says so once."""
    released = threading.Event()
    acme.workers._build = lambda _: released.wait(DEADLINE_S) and Instance(empty_app, int)  # type: ignore[assignment,return-value]
    acme.start(acme.tenant("v1"))
    acme.now_s += STUCK_AFTER_S + 1

    for _ in range(2):
        acme.rebuilds.report_stuck()

    released.set()
    acme.finish()
    assert "its build has taken more than 5 s" in acme.mount.reason
    assert ["tenant.reload_stuck"] == [record.getMessage() for record in caplog.records]


def test_edits_of_a_file_whose_builds_hang_take_two_threads(acme: AcmeRebuilds) -> None:
    """Builds of a tenant that hang occupy at most two threads, however often its file changes."""
    released, started = threading.Event(), []

    def hang(tenant: Tenant) -> Instance:
        started.append(tenant.app_name)
        assert released.wait(DEADLINE_S)
        return Instance(empty_app, lambda: acme.closed.append(tenant.app_name))

    acme.workers._build = hang
    for number in range(6):
        acme.start(acme.tenant(f"v{number}"))
        if number < 2:
            wait_until(lambda: len(started) > number)  # noqa: B023 - the lambda is called only in this round
    acme.now_s += STUCK_AFTER_S + 1
    acme.rebuilds.report_stuck()
    before, reason = list(started), acme.mount.reason

    released.set()

    def have_all_ended() -> bool:
        acme.finish()
        return bool(acme.built) and len(acme.closed) == 2

    wait_until(have_all_ended)
    assert (["v0", "v1"], "v5") == (before, started[-1])
    assert (3, ["v0", "v1"]) == (len(started), sorted(acme.closed))
    assert "its build waits for 2 builds of older content" in reason
