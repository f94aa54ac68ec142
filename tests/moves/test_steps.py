"""If a step of a command fails, the operator sees one line."""

import sqlite3
from contextlib import suppress

import pytest

from commands import Tenantry
from tenantry.errors import TenantryError
from tenantry.moves import Move, MoveJournal
from tenantry.moves.steps import MoveStep, run_steps
from tenantry.settings import HostSettings


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), sqlite3.OperationalError("disk I/O error")]
)
def test_a_step_that_fails_is_named_in_one_line(error: Exception) -> None:
    """If a rename fails because of a full disk or a damaged database, the error is one line."""

    def fail() -> None:
        raise error

    with pytest.raises(TenantryError, match=r"copying files failed: .*run the same command again"):
        run_steps([MoveStep("copying files", fail)], lambda *_: None)


@pytest.mark.parametrize(
    ("words", "code"), [(("remove", "shop"), 0), (("rename", "shop", "store"), 2)]
)
def test_a_killed_move_of_a_tenant_without_a_file_ends(
    settings: HostSettings, tenantry: Tenantry, words: tuple[str, ...], code: int
) -> None:
    """If somebody has removed the tenant file, the second run of a move ends the move."""
    settings.tenants_dir.mkdir(exist_ok=True)
    with suppress(ZeroDivisionError), MoveJournal(settings.data_dir, Move(*words)) as journal:
        journal.keep()
        raise ZeroDivisionError
    pending = tenantry("list")

    ended = tenantry(*words)

    assert f"tenantry {' '.join(words)}\n" in pending.err
    assert (code, "") == (ended.code, tenantry("list").err), ended


def test_a_secret_without_a_tenant_can_be_set_aside(
    settings: HostSettings, tenantry: Tenantry
) -> None:
    """The remedy of `tenantry new` for a secret that no tenant file mentions works."""
    (settings.data_dir / "secrets").mkdir(parents=True)
    (settings.data_dir / "secrets/SHOP_SECRET_KEY").write_text("k" * 40)
    refused = tenantry("new", "shop")

    removed = tenantry("remove", "shop")

    assert (1, True) == (refused.code, "tenantry remove shop" in refused.err)
    assert (0, 0) == (removed.code, tenantry("new", "shop").code), removed
    [aside] = (settings.data_dir / ".removed").iterdir()
    assert ["SHOP_SECRET_KEY"] == [path.name for path in aside.iterdir()]
