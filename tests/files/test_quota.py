"""A folder's quota counts the files that all threads and processes write."""

from contextlib import suppress
from pathlib import Path, PurePosixPath

import pytest

from tenantry.capsules.tenant_folder import is_left_out
from tenantry.files.quota import (
    FULL_MEASUREMENT_AGE_S,
    LEDGER,
    MEASUREMENT_AGE_S,
    RESERVATION,
    FolderQuota,
    QuotaExceededError,
)

LEDGER_BYTES = 16


class Clock:
    """A clock that a test sets."""

    now = 1e9

    def __call__(self) -> float:
        """Return the time that the test has set."""
        return self.now


@pytest.fixture(name="clock")
def _clock() -> Clock:
    return Clock()


def _fits(folder: Path, limit_bytes: int | None, size_bytes: int, clock: Clock) -> bool:
    """Return whether the quota allows a number of additional bytes."""
    with (
        suppress(QuotaExceededError),
        FolderQuota(folder, limit_bytes, clock=clock).reserve(size_bytes),
    ):
        return True
    return False


def test_a_folder_is_filled_up_to_its_quota(tmp_path: Path, clock: Clock) -> None:
    """A folder's quota counts existing files, files in subfolders, and added bytes."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below/file").write_bytes(bytes(50))

    assert [True, False, True, False] == [
        _fits(tmp_path, 100, size, clock) for size in (40, 11, 10, 1)
    ]


def test_a_failed_addition_does_not_count(tmp_path: Path, clock: Clock) -> None:
    """If adding a file fails, its bytes do not count against the quota."""
    with suppress(ZeroDivisionError), FolderQuota(tmp_path, 100, clock=clock).reserve(90):
        raise ZeroDivisionError

    assert _fits(tmp_path, 100, 90, clock)


@pytest.mark.parametrize("is_added", [True, False])
def test_a_measurement_counts_files_in_progress(
    tmp_path: Path, clock: Clock, is_added: bool
) -> None:
    """An upload that ends while the quota measures its folder is counted exactly once."""
    with suppress(ZeroDivisionError), FolderQuota(tmp_path, 116, clock=clock).reserve(60):
        clock.now += MEASUREMENT_AGE_S
        fit_meanwhile = [_fits(tmp_path, 116, size, clock) for size in (41, 40)]
        if not is_added:
            raise ZeroDivisionError
        (tmp_path / "file").write_bytes(bytes(60))
    fit_afterwards = [_fits(tmp_path, 116, size, clock) for size in (61, 60, 1)]

    assert [False, True] == fit_meanwhile
    assert [False, not is_added, False] == fit_afterwards
    assert [] == list(tmp_path.glob(f"{RESERVATION}*"))


def test_a_reservation_of_a_killed_process_is_removed(tmp_path: Path, clock: Clock) -> None:
    """The quota deletes a file that reserved space for a killed process."""
    left = tmp_path / f"{RESERVATION}left"
    left.write_bytes(bytes(90))

    assert (True, False) == (_fits(tmp_path, 116, 90, clock), left.exists())


def test_capsules_leave_the_bookkeeping_out() -> None:
    """A backup omits the files in which a quota keeps its counts."""
    kept = [name for name in (LEDGER, f"{RESERVATION}x", "images") if not _is_left_out(name)]

    assert ["images"] == kept


def _is_left_out(name: str) -> bool:
    return is_left_out(PurePosixPath(name))


def test_without_a_quota_nothing_is_counted(tmp_path: Path, clock: Clock) -> None:
    """Without a quota, a reservation of space creates no file."""
    assert _fits(tmp_path, None, 10**18, clock)
    assert [] == list(tmp_path.iterdir())


def test_other_growth_counts_from_the_next_measurement(tmp_path: Path, clock: Clock) -> None:
    """A database that grows counts toward the quota within a minute."""
    assert _fits(tmp_path, 100, 0, clock)
    (tmp_path / "database").write_bytes(bytes(90))

    clock.now += MEASUREMENT_AGE_S - 1
    before = _fits(tmp_path, 100, 20, clock)
    clock.now += 1
    after = _fits(tmp_path, 100, 20, clock)

    assert (True, False) == (before, after)


@pytest.mark.parametrize("step_s", [FULL_MEASUREMENT_AGE_S, -3600.0])
def test_deleted_files_make_room_soon(tmp_path: Path, clock: Clock, step_s: float) -> None:
    """Soon after files are deleted from a full folder, uploads succeed again.

    A clock that was set back makes no difference.
    """
    file = tmp_path / "file"
    file.write_bytes(bytes(90))
    assert not _fits(tmp_path, 100, 20, clock)
    file.unlink()

    at_once = _fits(tmp_path, 100, 20, clock)
    clock.now += step_s
    soon = _fits(tmp_path, 100, 20, clock)

    assert (False, True) == (at_once, soon)


@pytest.mark.parametrize("content", [b"", b"cut", b"\xff" * LEDGER_BYTES])
def test_a_damaged_ledger_is_replaced(tmp_path: Path, clock: Clock, content: bytes) -> None:
    """If a crash damages the file with the quota's counts, the next count is still correct."""
    (tmp_path / "file").write_bytes(bytes(80))
    (tmp_path / LEDGER).write_bytes(content)

    assert [False, True] == [_fits(tmp_path, 116, size, clock) for size in (37, 20)]


def test_the_error_names_the_limit(tmp_path: Path, clock: Clock) -> None:
    """The error for an upload above the quota says how many bytes are allowed."""
    with (
        pytest.raises(QuotaExceededError, match="all files together may have 1,000 bytes"),
        FolderQuota(tmp_path, 1_000, clock=clock).reserve(1_001),
    ):
        pass
