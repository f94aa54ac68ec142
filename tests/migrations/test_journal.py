"""A journal records which databases a migration run has migrated and which are pending."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any, cast

import pytest

from tenantry.migrations.journal import Journal, JournalError, journal_file

HEADS = {"shop": ["2"]}

DATABASES = {"acme": "sqlite one", "globex": "sqlite two"}
"""Maps each tenant to the identity of its database."""


def step_states(journal: Journal, run: int) -> dict[str, str]:
    """Return each tenant's state in a migration run."""
    return {step.tenant: step.state for step in journal.steps(run)}


def test_an_unfinished_run_continues(tmp_path: Path) -> None:
    """A migration run that another process continues keeps its number and its completed steps."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"], "globex": ["2"], "initech": ["2"]}, DATABASES)
        journal.record_start(run, "acme", ["1"], ["2"], DATABASES["acme"])
        journal.record_success(run, "acme")
        journal.record_start(run, "globex", ["1"], ["2"], DATABASES["globex"])
        journal.record_failure(run, "globex", "no")
    with Journal(tmp_path) as journal:
        again = journal.open_run(HEADS, {"globex": ["2"], "initech": ["2"]}, DATABASES)

        assert run == again
        assert {"acme": "done", "globex": "pending", "initech": "pending"} == step_states(
            journal, run
        )


@pytest.mark.parametrize("why", ["all done", "other heads", "downgraded"])
def test_a_new_run_starts(tmp_path: Path, why: str) -> None:
    """A new migration run starts once all steps are done or the code has changed.

    A new run also starts if a step has been reverted.
    """
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"], "globex": ["2"]}, DATABASES)
        journal.record_start(run, "acme", ["1"], ["2"], DATABASES["acme"])
        journal.record_success(run, "acme")
        if why == "all done":
            journal.record_start(run, "globex", ["1"], ["2"], DATABASES["globex"])
            journal.record_success(run, "globex")
        if why == "downgraded":
            journal.record_downgrade(run, "acme")

        heads = {"shop": ["3"]} if why == "other heads" else HEADS

        assert run + 1 == journal.open_run(heads, {"globex": ["3"]}, DATABASES)


def test_the_record_of_a_former_database_stays(tmp_path: Path) -> None:
    """If a tenant's database has been replaced, the step for the old database stays incomplete."""
    other = {"acme": "sqlite three"}
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"], "globex": ["2"]}, DATABASES)
        journal.record_start(run, "acme", ["1"], ["2"], DATABASES["acme"])
        journal.record_at_head(other)
        again = journal.open_run(HEADS, {"acme": ["2"]}, other)
        journal.record_start(again, "acme", [], ["2"], other["acme"])

        started = [journal.steps(number)[0] for number in (run, again)]

    assert [("running", "sqlite one"), ("running", "sqlite three")] == [
        (step.state, step.database) for step in started
    ]


def test_the_revisions_before_a_killed_run_stay_recorded(tmp_path: Path) -> None:
    """If a migration starts twice in a run, the journal keeps the revisions from before the run."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"]}, DATABASES)
        journal.record_start(run, "acme", [], ["2"], DATABASES["acme"])
        journal.open_run(HEADS, {"acme": ["2"]}, DATABASES)
        journal.record_start(run, "acme", ["1"], ["2"], DATABASES["acme"])

        assert [frozenset()] == [step.before for step in journal.steps(run)]


def test_a_done_step_stays_done_until_it_starts_again(tmp_path: Path) -> None:
    """A completed migration step stays done until the step starts again."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"], "globex": ["2"]}, DATABASES)
        journal.record_start(run, "acme", [], ["2"], DATABASES["acme"])
        journal.record_success(run, "acme")
        journal.open_run(HEADS, {"acme": ["2"], "globex": ["2"]}, DATABASES)
        journal.record_at_head({"acme": DATABASES["acme"]})
        assumed = journal.steps(run)[0]
        journal.record_start(run, "acme", ["1"], ["2"], DATABASES["acme"])
        started = journal.steps(run)[0]

    assert ("done", frozenset()) == (assumed.state, assumed.before)
    assert ("running", {"1"}) == (started.state, started.before)


def test_a_started_step_of_a_database_at_head_is_done(tmp_path: Path) -> None:
    """If a database is up to date, a migration step that was started counts as done."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"], "globex": ["2"]}, DATABASES)
        journal.record_start(run, "acme", ["1"], ["2"], DATABASES["acme"])
        journal.record_at_head(DATABASES)

        assert ({"acme": "done"}, (run, run)) == (
            step_states(journal, run),
            journal.last_applied({"acme", "globex"}),
        )


def test_a_renamed_tenant_keeps_its_runs(tmp_path: Path) -> None:
    """After a tenant is renamed, its last migration is found under the new name."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"], "globex": ["2"]}, DATABASES)
        journal.record_start(run, "acme", ["1"], ["2"], DATABASES["acme"])
        journal.record_success(run, "acme")
        for _ in range(2):
            journal.rename_tenant("acme", "store", {DATABASES["acme"]: "sqlite store"})
        step = journal.last_step("store", "sqlite store")

        assert step is not None
        assert (run, "done", {"1"}) == (step.run, step.state, step.before)
        assert {"globex", "store"} == step_states(journal, run).keys()


def test_a_failure_does_not_replace_a_success(tmp_path: Path) -> None:
    """A run that gave up waiting for a database does not overwrite another run's success."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"]}, DATABASES)
        journal.record_success(run, "acme")
        journal.record_failure(run, "acme", "held")

        assert {"acme": "done"} == step_states(journal, run)


@pytest.mark.parametrize(
    ("pragma", "text"),
    [
        ("max_page_count = 1", "full; free some disk space."),
        (
            "query_only = 1",
            "readonly database; give this user write access to the file and its folder.",
        ),
    ],
)
def test_a_journal_that_cannot_be_written_says_what_to_do(
    tmp_path: Path, pragma: str, text: str
) -> None:
    """If the journal cannot be written, the error says what to do, and earlier records stay."""
    with Journal(tmp_path) as journal:
        run = journal.open_run(HEADS, {"acme": ["2"]}, DATABASES)
        connection = cast("Any", journal)._connection
        connection.execute(f"PRAGMA {pragma}")
        many = {f"tenant-{number}": ["2"] for number in range(1000)}
        with pytest.raises(JournalError) as raised:
            journal.open_run(HEADS, many, {})

        assert {"acme": "pending"} == step_states(journal, run)
    assert str(raised.value).startswith(f"cannot use the journal {journal_file(tmp_path)}: ")
    assert str(raised.value).endswith(text)


def test_a_journal_that_another_process_locks_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another process keeps the journal locked, the error says so."""
    monkeypatch.setattr("tenantry.migrations.journal.LOCK_TIMEOUT_S", 0.01)
    with (
        Journal(tmp_path) as journal,
        contextlib.closing(sqlite3.connect(journal_file(tmp_path))) as holder,
    ):
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            JournalError, match="locked; another process holds the journal; wait for"
        ):
            journal.record_success(1, "acme")


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    """The error about a damaged journal names the file and the remedy."""
    path = journal_file(tmp_path)
    path.parent.mkdir()
    path.write_text("no database")

    with pytest.raises(
        JournalError, match=f"cannot use the journal {path}.*repair or remove the file"
    ):
        Journal(tmp_path)
