"""The journal: what a run has done, and what it has left."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any, cast

import pytest

from tenantry.migrations.journal import Journal, JournalError, journal_file

HEADS = {"shop": ["2"]}

ONE = {"acme": "sqlite one", "globex": "sqlite two"}
"""Which databases the tenants have."""


def states(journal: Journal, run: int) -> dict[str, str]:
    """Return each tenant's state in a run."""
    return {step.tenant: step.state for step in journal.steps(run)}


def test_a_run_that_left_something_goes_on(tmp_path: Path) -> None:
    """Opened again by another process, it has its number, and what it did stays done."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"], "globex": ["2"], "initech": ["2"]}, ONE)
        journal.note_running(run, "acme", ["1"], ["2"], ONE["acme"])
        journal.note_done(run, "acme")
        journal.note_running(run, "globex", ["1"], ["2"], ONE["globex"])
        journal.note_failed(run, "globex", "no")
    with Journal(tmp_path) as journal:
        again = journal.open_run(HEADS, {"globex": ["2"], "initech": ["2"]}, ONE)

        assert run == again
        assert {"acme": "done", "globex": "pending", "initech": "pending"} == states(journal, run)


@pytest.mark.parametrize("why", ["nothing left", "other heads", "taken back"])
def test_another_run_begins(tmp_path: Path, why: str) -> None:
    """A run is over when it left nothing, the code has gone on, or it is being taken back."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"], "globex": ["2"]}, ONE)
        journal.note_running(run, "acme", ["1"], ["2"], ONE["acme"])
        journal.note_done(run, "acme")
        if why == "nothing left":
            journal.note_running(run, "globex", ["1"], ["2"], ONE["globex"])
            journal.note_done(run, "globex")
        if why == "taken back":
            journal.note_taken_back(run, "acme")

        heads = {"shop": ["3"]} if why == "other heads" else HEADS

        assert run + 1 == journal.open_run(heads, {"globex": ["3"]}, ONE)


def test_what_a_run_did_to_another_database_is_not_written_over(tmp_path: Path) -> None:
    """A tenant that has another one by now begins a new run; at head tells nothing of the old."""
    other = {"acme": "sqlite three"}
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"], "globex": ["2"]}, ONE)
        journal.note_running(run, "acme", ["1"], ["2"], ONE["acme"])
        journal.note_at_head(other)
        again = journal.open_run(HEADS, {"acme": ["2"]}, other)
        journal.note_running(again, "acme", [], ["2"], other["acme"])

        begun = [journal.steps(number)[0] for number in (run, again)]

    assert [("running", "sqlite one"), ("running", "sqlite three")] == [
        (step.state, step.database) for step in begun
    ]


def test_a_journal_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """It did not say which databases were changed."""
    with Journal(tmp_path) as journal:
        journal.open_run(HEADS, {"acme": ["2"]}, ONE)
    with contextlib.closing(sqlite3.connect(journal_file(tmp_path))) as connection:
        connection.execute("ALTER TABLE step DROP COLUMN database")

    with Journal(tmp_path) as journal:
        assert [("acme", None)] == [(step.tenant, step.database) for step in journal.steps(1)]


def test_what_was_before_a_killed_run_stays_known(tmp_path: Path) -> None:
    """A step that runs twice in one run is taken back to where it first began."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"]}, ONE)
        journal.note_running(run, "acme", [], ["2"], ONE["acme"])
        journal.open_run(HEADS, {"acme": ["2"]}, ONE)
        journal.note_running(run, "acme", ["1"], ["2"], ONE["acme"])

        assert [frozenset()] == [step.before for step in journal.steps(run)]


def test_what_a_run_is_done_with_is_not_forgotten(tmp_path: Path) -> None:
    """Presumed behind by a second run, it stays done; undone by others, it begins anew."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"], "globex": ["2"]}, ONE)
        journal.note_running(run, "acme", [], ["2"], ONE["acme"])
        journal.note_done(run, "acme")
        journal.open_run(HEADS, {"acme": ["2"], "globex": ["2"]}, ONE)
        journal.note_at_head({"acme": ONE["acme"]})
        presumed = journal.steps(run)[0]
        journal.note_running(run, "acme", ["1"], ["2"], ONE["acme"])
        begun = journal.steps(run)[0]

    assert ("done", frozenset()) == (presumed.state, presumed.before)
    assert ("running", {"1"}) == (begun.state, begun.before)


def test_a_database_at_head_was_brought_there_by_the_run_that_began_with_it(tmp_path: Path) -> None:
    """Killed before it could write so, a run did it; what it had not begun, it did not."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"], "globex": ["2"]}, ONE)
        journal.note_running(run, "acme", ["1"], ["2"], ONE["acme"])
        journal.note_at_head(ONE)

        assert ({"acme": "done"}, (run, run)) == (states(journal, run), journal.last_applied())


def test_a_failure_does_not_write_over_success(tmp_path: Path) -> None:
    """Of two runs at once, the one that gave up waiting does not spoil what the other did."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"]}, ONE)
        journal.note_done(run, "acme")
        journal.note_failed(run, "acme", "held")

        assert {"acme": "done"} == states(journal, run)


@pytest.mark.parametrize(
    ("pragma", "text"),
    [
        ("max_page_count = 1", "full; make room on its disk."),
        ("query_only = 1", "readonly database; let this user write it and its folder."),
    ],
)
def test_what_cannot_be_written_says_what_to_do(tmp_path: Path, pragma: str, text: str) -> None:
    """Whatever keeps SQLite from it is our own error; what was written stays."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"]}, ONE)
        connection = cast("Any", journal)._connection
        connection.execute(f"PRAGMA {pragma}")
        many = {f"tenant-{number}": ["2"] for number in range(1000)}
        with pytest.raises(JournalError) as raised:
            journal.open_run(HEADS, many, {})

        assert {"acme": "pending"} == states(journal, run)
    assert str(raised.value).startswith(f"cannot use the journal {journal_file(tmp_path)}: ")
    assert str(raised.value).endswith(text)


def test_a_journal_that_another_process_holds_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for, and then said."""
    monkeypatch.setattr("tenantry.migrations.journal.WAIT_S", 0.01)
    with (
        Journal(tmp_path) as journal,
        contextlib.closing(sqlite3.connect(journal_file(tmp_path))) as holder,
    ):
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalError, match="locked; another process holds it: wait for it or"):
            journal.note_done(1, "acme")


def test_a_journal_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A broken file is an error with its path and the remedy."""
    path = journal_file(tmp_path)
    path.parent.mkdir()
    path.write_text("no database")

    with pytest.raises(JournalError, match=f"cannot use the journal {path}.*mend or remove it"):
        Journal(tmp_path)
