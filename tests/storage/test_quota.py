"""How much a folder may hold, counted by all who add to it."""

from contextlib import suppress
from pathlib import Path, PurePosixPath

import pytest

from tenantry.capsules.tenant_folder import is_left_out
from tenantry.storage.quota import (
    LEDGER,
    MEASURED_FOR_S,
    REFUSED_FOR_S,
    RESERVATION,
    FolderQuota,
    QuotaExceededError,
)

LEDGER_BYTES = 16


class Clock:
    """A clock that stands still until it is moved."""

    now = 1e9

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture(name="clock")
def _clock() -> Clock:
    return Clock()


def _fits(folder: Path, limit_bytes: int | None, size_bytes: int, clock: Clock) -> bool:
    """Whether a process of its own may add bytes."""
    with (
        suppress(QuotaExceededError),
        FolderQuota(folder, limit_bytes, clock=clock).adding(size_bytes),
    ):
        return True
    return False


def test_a_folder_holds_what_it_may_and_no_more(tmp_path: Path, clock: Clock) -> None:
    """What is there counts, subfolders too, and what is added; the last byte that fits fits."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below/file").write_bytes(bytes(50))

    assert [True, False, True, False] == [
        _fits(tmp_path, 100, size, clock) for size in (40, 11, 10, 1)
    ]


def test_a_failed_addition_does_not_count(tmp_path: Path, clock: Clock) -> None:
    """Bytes that did not come are given back."""
    with suppress(ZeroDivisionError), FolderQuota(tmp_path, 100, clock=clock).adding(90):
        raise ZeroDivisionError

    assert _fits(tmp_path, 100, 90, clock)


@pytest.mark.parametrize("is_added", [True, False])
def test_what_is_coming_in_counts_in_a_measurement(
    tmp_path: Path, clock: Clock, is_added: bool
) -> None:
    """An upload that is under way while the folder is measured is neither forgotten nor kept."""
    with suppress(ZeroDivisionError), FolderQuota(tmp_path, 116, clock=clock).adding(60):
        clock.now += MEASURED_FOR_S
        fit_meanwhile = [_fits(tmp_path, 116, size, clock) for size in (41, 40)]
        if not is_added:
            raise ZeroDivisionError
        (tmp_path / "file").write_bytes(bytes(60))
    fit_afterwards = [_fits(tmp_path, 116, size, clock) for size in (61, 60, 1)]

    assert [False, True] == fit_meanwhile
    assert [False, not is_added, False] == fit_afterwards
    assert [] == list(tmp_path.glob(f"{RESERVATION}*"))


def test_what_a_killed_process_began_to_add_is_forgotten(tmp_path: Path, clock: Clock) -> None:
    """The file that stands for it stays behind, unlocked: the next measurement removes it."""
    left = tmp_path / f"{RESERVATION}left"
    left.write_bytes(bytes(90))

    assert (True, False) == (_fits(tmp_path, 116, 90, clock), left.exists())


def test_no_capsule_has_what_stands_for_the_count() -> None:
    """The ledger and the reservations are of this folder, at this moment."""
    kept = [name for name in (LEDGER, f"{RESERVATION}x", "images") if not _is_left_out(name)]

    assert ["images"] == kept


def _is_left_out(name: str) -> bool:
    return is_left_out(PurePosixPath(name))


def test_without_a_quota_nothing_is_counted(tmp_path: Path, clock: Clock) -> None:
    """No limit, no ledger."""
    assert _fits(tmp_path, None, 10**18, clock)
    assert [] == list(tmp_path.iterdir())


def test_other_growth_shows_with_the_next_measurement(tmp_path: Path, clock: Clock) -> None:
    """What a database adds unannounced is seen within a minute."""
    assert _fits(tmp_path, 100, 0, clock)
    (tmp_path / "database").write_bytes(bytes(90))

    clock.now += MEASURED_FOR_S - 1
    before = _fits(tmp_path, 100, 20, clock)
    clock.now += 1
    after = _fits(tmp_path, 100, 20, clock)

    assert (True, False) == (before, after)


@pytest.mark.parametrize("step_s", [REFUSED_FOR_S, -3600.0])
def test_room_that_was_made_is_soon_seen(tmp_path: Path, clock: Clock, step_s: float) -> None:
    """A full folder is measured again after seconds, also when the clock was set back."""
    file = tmp_path / "file"
    file.write_bytes(bytes(90))
    assert not _fits(tmp_path, 100, 20, clock)
    file.unlink()

    at_once = _fits(tmp_path, 100, 20, clock)
    clock.now += step_s
    soon = _fits(tmp_path, 100, 20, clock)

    assert (False, True) == (at_once, soon)


@pytest.mark.parametrize("content", [b"", b"cut", b"\xff" * LEDGER_BYTES])
def test_a_damaged_ledger_is_measured_anew(tmp_path: Path, clock: Clock, content: bytes) -> None:
    """A crash can cost the ledger, but not the count."""
    (tmp_path / "file").write_bytes(bytes(80))
    (tmp_path / LEDGER).write_bytes(content)

    assert [False, True] == [_fits(tmp_path, 116, size, clock) for size in (37, 20)]


def test_the_refusal_names_the_limit(tmp_path: Path, clock: Clock) -> None:
    """Whoever is refused learns how much there may be."""
    with (
        pytest.raises(QuotaExceededError, match="all files together may have 1,000 bytes"),
        FolderQuota(tmp_path, 1_000, clock=clock).adding(1_001),
    ):
        pass
