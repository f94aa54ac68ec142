"""The steps of a move: what an operator sees if a step fails."""

import sqlite3

import pytest

from tenantry.errors import TenantryError
from tenantry.moves.steps import Step, run_steps


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), sqlite3.OperationalError("disk I/O error")]
)
def test_a_step_that_fails_is_named_in_one_line(error: Exception) -> None:
    """A full disk or a damaged database file causes no traceback."""

    def fail() -> None:
        raise error

    with pytest.raises(TenantryError, match=r"copying files failed: .*run the same command again"):
        run_steps([Step("copying files", fail)], lambda *_: None)
