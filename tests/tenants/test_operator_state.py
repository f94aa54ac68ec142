"""The operator state of a tenant says whether it is in maintenance, disabled or parked."""

import fcntl
import resource
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

from tenantry.errors import TenantryError
from tenantry.tenants.operator_state import (
    DEFAULT_OPERATOR_STATE,
    OperatorState,
    OperatorStateWatch,
    is_moving,
    move_mark,
    operator_state_file,
    operator_state_stamp,
    read_operator_state,
    write_operator_state,
)


@pytest.mark.parametrize(
    "state",
    [
        DEFAULT_OPERATOR_STATE,
        OperatorState(is_disabled=True),
        OperatorState(maintenance="Back at noon."),
    ],
)
def test_a_state_that_was_written_is_read(data_dir: Path, state: OperatorState) -> None:
    """A saved operator state can be read back, and the default state has no file."""
    write_operator_state(data_dir, "acme", OperatorState(maintenance=True))

    write_operator_state(data_dir, "acme", state)

    expected = (state, state != DEFAULT_OPERATOR_STATE)
    assert expected == (
        read_operator_state(data_dir, "acme"),
        operator_state_file(data_dir, "acme").exists(),
    )


def test_the_stamp_changes_with_the_operator_state(data_dir: Path) -> None:
    """Two operator state files of the same size, saved in one second, have different stamps."""
    stamps = [operator_state_stamp(data_dir, "acme")]
    for message in ("one", "two", "six"):
        write_operator_state(data_dir, "acme", OperatorState(maintenance=message))
        stamps.append(operator_state_stamp(data_dir, "acme"))

    assert (0, 4) == (stamps[0], len(set(stamps)))


@pytest.mark.parametrize(
    "text", ["", "[]", '{"unknown": 1}', '{"maintenance": 1, "is_disabled": false}']
)
def test_a_file_with_an_unexpected_content_is_an_error(data_dir: Path, text: str) -> None:
    """The error for an invalid operator state file names the file and says what to do."""
    path = operator_state_file(data_dir, "acme")
    path.parent.mkdir(parents=True)
    path.write_text(text)

    with pytest.raises(
        TenantryError, match=r"acme/operator_state.json: .*; remove the file, then repeat"
    ):
        read_operator_state(data_dir, "acme")


def test_a_data_folder_that_cannot_be_written_is_an_error(data_dir: Path) -> None:
    """If the data folder is a file, saving an operator state fails with a readable error."""
    data_dir.write_text("a file")

    with pytest.raises(TenantryError, match="cannot write"):
        write_operator_state(data_dir, "acme", OperatorState(is_disabled=True))


def test_the_file_of_earlier_versions_is_read(data_dir: Path) -> None:
    """An operator state that an earlier version saved in `levers.json` is still read."""
    state = OperatorState(maintenance="Back at noon.", is_disabled=True)
    write_operator_state(data_dir, "acme", state)
    former = operator_state_file(data_dir, "acme").rename(data_dir / "acme/levers.json")

    seen = (read_operator_state(data_dir, "acme"), operator_state_stamp(data_dir, "acme") != 0)
    write_operator_state(data_dir, "acme", DEFAULT_OPERATOR_STATE)

    assert (state, True) == seen
    assert DEFAULT_OPERATOR_STATE == read_operator_state(data_dir, "acme")
    assert not former.exists()


NAMES = [f"t{number}" for number in range(9)] + ["acme"]
OFF = OperatorState(is_disabled=True)


def test_a_change_is_reported_at_the_next_look(data_dir: Path) -> None:
    """A changed operator state is reported once, by the next scan."""
    watch = OperatorStateWatch(data_dir)
    reported = [list(watch.look(NAMES, 0.1))]

    for name, state in (("acme", OFF), ("t1", OFF), ("acme", DEFAULT_OPERATOR_STATE)):
        write_operator_state(data_dir, name, state)
        reported += [list(watch.look(NAMES, 0.1)), list(watch.look(NAMES, 0.1))]

    expected = [[], [("acme", OFF)], [], [("t1", OFF)], [], [("acme", DEFAULT_OPERATOR_STATE)], []]
    assert expected == reported


def test_a_change_by_hand_is_reported_by_round_robin(data_dir: Path) -> None:
    """If an operator deletes an operator state file by hand, a later scan reports the change."""
    watch = OperatorStateWatch(data_dir)
    write_operator_state(data_dir, "acme", OFF)
    list(watch.look(NAMES))
    list(watch.look(NAMES, 0.1))
    operator_state_file(data_dir, "acme").unlink()

    reported = [one for _ in range(10) for one in watch.look(NAMES, 0.1)]

    assert [("acme", DEFAULT_OPERATOR_STATE)] == reported


def test_the_state_of_a_tenant_that_returns_is_reported_again(data_dir: Path) -> None:
    """If a removed tenant returns, its operator state is reported again."""
    watch = OperatorStateWatch(data_dir)
    write_operator_state(data_dir, "t1", OFF)
    reported = [[one for _ in range(5) for one in watch.look(NAMES, 0.1)]]
    watch.forget("t1")
    left = [name for name in NAMES if name != "t1"]

    reported.append([one for _ in range(9) for one in watch.look(left, 0.1)])
    reported += [list(watch.appear("t1")), list(watch.look(NAMES)), list(watch.appear("t1"))]

    assert [[("t1", OFF)], [], [("t1", OFF)], [], [("t1", OFF)]] == reported


def test_a_state_that_cannot_be_written_changes_nothing(data_dir: Path) -> None:
    """On a full disk, saving an operator state fails with one line and keeps the old state."""
    old = OperatorState(maintenance="Back at noon.")
    write_operator_state(data_dir, "acme", old)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(TenantryError, match="nothing was changed") as raised:
            write_operator_state(data_dir, "acme", OperatorState(is_disabled=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert 1 == len(str(raised.value).splitlines())
    assert old == read_operator_state(data_dir, "acme")
    assert [operator_state_file(data_dir, "acme")] == list((data_dir / "acme").iterdir())


def test_a_tenant_is_held_while_its_journal_is_replaced(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has opened the journal before it is replaced looks again."""
    mark = move_mark(data_dir, "acme")
    mark.parent.mkdir(parents=True)
    mark.touch()
    lock = fcntl.flock

    with ExitStack() as files:

        def replace_then_lock(file: IO[bytes] | int, flags: int) -> None:
            monkeypatch.setattr(fcntl, "flock", lock)
            new = files.enter_context(mark.with_name(".acme.new").open("wb"))
            lock(new, fcntl.LOCK_EX)
            mark.with_name(".acme.new").replace(mark)
            lock(file, flags)

        monkeypatch.setattr(fcntl, "flock", replace_then_lock)
        is_held = is_moving(data_dir, "acme")

    assert (True, False) == (is_held, is_moving(data_dir, "acme"))
