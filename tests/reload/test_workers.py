"""A tenant file or a build that hangs in a worker thread does not delay other files or builds."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_instances import empty_app, make_tenant

from conftest import tenant_text
from servers import DEADLINE_S, wait_until
from tenantry.reload import workers as workers_module
from tenantry.reload.workers import ReloadWorkers
from tenantry.routing import worker_pool
from tenantry.routing.instance import Instance
from tenantry.settings import HostSettings
from tenantry.tenants.file import FileContent, read_content
from tenantry.tenants.model import Tenant
from tenantry.tenants.validation import RejectedTenant

Start = Callable[[Callable[[Tenant], Instance]], ReloadWorkers]


def content_of(folder: Path, name: str, text: str) -> FileContent:
    """Write a tenant file, and return its content."""
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return read_content(path)


def build_at_once(_: Tenant) -> Instance:
    """Return an app instance that answers nothing."""
    return Instance(empty_app, lambda: None)


@pytest.fixture(name="start")
def _start(data_dir: Path) -> Iterator[Start]:
    """Return a function that starts worker threads that use the given build function.

    The fixture closes the workers after the test.
    """
    started: list[ReloadWorkers] = []

    def start(build: Callable[[Tenant], Instance]) -> ReloadWorkers:
        started.append(ReloadWorkers(HostSettings(data_dir=data_dir), build, lambda: None))
        return started[-1]

    yield start
    for workers in started:
        workers.close()


def collect_until(workers: ReloadWorkers, is_true: Callable[[], object]) -> None:
    """Handle results until a condition is true."""

    def collect() -> bool:
        for handle_result in workers.collect():
            handle_result()
        return bool(is_true())

    wait_until(collect)


def test_files_that_hang_delay_no_other(
    start: Start, tenants_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If four tenant files hang, a good file is validated after the first timeout."""
    monkeypatch.setattr(workers_module, "RUN_TIMEOUT_S", 1.0)
    workers, order = start(build_at_once), []
    for number in range(4):
        hung = content_of(tenants_dir, f"hung{number}", "import signal\nsignal.pause()\n")
        workers.validate(hung, lambda result: order.append(type(result)), lambda: True)

    good = content_of(tenants_dir, "acme", tenant_text())
    workers.validate(good, lambda result: order.append(type(result)), lambda: True)

    collect_until(workers, lambda: len(order) == 2)
    assert ([Tenant, RejectedTenant], 0) == (order, workers.validating)


def test_an_unwanted_build_does_not_start(start: Start, data_dir: Path) -> None:
    """A build that is no longer needed does not start."""
    built: list[str] = []

    def build(tenant: Tenant) -> Instance:
        built.append(tenant.name)
        return build_at_once(tenant)

    workers, results = start(build), list[object]()
    workers.build(make_tenant(data_dir, "acme"), results.append, lambda: False)

    workers.build(make_tenant(data_dir, "globex"), results.append, lambda: True)

    collect_until(workers, lambda: len(results) == 2)
    assert (["globex"], True) == (built, None in results)


def test_builds_that_hang_delay_no_other(
    start: Start, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builds that hang do not prevent other builds, which run in additional threads."""
    monkeypatch.setattr(worker_pool, "LATE_AFTER_S", 0.0)
    released, results = threading.Event(), []

    def build(tenant: Tenant) -> Instance:
        assert tenant.name == "globex" or released.wait(DEADLINE_S)
        return build_at_once(tenant)

    workers = start(build)
    for _ in range(3):
        workers.build(make_tenant(data_dir, "acme"), lambda _: None, lambda: True)
    workers.build(make_tenant(data_dir, "globex"), results.append, lambda: True)

    collect_until(workers, lambda: (workers.start_builds(), results)[1])

    is_released = released.is_set()
    released.set()
    assert (1, False) == (len(results), is_released)


def test_close_does_not_wait_for_a_build_that_hangs(
    start: Start, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing the worker threads does not wait for a build that hangs."""
    monkeypatch.setattr(workers_module, "CLOSE_TIMEOUT_S", 0.0)
    started, released, closed = threading.Event(), threading.Event(), threading.Event()

    def build(_: Tenant) -> Instance:
        started.set()
        assert released.wait(DEADLINE_S)
        return Instance(empty_app, closed.set)

    workers = start(build)
    workers.build(make_tenant(data_dir), lambda _: None, lambda: True)
    assert started.wait(DEADLINE_S)

    workers.close()

    was_closed = closed.is_set()
    released.set()
    assert (False, True) == (was_closed, closed.wait(DEADLINE_S))
