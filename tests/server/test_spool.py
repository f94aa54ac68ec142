"""Bodies outside of threads: in memory, then in files, within a budget that tenants share."""

import errno
from pathlib import Path
from typing import Any

import pytest

from tenantry.server import spool as module
from tenantry.server.spool import ITEM_MEMORY_BYTES, Spool, SpoolBudget, spool_folder


def _used(budget: SpoolBudget) -> tuple[dict[str, int], dict[str, int]]:
    return budget.memory._used, budget.disk._used


def test_a_small_body_stays_in_memory() -> None:
    """Bytes are added at the end, and read from any position."""
    budget = SpoolBudget()
    spool = Spool(budget, "acme")
    written = [spool.write(part) for part in (b"one", memoryview(b"two"), b"")]
    seen = spool.read_at(2, 3), spool.read_at(6, 10)
    spool.write(b"!")

    assert ([True] * 3, (b"et", b"")) == (written, (seen[0][:2], seen[1]))
    assert (b"onetwo!", 7) == (spool.as_input().read(), spool.size_bytes)
    assert ({"acme": 7}, {}) == _used(budget)
    spool.close()


def test_a_large_body_moves_to_a_file(tmp_path: Path) -> None:
    """Above `ITEM_MEMORY_BYTES`, a body is in a file without a name, and its memory is free."""
    budget, data = SpoolBudget(spool_folder(tmp_path)), bytes(range(256)) * 4096
    spool = Spool(budget, "acme")
    for start in range(0, len(data), 100_000):
        assert spool.write(data[start : start + 100_000])

    assert (data[700_000:700_010], data) == (
        spool.read_at(700_000, 10), spool.as_input().read(),
    )  # fmt: skip
    assert (({}, {"acme": len(data)}), []) == (
        _used(budget),
        list(spool_folder(tmp_path).iterdir()),
    )
    for _ in range(2):
        spool.close()
    assert ({}, {}) == _used(budget)


@pytest.mark.parametrize("size", [ITEM_MEMORY_BYTES, ITEM_MEMORY_BYTES + 1])
def test_the_size_of_one_body_decides(size: int) -> None:
    """A body of exactly `ITEM_MEMORY_BYTES` stays in memory."""
    budget = SpoolBudget()
    spool = Spool(budget, "acme")
    spool.write(bytes(size))

    assert (size > ITEM_MEMORY_BYTES) == bool(budget.disk._used)
    spool.close()


def test_a_body_without_room_in_memory_goes_to_a_file() -> None:
    """If other bodies fill the memory, the next body uses a file from the start."""
    budget = SpoolBudget(memory_bytes=10)
    spool = Spool(budget, "acme")
    spool.write(b"1234")
    spool.write(b"5678")

    assert (b"12345678", ({}, {"acme": 8})) == (spool.read_at(0, 10), _used(budget))
    spool.close()


def test_a_body_without_any_room_adds_nothing(tmp_path: Path) -> None:
    """Without free budget, `write` returns False, keeps the stored bytes, and opens no file."""
    budget = SpoolBudget(tmp_path / "spool", memory_bytes=10, disk_bytes=10)
    spool = Spool(budget, "acme")
    written = [spool.write(b"1234"), spool.write(b"5678"), spool.write(b"5")]

    assert ([True, False, True], b"12345") == (written, spool.read_at(0, 10))
    assert (({"acme": 5}, {}), False) == (_used(budget), (tmp_path / "spool").exists())
    spool.close()


def test_a_tenant_leaves_room_for_another_one() -> None:
    """A tenant gets a part of the free budget, so the budget also suffices for another tenant."""
    budget = SpoolBudget(memory_bytes=100)

    taken = [
        budget.memory.take(tenant, 10) for tenant in ["acme"] * 6 + ["globex"] * 3 + ["initech"]
    ]

    assert [True] * 5 + [False] + [True, True, False] + [True] == taken
    assert {"acme": 50, "globex": 20, "initech": 10} == budget.memory._used


def test_a_full_disk_costs_no_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If the disk is full, the reserved budget becomes free, and the body keeps its bytes."""

    def fail(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    budget = SpoolBudget(tmp_path, memory_bytes=10)
    spool = Spool(budget, "acme")
    spool.write(b"1234")
    with monkeypatch.context() as patched:
        patched.setattr(module, "TemporaryFile", fail)
        assert not spool.write(b"5678")
    during = _used(budget)[0].copy(), _used(budget)[1].copy()

    assert (({"acme": 4}, {}), b"1234") == (during, spool.read_at(0, 10))
    assert spool.write(b"5678")
    spool.close()
    assert ({}, {}) == _used(budget)
