"""`tenantry db revision` writes a migration that brings a database to the models of an endpoint."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from commands import Tenantry
from tenantry.settings import HostSettings

HEAD = """\
from sqlalchemy import JSON, ForeignKey, String, TypeDecorator, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Upper(TypeDecorator):
    impl = String(30)
    cache_ok = True
"""

NOTES = """
class NoteModel(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(index=True)
    tag: Mapped[str] = mapped_column(Upper, unique=True)
"""

TOPICS = """
class TopicModel(Base):
    __tablename__ = "topics"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20))
    is_open: Mapped[bool]
"""

NOTES_WITH_TOPIC = """
class NoteModel(Base):
    __tablename__ = "notes"
    __table_args__ = (UniqueConstraint("text", "topic_id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(200))
    topic_id: Mapped[int | None] = mapped_column(ForeignKey("topics.id"))
    extra: Mapped[dict | None] = mapped_column(JSON)
"""

VERSIONS = (NOTES, NOTES_WITH_TOPIC + TOPICS, TOPICS, TOPICS.replace("String(20)", "String(30)"))


class Project:
    """A project with the tenant acme and the endpoint notes, whose models change."""

    def __init__(self, folder: Path, run: Tenantry) -> None:
        self.folder = folder
        self.run = run
        run("endpoint", "new", "notes")

    def model(self, text: str) -> None:
        """Replace the models of the endpoint."""
        models = self.folder / "notes/models.py"
        greeting = "\n\nclass NotesModel:\n    pass\n"
        models.write_text(HEAD + text + greeting)

    def revise(self, message: str = "Change it") -> str:
        """Write a revision, and return what the command prints."""
        result = self.run("db", "revision", "acme", "--endpoint", "notes", "-m", message)
        return result.out + result.err

    def upgrade(self) -> int:
        """Upgrade the database, and return the exit code."""
        return self.run("db", "upgrade", "--all").code


@pytest.fixture(name="project")
def _project(
    tenantry: Tenantry, tmp_path: Path, settings: HostSettings, write_tenant: Callable[..., Path]
) -> Project:
    """Return a project whose endpoint has a table, but no revision."""
    del settings
    project = Project(tmp_path, tenantry)
    project.model(NOTES)
    write_tenant("acme", BLUEPRINTS=["notes"])
    return project


@pytest.mark.live
def test_the_first_revision_creates_the_tables(project: Project) -> None:
    """A new endpoint gets a revision whose ID and label begin its branch, and then no changes."""
    printed = project.revise('Add the "table" of notes')
    text = (project.folder / "notes/migrations/0001_add_the_table_of_notes.py").read_text()

    after = project.upgrade(), project.revise()

    assert printed == (
        "notes/migrations/0001_add_the_table_of_notes.py: revision notes_0001. Read the file, and "
        "then run: tenantry db upgrade --tenant acme\n"
    )
    assert '"""Add the \'table\' of notes."""' in text
    assert 'revision = "notes_0001"\ndown_revision = None\nbranch_labels = ("notes",)' in text
    assert "        sa.Column('tag', sa.String(length=30), nullable=False)," in text
    assert (0, "No changes.\n") == after


def test_no_database_is_created(project: Project) -> None:
    """A revision for a tenant that was never served leaves the data folder empty."""
    project.revise()

    assert not (project.folder / "instance").exists()


@pytest.mark.live
def test_a_database_that_is_behind_is_refused(project: Project) -> None:
    """Until the database has the newest revision, there is no next one."""
    project.revise()
    project.model(VERSIONS[1])

    result = project.run("db", "revision", "acme", "--endpoint", "notes", "-m", "Next")

    assert (1, "") == (result.code, result.out)
    assert (
        "tenantry: the database of tenant 'acme' is at nothing, and its endpoints are at "
        "notes_0001; first run: tenantry db upgrade --tenant acme\n"
    ) == result.err
    assert 1 == len(list((project.folder / "notes/migrations").iterdir()))


@pytest.mark.live
@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("raise ValueError('no')", "ValueError: no (models.py:13); fix models.py"),
        ("import os; os._exit(3)", "its models end their process (exit code 3)"),
        ("def :", "SyntaxError: invalid syntax (models.py, line 13)"),
        ("", "its models.py defines no table"),
        ("import nothing_here", "No module named 'nothing_here' (models.py:13)"),
    ],
)
def test_models_that_cannot_be_compared_are_explained(
    project: Project, models: str, message: str
) -> None:
    """A mistake in the models is one line with its place."""
    project.model(f"\n{models}\n")

    printed = project.revise()

    assert printed.startswith("tenantry: endpoint 'notes': "), printed
    assert (True, 1) == (message in printed, printed.count("\n")), printed


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("acme", "--endpoint", "other"), 1, "does not enable 'other'; add it to 'BLUEPRINTS'"),
        (("acme", "--endpoint", "images"), 1, "'images' comes with Tenantry"),
        (("acm", "--endpoint", "notes"), 2, "did you mean 'acme'?"),
        (("acme",), 2, "Missing option '--endpoint'"),
        (("globex", "--endpoint", "notes"), 1, "a database in memory has no tables"),
    ],
)
def test_a_mistake_on_the_command_line_is_explained(
    project: Project,
    write_tenant: Callable[..., Path],
    *,
    words: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    """The command names what it cannot find, and says what to do."""
    write_tenant("acme", BLUEPRINTS=["notes", "images"])
    write_tenant("globex", BLUEPRINTS=["notes"], DATABASE_URI="sqlite://")

    result = project.run("db", "revision", *words, "-m", "Next")

    assert (code, True) == (result.code, message in result.err), result.err


@pytest.mark.live
def test_tables_of_others_are_left_alone(
    project: Project, write_tenant: Callable[..., Path]
) -> None:
    """A revision neither drops tables of other endpoints nor tables that nobody declares."""
    write_tenant("acme", BLUEPRINTS=["images", "notes"])
    project.upgrade()
    with closing(sqlite3.connect(project.folder / "instance/acme/acme.sqlite3")) as connection:
        connection.execute("CREATE TABLE by_hand (id INTEGER)")

    project.revise()

    (path,) = (project.folder / "notes/migrations").iterdir()
    text = path.read_text()
    assert ([], 1) == (
        [name for name in ("images", "by_hand", "alembic_version") if name in text],
        text.count("create_table"),
    )


def _check_a_history(project: Project) -> None:
    """Write, run and undo a revision for each version of the models."""
    outcomes = []
    for number, version in enumerate(VERSIONS, 1):
        project.model(version)
        printed = project.revise()
        checked = project.run("check")
        upgraded = project.upgrade()
        outcomes.append((f"notes_{number:04}" in printed, checked.code, upgraded, project.revise()))
    runs = [str(run) for run in range(len(VERSIONS), 0, -1)]
    undone = [project.run("db", "downgrade", "--all", "--run", run).code for run in runs]

    expected = [(True, 0, 0, "No changes.\n")] * len(VERSIONS)
    assert (expected, [0] * len(VERSIONS)) == (outcomes, undone)


@pytest.mark.live
def test_every_change_of_models_is_a_migration_on_sqlite(project: Project) -> None:
    """New, changed and dropped tables, columns and constraints pass `check`, up and down."""
    _check_a_history(project)


@pytest.mark.live
def test_every_change_of_models_is_a_migration_on_postgresql(
    project: Project, write_tenant: Callable[..., Path], postgres_url: str
) -> None:
    """The same changes are migrations on PostgreSQL."""
    write_tenant("acme", BLUEPRINTS=["notes"], DATABASE_URI=postgres_url)

    _check_a_history(project)
