"""The lanes: real threads and a real loader; what is slow goes on until a test lets it end."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import tenant_text
from servers import DEADLINE_S, wait_until
from tenantry.reload import workers as lanes_module
from tenantry.reload.workers import ReloadWorkers
from tenantry.routing import worker_pool as crew_module
from tenantry.routing.instance import Instance
from tenantry.tenants.catalogue import RejectedTenant
from tenantry.tenants.file import FileContent, read_content
from tenantry.tenants.model import Tenant, parse_tenant

Start = Callable[[Callable[[Tenant], Instance]], ReloadWorkers]


def content_of(folder: Path, name: str, text: str) -> FileContent:
    """Write a tenant file and return its content."""
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return read_content(path)


def some_tenant(name: str = "acme") -> Tenant:
    """Return a tenant."""
    values = {"SECRET_KEY": "k" * 32, "BLUEPRINTS": ["landing"]}
    return parse_tenant(name, values, data_dir=Path("instance"))


def instance() -> Instance:
    """Return an instance that answers nothing."""
    return Instance(lambda *_: [], lambda: None)


@pytest.fixture(name="start")
def _start(data_dir: Path) -> Iterator[Start]:
    """Return a function that starts lanes with a build; closed after the test."""
    started: list[ReloadWorkers] = []

    def start(build: Callable[[Tenant], Instance]) -> ReloadWorkers:
        started.append(ReloadWorkers(data_dir, build, lambda: None))
        return started[-1]

    yield start
    for lanes in started:
        lanes.close()


def collect_until(lanes: ReloadWorkers, is_so: Callable[[], object]) -> None:
    """Collect results until it is so."""

    def collected() -> bool:
        for result in lanes.collect():
            result()
        return bool(is_so())

    wait_until(collected)


def test_a_file_that_hangs_delays_no_other(
    start: Start, tenants_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four files that hang leave their lanes after the first try; a good one is judged before."""
    monkeypatch.setattr(lanes_module, "RUN_TIMEOUT_S", 1.0)
    lanes, order = start(lambda _: instance()), []
    for number in range(4):
        hung = content_of(tenants_dir, f"hung{number}", "import signal\nsignal.pause()\n")
        lanes.judge(hung, lambda v: order.append(type(v)), lambda: True)

    good = content_of(tenants_dir, "acme", tenant_text())
    lanes.judge(good, lambda v: order.append(type(v)), lambda: True)

    collect_until(lanes, lambda: len(order) == 2)
    assert ([Tenant, RejectedTenant], 0) == (order, lanes.judging)


def test_what_is_wanted_no_more_is_not_built(start: Start) -> None:
    """It is asked in the lane, when the build would begin."""
    built: list[str] = []

    def build(tenant: Tenant) -> Instance:
        built.append(tenant.name)
        return instance()

    lanes = start(build)
    done: list[object] = []
    lanes.build(some_tenant("acme"), done.append, lambda: False)

    lanes.build(some_tenant("globex"), done.append, lambda: True)

    collect_until(lanes, lambda: len(done) == 2)
    assert (["globex"], True) == (built, None in done)


def test_builds_that_are_stuck_stop_no_other(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads take the place of those that hang."""
    monkeypatch.setattr(crew_module, "LATE_AFTER_S", 0.0)
    released, done = threading.Event(), []

    def build(tenant: Tenant) -> Instance:
        assert tenant.name == "globex" or released.wait(DEADLINE_S)
        return instance()

    lanes = start(build)
    for _ in range(3):
        lanes.build(some_tenant("acme"), lambda _: None, lambda: True)
    lanes.build(some_tenant("globex"), done.append, lambda: True)

    collect_until(lanes, lambda: (lanes.relieve(), done)[1])

    is_released = released.is_set()
    released.set()
    assert (1, False) == (len(done), is_released)


def test_close_does_not_wait_for_a_build_that_hangs(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it makes in the end is closed at once."""
    monkeypatch.setattr(lanes_module, "CLOSE_PATIENCE_S", 0.0)
    started, released, closed = threading.Event(), threading.Event(), threading.Event()

    def build(_: Tenant) -> Instance:
        started.set()
        assert released.wait(DEADLINE_S)
        return Instance(lambda *_: [], closed.set)

    lanes = start(build)
    lanes.build(some_tenant(), lambda _: None, lambda: True)
    assert started.wait(DEADLINE_S)

    lanes.close()

    was_closed = closed.is_set()
    released.set()
    assert (False, True) == (was_closed, closed.wait(DEADLINE_S))
