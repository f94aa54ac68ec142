"""The journal: what a run has done, and what it has left."""

from pathlib import Path

import pytest

from core.errors import TenantryError
from core.journal import Journal, journal_file

HEADS = {"shop": ["2"]}


def states(journal: Journal, run: int) -> dict[str, str]:
    """Return each tenant's state in a run."""
    return {step.tenant: step.state for step in journal.steps(run)}


def test_a_run_that_left_something_goes_on(tmp_path: Path) -> None:
    """Opened again by another process, it has its number, and what it did stays done."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"], "globex": ["2"], "initech": ["2"]})
        journal.note_running(run, "acme", ["1"])
        journal.note_done(run, "acme")
        journal.note_running(run, "globex", ["1"])
        journal.note_failed(run, "globex", "no")
    with Journal(tmp_path) as journal:
        again = journal.open_run(HEADS, {"globex": ["2"], "initech": ["2"]})

        assert run == again
        assert {"acme": "done", "globex": "pending", "initech": "pending"} == states(journal, run)


@pytest.mark.parametrize("why", ["nothing left", "other heads", "taken back"])
def test_another_run_begins(tmp_path: Path, why: str) -> None:
    """A run is over when it left nothing, the code has gone on, or it is being taken back."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"], "globex": ["2"]})
        journal.note_running(run, "acme", ["1"])
        journal.note_done(run, "acme")
        if why == "nothing left":
            journal.note_running(run, "globex", ["1"])
            journal.note_done(run, "globex")
        if why == "taken back":
            journal.note_taken_back(run, "acme")

        heads = {"shop": ["3"]} if why == "other heads" else HEADS

        assert run + 1 == journal.open_run(heads, {"globex": ["3"]})


def test_what_was_before_a_killed_run_stays_known(tmp_path: Path) -> None:
    """A step that runs twice in one run is taken back to where it first began."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"]})
        journal.note_running(run, "acme", [])
        journal.open_run(HEADS, {"acme": ["2"]})
        journal.note_running(run, "acme", ["1"])

        assert [frozenset()] == [step.before for step in journal.steps(run)]


def test_a_database_at_head_was_brought_there_by_the_run_that_began_with_it(tmp_path: Path) -> None:
    """Killed before it could write so, a run did it; what it had not begun, it did not."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"], "globex": ["2"]})
        journal.note_running(run, "acme", ["1"])
        journal.note_at_head(["acme", "globex"])

        assert ({"acme": "done"}, run) == (states(journal, run), journal.last_applied())


def test_a_failure_does_not_write_over_success(tmp_path: Path) -> None:
    """Of two runs at once, the one that gave up waiting does not spoil what the other did."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"]})
        journal.note_done(run, "acme")
        journal.note_failed(run, "acme", "held")

        assert {"acme": "done"} == states(journal, run)


def test_a_journal_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A broken file is an error with its path and the remedy."""
    path = journal_file(tmp_path)
    path.parent.mkdir()
    path.write_text("no database")

    with pytest.raises(TenantryError, match=f"cannot use the journal {path}.*mend or remove it"):
        Journal(tmp_path)
