"""Who is let go: small apps, a clock moved by hand."""

from pathlib import Path

import pytest

from conftest import KEY
from tenantry.reload.draining import Draining
from tenantry.reload.eviction import Eviction
from tenantry.routing.instance import Instance
from tenantry.routing.mount import Mount
from tenantry.tenants.model import parse_tenant


@pytest.mark.parametrize(
    ("max_active", "idle_timeout_s", "expected"),
    [(9, 99.0, "abc"), (2, 99.0, "bc"), (9, 1.5, "bc"), (0, 99.0, "")],
)
def test_the_least_recently_used_are_let_go_first(
    data_dir: Path, max_active: int, idle_timeout_s: float, expected: str
) -> None:
    """Those over the number, and those that were idle too long; a second look changes nothing."""
    now = [0.0]
    sleep = Eviction(max_active, idle_timeout_s, Draining(30.0), lambda: now[0])
    mounts = []
    for name in "abc":
        now[0] += 1
        values = {"SECRET_KEY": KEY, "BLUEPRINTS": ["landing"]}
        instance = Instance(lambda *_: [], lambda: None, clock=lambda: now[0])
        mount = Mount(name, None, lambda _: pytest.fail("woken"), note_built=sleep.note_awake)
        mount.swap(parse_tenant(name, values, data_dir=data_dir), instance)
        mounts.append(mount)

    for _ in "ab":
        sleep.check()

    assert expected == "".join(one.name for one in mounts if one.instance is not None)


def test_who_serves_a_request_is_not_let_go(data_dir: Path) -> None:
    """The next check finds it free."""
    sleep = Eviction(0, 99.0, Draining(30.0))
    tenant = parse_tenant("acme", {"SECRET_KEY": KEY, "BLUEPRINTS": ["landing"]}, data_dir=data_dir)
    instance = Instance(lambda *_: [], lambda: None)
    mount = Mount("acme", None, lambda _: pytest.fail("woken"), note_built=sleep.note_awake)
    mount.swap(tenant, instance)
    body = instance.answer({}, lambda *_: lambda _: None)
    found = []

    for act in (lambda: None, body.close):
        act()
        sleep.check()
        found.append(mount.instance is None)

    assert [False, True] == found
