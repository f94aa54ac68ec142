"""The host evicts apps that are not used, which frees their memory."""

from pathlib import Path

import pytest
from small_instances import empty_app, make_tenant, open_request

from tenantry.reload.draining import Draining
from tenantry.reload.eviction import GROWTH, Eviction
from tenantry.routing.instance import Instance
from tenantry.routing.mount import Mount


class Clock:
    """A clock that stands still until a test moves it."""

    now_s = 0.0

    def __call__(self) -> float:
        """Return the time that the test has set."""
        return self.now_s


def built_mount(eviction: Eviction, data_dir: Path, name: str, clock: Clock) -> Mount:
    """Return the mount of a tenant whose app has been built."""
    mount = Mount(name, None, lambda _: pytest.fail("built"), note_built=eviction.note_built)
    instance = Instance(empty_app, lambda: None, clock=clock)
    mount.swap(make_tenant(data_dir, name), instance)
    return mount


@pytest.mark.parametrize(
    ("max_active", "idle_timeout_s", "expected"),
    [(9, 99.0, "abc"), (2, 99.0, "bc"), (9, 1.5, "bc"), (0, 99.0, "")],
)
def test_the_least_recently_used_are_evicted(
    data_dir: Path, max_active: int, idle_timeout_s: float, expected: str
) -> None:
    """The host evicts the least recently used apps above the maximum, or after the idle timeout."""
    clock = Clock()
    eviction = Eviction(max_active, idle_timeout_s, Draining(30.0), clock)
    mounts = []
    for name in "abc":
        clock.now_s += 1
        mounts.append(built_mount(eviction, data_dir, name, clock))

    evicted = [eviction.check(), eviction.check()]

    assert expected == "".join(mount.name for mount in mounts if mount.instance is not None)
    assert [[name for name in "abc" if name not in expected], []] == evicted


def test_an_instance_with_a_request_is_not_evicted(data_dir: Path) -> None:
    """An app is not evicted while a request is in flight."""
    eviction = Eviction(0, 99.0, Draining(30.0))
    mount = built_mount(eviction, data_dir, "acme", Clock())
    assert mount.instance is not None
    body = open_request(mount.instance)
    evicted = [eviction.check()]
    body.close()

    evicted.append(eviction.check())

    assert [[], ["acme"]] == evicted


def test_growth_is_reported_once(data_dir: Path) -> None:
    """The host reports that it has grown once for every `GROWTH` additional apps."""
    clock = Clock()
    eviction, grown, mounts = Eviction(999, 99.0, Draining(30.0), clock), [], []
    for number in range(2 * GROWTH):
        mounts.append(built_mount(eviction, data_dir, f"t{number}", clock))
        eviction.check()
        if eviction.take_growth():
            grown.append(number + 1)

    assert [GROWTH, 2 * GROWTH] == grown
