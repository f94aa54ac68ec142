"""A memory budget limits the memory that all tenants of a process use together."""

import threading
from pathlib import Path

from flask import Flask

from conftest import KEY
from servers import DEADLINE_S, wait_until
from tenantry.files.memory_budget import DECODING_MEMORY, MemoryBudget
from tenantry.host import Host
from tenantry.tenants.validation import parse_tenant


def _is_free(budget: MemoryBudget, size_bytes: int) -> bool:
    try:
        with budget.reserve(size_bytes):
            return True
    except TimeoutError:
        return False


def test_reservations_share_the_limit() -> None:
    """A reservation of memory succeeds within the budget; otherwise, it fails after a wait."""
    budget = MemoryBudget(10, wait_s=0)

    with budget.reserve(6):
        beside = _is_free(budget, 4), _is_free(budget, 5)

    assert ((True, False), True) == (beside, _is_free(budget, 10))


def test_a_reservation_above_the_limit_takes_all_of_it() -> None:
    """A memory reservation above the limit has to wait until it is the only one."""
    budget = MemoryBudget(10, wait_s=0)

    with budget.reserve(99):
        beside = _is_free(budget, 1)
    with budget.reserve(1):
        alone = _is_free(budget, 99)

    assert (False, False) == (beside, alone)


def test_a_reservation_waits_for_others_to_end() -> None:
    """A waiting memory reservation continues as soon as enough bytes are free."""
    budget = MemoryBudget(10, wait_s=DEADLINE_S)
    reserved = threading.Event()

    def reserve() -> None:
        with budget.reserve(5):
            reserved.set()

    thread = threading.Thread(target=reserve)
    with budget.reserve(6):
        thread.start()
        wait_until(lambda: bool(budget._changed._waiters))  # type: ignore[attr-defined]
        was_reserved = reserved.is_set()
    thread.join()

    assert (False, True) == (was_reserved, reserved.is_set())


def test_all_apps_of_a_host_share_one_budget(host: Host, data_dir: Path) -> None:
    """All apps of a host share one memory budget for decoding images."""
    instances = []
    for name in ("acme", "globex"):
        keys = {"SECRET_KEY": f"{name}-{KEY}", "BLUEPRINTS": ["landing"]}
        instances.append(host.build(parse_tenant(name, keys, data_dir=data_dir)))

    apps = [instance.app() for instance in instances if instance.app is not None]
    budgets = {app.extensions[DECODING_MEMORY] for app in apps if isinstance(app, Flask)}
    for instance in instances:
        instance.retire()

    assert (2, {host.resources.decoding_memory}) == (len(apps), budgets)
