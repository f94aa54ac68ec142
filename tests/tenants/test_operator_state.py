"""Levers: small files beside a tenant's data."""

import resource
from pathlib import Path

import pytest

from tenantry.errors import TenantryError
from tenantry.tenants.operator_state import (
    UNTOUCHED,
    OperatorState,
    OperatorStateWatch,
    levers_file,
    levers_stamp,
    read_operator_state,
    write_levers,
)


@pytest.mark.parametrize(
    "levers",
    [UNTOUCHED, OperatorState(is_disabled=True), OperatorState(maintenance="Back at noon.")],
)
def test_what_was_written_is_read(data_dir: Path, levers: OperatorState) -> None:
    """Untouched levers leave no file."""
    write_levers(data_dir, "acme", OperatorState(maintenance=True))

    write_levers(data_dir, "acme", levers)

    expected = (levers, levers != UNTOUCHED)
    assert expected == (
        read_operator_state(data_dir, "acme"),
        levers_file(data_dir, "acme").exists(),
    )


def test_the_stamp_changes_with_the_levers(data_dir: Path) -> None:
    """Also between two messages of one length within a second."""
    stamps = [levers_stamp(data_dir, "acme")]
    for message in ("one", "two", "six"):
        write_levers(data_dir, "acme", OperatorState(maintenance=message))
        stamps.append(levers_stamp(data_dir, "acme"))

    assert (0, 4) == (stamps[0], len(set(stamps)))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"maintenance": 1, "is_disabled": false}'])
def test_a_file_that_is_none_of_ours_is_an_error(data_dir: Path, text: str) -> None:
    """It is named, with the remedy."""
    path = levers_file(data_dir, "acme")
    path.parent.mkdir(parents=True)
    path.write_text(text)

    with pytest.raises(TenantryError, match="remove it, and pull again"):
        read_operator_state(data_dir, "acme")


def test_a_data_folder_that_is_none_is_an_error(data_dir: Path) -> None:
    """Nothing else escapes, and nothing is left behind."""
    data_dir.write_text("a file")

    with pytest.raises(TenantryError, match="cannot write"):
        write_levers(data_dir, "acme", OperatorState(is_disabled=True))


NAMES = [f"t{number}" for number in range(9)] + ["acme"]
OFF = OperatorState(is_disabled=True)


def test_pulled_levers_are_told_at_once_however_few_are_looked_at(data_dir: Path) -> None:
    """Once each; `write_levers` rings."""
    watch = OperatorStateWatch(data_dir)
    told = [list(watch.look(NAMES, 0.1))]

    for name, levers in (("acme", OFF), ("t1", OFF), ("acme", UNTOUCHED)):
        write_levers(data_dir, name, levers)
        told += [list(watch.look(NAMES, 0.1)), list(watch.look(NAMES, 0.1))]

    expected = [[], [("acme", OFF)], [], [("t1", OFF)], [], [("acme", UNTOUCHED)], []]
    assert expected == told


def test_what_is_done_to_levers_by_hand_is_told_in_its_turn(data_dir: Path) -> None:
    """A file that was removed rings for nobody."""
    watch = OperatorStateWatch(data_dir)
    write_levers(data_dir, "acme", OFF)
    list(watch.look(NAMES))
    list(watch.look(NAMES, 0.1))
    levers_file(data_dir, "acme").unlink()

    told = [one for _ in range(10) for one in watch.look(NAMES, 0.1)]

    assert [("acme", UNTOUCHED)] == told


def test_levers_of_a_tenant_that_comes_again_are_told_again(data_dir: Path) -> None:
    """Also when it went while a round went on; nobody is told of who is gone."""
    watch = OperatorStateWatch(data_dir)
    write_levers(data_dir, "t1", OFF)
    told = [[one for _ in range(5) for one in watch.look(NAMES, 0.1)]]
    watch.forget("t1")
    left = [name for name in NAMES if name != "t1"]

    told.append([one for _ in range(9) for one in watch.look(left, 0.1)])
    told += [list(watch.appear("t1")), list(watch.look(NAMES)), list(watch.appear("t1"))]

    assert [[("t1", OFF)], [], [("t1", OFF)], [], [("t1", OFF)]] == told


def test_what_cannot_be_written_changes_nothing(data_dir: Path) -> None:
    """A disk that takes no byte more: one line says so; the old levers stay, and no half file."""
    old = OperatorState(maintenance="Back at noon.")
    write_levers(data_dir, "acme", old)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(TenantryError, match="nothing was changed") as raised:
            write_levers(data_dir, "acme", OperatorState(is_disabled=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert 1 == len(str(raised.value).splitlines())
    assert old == read_operator_state(data_dir, "acme")
    assert [levers_file(data_dir, "acme")] == list((data_dir / "acme").iterdir())
