"""If a `rename`, `remove` or `restore --replace` is killed, the tenant stays complete."""

from pathlib import Path

import pytest
from moved_shop import (
    is_capsule_whole,
    is_whole,
    left_in,
    rows_of,
    run_command,
    was_killed,
    write_database,
    write_shop_data,
)

from tenantry.settings import HostSettings
from tenantry.tenants.catalogue import load_tenant
from tenantry.tenants.operator_state import (
    OperatorState,
    is_moving,
    read_operator_state,
    write_operator_state,
)

pytestmark = pytest.mark.live


@pytest.fixture(name="shop")
def _shop(settings: HostSettings) -> str:
    """Create the tenant shop with data, and return its secret key."""
    code, out = run_command(settings, "new", "shop")
    assert 0 == code, out
    write_shop_data(settings)
    write_operator_state(settings.data_dir, "shop", OperatorState(maintenance="Back at noon."))
    return load_tenant(settings, "shop")[0].secret_key.get_secret_value()


@pytest.mark.parametrize("step", range(12))
def test_a_killed_rename(settings: HostSettings, shop: str, step: int) -> None:
    """If `rename` is killed, the tenant is complete under one name; a second run finishes."""
    code, out = run_command(settings, "rename", "shop", "store", kill_at=step)
    whole = [name for name in ("shop", "store") if is_whole(settings, name)]
    held = [name for name in ("shop", "store") if is_moving(settings.data_dir, name)]
    again, text = run_command(settings, "rename", "shop", "store")

    assert was_killed(code) == (step < 12), out
    assert ([], 1) == (held, len(whole))
    if step == 11:  # the killed run had finished, except for its journal
        assert is_whole(settings, "store")
    assert (0, True) == (again, is_whole(settings, "store")), text
    tenant, _ = load_tenant(settings, "store")
    assert shop == tenant.secret_key.get_secret_value()
    assert ["secrets", "store"] == left_in(settings.data_dir)
    assert ["STORE_SECRET_KEY"] == left_in(settings.data_dir / "secrets")
    assert [] == left_in(settings.data_dir / ".moving")
    state = read_operator_state(settings.data_dir, "store")
    assert OperatorState(maintenance="Back at noon.") == state


@pytest.mark.parametrize("step", range(8))
def test_a_killed_remove(settings: HostSettings, shop: str, tmp_path: Path, step: int) -> None:
    """If `remove` is killed, the tenant or its backup file is complete; a second run finishes."""
    assert shop
    code, out = run_command(settings, "remove", "shop", "--archive", "a", kill_at=step)
    is_kept = is_whole(settings, "shop") or is_capsule_whole(tmp_path / "a")
    again, text = run_command(settings, "remove", "shop", "--archive", "a")

    assert (True, True) == (was_killed(code), is_kept), out
    assert (0, True) == (again, is_capsule_whole(tmp_path / "a")), text
    assert ["secrets"] == left_in(settings.data_dir)
    assert [[], [], []] == [
        left_in(folder)
        for folder in (settings.tenants_dir, settings.data_dir / "secrets",
                       settings.data_dir / ".moving")
    ]  # fmt: skip


KILLS = (
    *range(6),
    "capsules.staging:RestoreStaging.move_into_place",
    "moves.replace:Replacement.write_file",
    "moves.replace:Replacement.wait_for_workers",
)
"""Where a replacement is killed: before a step, or after a method."""


@pytest.mark.parametrize("step", KILLS)
def test_a_killed_replacement(settings: HostSettings, shop: str, step: int | str) -> None:
    """If `restore --replace` is killed, the former tenant is complete; a second run finishes.

    `list` and `check` name the second run. A backup of incomplete data fails.
    """
    assert 0 == run_command(settings, "backup", "shop", "a")[0]
    (settings.data_dir / "shop/cache.db").unlink()
    write_database(settings.data_dir / "shop/cache.db", 8)

    code, out = run_command(
        settings, "restore", "a", "--replace", "--prefix", "/shop", kill_at=step
    )
    [*aside] = (settings.data_dir / ".removed").glob("shop-*/data")
    former = aside[0] if aside else settings.data_dir / "shop"
    kept = rows_of(former / "cache.db")
    is_held = is_moving(settings.data_dir, "shop")
    reports = [run_command(settings, command) for command in ("list", "check")]
    saved, _ = run_command(settings, "backup", "shop", "b")
    again, text = run_command(settings, "restore", "a", "--replace")

    is_partial = isinstance(step, str) or step > 3
    assert (True, [(8,)], is_partial) == (was_killed(code), kept, is_held), out
    remedy = f"tenantry restore {settings.data_dir.parent}/a --as shop --replace --prefix /shop"
    assert int(is_partial) == saved
    assert [(0, True), (int(is_partial), True)] == [
        (code, remedy in report) for code, report in reports
    ], reports
    assert (0, True, False) == (
        again, is_whole(settings, "shop"), is_moving(settings.data_dir, "shop")
    ), text  # fmt: skip
    [aside_again] = (settings.data_dir / ".removed").iterdir()
    assert [(8,)] == rows_of(aside_again / "data/cache.db")
    assert ["data", "secrets", "shop.py"] == left_in(aside_again)
    assert shop == load_tenant(settings, "shop")[0].secret_key.get_secret_value()
    state = read_operator_state(settings.data_dir, "shop")
    assert OperatorState(maintenance="Back at noon.") == state
