"""`maintenance`, `disable` and `enable` change one tenant's state, even if several run at once."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tenantry.cli.operator_state import change_tenant_state
from tenantry.errors import TenantryError
from tenantry.tenants.operator_state import (
    OperatorState,
    operator_state_lock_file,
    read_operator_state,
)


def _is_locked(path: Path) -> bool:
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def test_two_changes_at_once_are_both_kept(
    data_dir: Path, write_tenant: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If two commands change a tenant's state at the same time, both changes are kept."""
    write_tenant("acme")
    seen: list[bool] = []

    def read(folder: Path, name: str) -> OperatorState:
        seen.append(_is_locked(operator_state_lock_file(data_dir)))
        return read_operator_state(folder, name)

    monkeypatch.setattr("tenantry.tenants.operator_state.read_operator_state", read)
    change_tenant_state("acme", maintenance="Back at noon.")

    state = change_tenant_state("acme", is_disabled=True)

    assert OperatorState("Back at noon.", is_disabled=True) == state
    assert ([True, True], False) == (seen, _is_locked(operator_state_lock_file(data_dir)))


def test_an_unusable_data_folder_is_one_error(
    data_dir: Path, write_tenant: Callable[..., Path]
) -> None:
    """If the data folder is unusable, `maintenance` prints one error and changes nothing."""
    write_tenant("acme")
    data_dir.write_text("no folder")

    with pytest.raises(TenantryError, match="nothing was changed"):
        change_tenant_state("acme", is_disabled=True)
