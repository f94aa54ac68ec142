"""If a step of a command fails, the operator sees one line."""

import sqlite3

import pytest

from tenantry.errors import TenantryError
from tenantry.moves.steps import MoveStep, run_steps


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), sqlite3.OperationalError("disk I/O error")]
)
def test_a_step_that_fails_is_named_in_one_line(error: Exception) -> None:
    """If a rename fails because of a full disk or a damaged database, the error is one line."""

    def fail() -> None:
        raise error

    with pytest.raises(TenantryError, match=r"copying files failed: .*run the same command again"):
        run_steps([MoveStep("copying files", fail)], lambda *_: None)
