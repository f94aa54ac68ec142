"""Interrupting `backup`, `restore` or `clone` at any point leaves a consistent state.

After SIGKILL, the next run of the command succeeds and removes what the killed run left behind.
After SIGTERM, the command leaves no files, secrets or tables.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, inspect

from capsule_files import quiet, tree
from postgres import Postgres
from shops import WriteShop, environment, first, write_shop_fixture
from tenantry.capsules import write_capsule
from tenantry.settings import HostSettings
from tenantry.tenants.catalogue import load_tenant

pytestmark = pytest.mark.live

__all__ = ["write_shop_fixture"]

_SIGNAL_ITSELF = """\
import os, sys
from importlib import import_module
module, function, number, *sys.argv[1:] = sys.argv[1:]
owner = import_module(module)
*classes, name = function.split(".")
for name_of_class in classes:
    owner = getattr(owner, name_of_class)
real = getattr(owner, name)
def ending(*args, **options):
    os.kill(os.getpid(), int(number))
    return real(*args, **options)
setattr(owner, name, ending)
from tenantry.cli import main
main()
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(name="run")
def _run(settings: HostSettings, tmp_path: Path) -> Run:
    """Return a function that runs `tenantry` and sends it a signal at a given function call."""

    def run(
        *words: str, at: str = "tenantry.cli.main", with_signal: int = 0
    ) -> subprocess.CompletedProcess[str]:
        module, _, function = at.partition(":")
        command = [sys.executable, "-c", _SIGNAL_ITSELF, module, function, str(int(with_signal))]
        command = command if with_signal else [str(Path(sys.executable).with_name("tenantry"))]
        return subprocess.run(
            [*command, *words],
            cwd=tmp_path,
            env=environment(settings),
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(name="acme")
def _acme(
    settings: HostSettings, write_shop: WriteShop, write_tenant: Callable[..., Path]
) -> Callable[..., None]:
    """Return a function that creates the tenant acme with rows and a file."""

    def make(**keys: str) -> None:
        write_tenant("acme", BLUEPRINTS=[write_shop(first())], **keys)
        folder = settings.data_dir / "acme"
        (folder / "static").mkdir(parents=True)
        (folder / "static/a.css").write_text("body {}")
        url = keys.get("DATABASE_URI", f"sqlite:///{folder}/acme.sqlite3")
        with create_engine(url, poolclass=NullPool).begin() as connection:
            for statement in (
                "CREATE TABLE goods (id INTEGER PRIMARY KEY)",
                "INSERT INTO goods VALUES (1), (2)",
                "CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)",
                "INSERT INTO alembic_version VALUES ('shop_1')",
            ):
                connection.exec_driver_sql(statement)

    return make


def row_counts(url: str) -> dict[str, int]:
    """Return the number of rows in each table of a database."""
    with create_engine(url, poolclass=NullPool).connect() as connection:
        names = inspect(connection).get_table_names()
        counts = [connection.exec_driver_sql(f"SELECT count(*) FROM {name}") for name in names]
        return dict(zip(names, (int(count.scalar_one()) for count in counts), strict=True))


def found(folder: Path) -> set[str]:
    """Return the files below a folder, except those of the tenant acme and its endpoint."""
    names = set(tree(folder)) | {f"{path}" for path in folder.glob("instance/.capsules/*")}
    return {name for name in names if not name.startswith(("code/", "instance/acme/"))}


BACKUP = (
    "tenant_folder:FolderSnapshot.freeze",
    "archive_writer:ArchiveWriter.add_file",
    "archive_writer:ArchiveWriter._publish",
)
RESTORE = (
    ("default", "restore:_import"),
    ("default", "row_import:SqliteImport.finish"),
    ("default", "staging:RestoreStaging.move_into_place"),
    ("default", "staging:RestoreStaging.add_file"),
    ("default", "staging:RestoreStaging.commit"),
    ("file", "restore:_import"),
    ("file", "new_database:NewDatabaseFile.commit"),
    ("server", "restore:_migrate"),
    ("server", "row_import:PostgresImport.finish"),
    ("server", "postgres_database:NewPostgresDatabase.commit"),
    ("database", "restore:capsule_branches"),
    ("database", "restore:_import"),
    ("schema", "restore:_import"),
)
LAST = (
    ("file", "staging:RestoreStaging.add_file"),
    ("server", "row_import:PostgresImport.finish"),
    ("database", "staging:RestoreStaging.add_file"),
)
TOO_LATE = (
    ("default", "tenantry.capsules.new_tenant:write_tenant_file", signal.SIGTERM),
    ("file", "tenantry.capsules.new_database:NewDatabaseFile.commit", signal.SIGHUP),
    ("database", "tenantry.capsules.new_tenant:RestoredTenant", signal.SIGINT),
)
"""Steps after which a command only writes the tenant file and reports the result."""


@pytest.mark.parametrize("at", BACKUP)
def test_the_next_backup_removes_what_a_killed_one_left(
    acme: Callable[..., None], run: Run, tmp_path: Path, at: str
) -> None:
    """The next backup removes the unfinished backup file and the folder copy of a killed backup."""
    acme()
    before = found(tmp_path)

    killed = run("backup", "acme", "a", at=f"tenantry.capsules.{at}", with_signal=signal.SIGKILL)
    left = found(tmp_path) - before
    again = run("backup", "acme", "a")

    assert (-signal.SIGKILL, True) == (killed.returncode, bool(left)), killed
    assert (0, {"a"}) == (again.returncode, found(tmp_path) - before), again


def test_a_terminated_backup_leaves_nothing(
    acme: Callable[..., None], run: Run, tmp_path: Path
) -> None:
    """After SIGTERM, a backup leaves neither an unfinished backup file nor a copy of the folder."""
    acme()
    before = found(tmp_path)

    ended = run(
        "backup", "acme", "a", at=f"tenantry.capsules.{BACKUP[2]}", with_signal=signal.SIGTERM
    )

    assert (128 + signal.SIGTERM, before) == (ended.returncode, found(tmp_path)), ended
    assert "tenantry: ended by a signal." == ended.stderr.splitlines()[-1]


class Restore:
    """A command that creates the tenant globex from acme, in the given kind of database."""

    def __init__(
        self, settings: HostSettings, server: Postgres, make: Callable[..., None], to: str
    ) -> None:
        folder = settings.data_dir.parent
        url = server.new_database() if to in ("server", "database", "schema") else ""
        self.files = {
            "instance/globex/static/a.css",
            "instance/secrets/GLOBEX_SECRET_KEY",
            "tenants/globex.py",
        }
        self.command = ["clone", "acme", "globex"]
        if to == "schema":
            with closing(server.connect(url.rpartition("/")[2])) as connection:
                connection.execute("CREATE SCHEMA acme")
            make(DATABASE_URI=f"{url}?options=-csearch_path%3Dacme")
            self.url = f"{url}?options=-csearch_path%3Dglobex"
        elif to == "database":
            make(DATABASE_URI=url)
            self.url = server.url("globex")
        else:
            make()
            tenant, loaded = load_tenant(settings, "acme")
            write_capsule(tenant, loaded, settings.data_dir, folder / "a", quiet)
            self.command = ["restore", "a", "--as", "globex", "--with-templates"]
            self.url = url or f"sqlite:///{folder}/b.db"
            if to == "default":
                self.url = f"sqlite:///{settings.data_dir}/globex/globex.sqlite3"
                self.files.add("instance/globex/globex.sqlite3")
            else:
                self.command += ["--database", self.url]
                self.files |= {"b.db"} if to == "file" else set()
        self.before = found(folder)


@pytest.fixture(name="no_globex")
def _no_globex(postgres_server: Postgres) -> Iterator[None]:
    """Drop the clone's database after the test."""
    yield
    with closing(postgres_server.connect()) as connection:
        connection.execute("DROP DATABASE IF EXISTS globex")


@pytest.mark.usefixtures("no_globex")
@pytest.mark.parametrize(("to", "at"), RESTORE)
def test_the_next_restore_removes_what_a_killed_one_left(  # noqa: PLR0917 - pytest fixtures are parameters
    settings: HostSettings,
    acme: Callable[..., None],
    run: Run,
    postgres_server: Postgres,
    to: str,
    at: str,
) -> None:
    """After a restore is killed, a second restore creates the complete tenant."""
    folder = settings.data_dir.parent
    restore = Restore(settings, postgres_server, acme, to)

    killed = run(*restore.command, at=f"tenantry.capsules.{at}", with_signal=signal.SIGKILL)
    left = found(folder) - restore.before
    again = run(*restore.command)

    assert (-signal.SIGKILL, True) == (killed.returncode, bool(left)), killed
    assert (0, restore.files) == (again.returncode, found(folder) - restore.before), again
    assert {"alembic_version": 1, "goods": 2} == row_counts(restore.url)


@pytest.mark.usefixtures("no_globex")
@pytest.mark.parametrize(("to", "at"), LAST)
def test_a_terminated_restore_leaves_nothing(  # noqa: PLR0917 - pytest fixtures are parameters
    settings: HostSettings,
    acme: Callable[..., None],
    run: Run,
    postgres_server: Postgres,
    to: str,
    at: str,
) -> None:
    """After SIGTERM, `restore` leaves no files, secrets or tables, and `clone` no database."""
    folder = settings.data_dir.parent
    restore = Restore(settings, postgres_server, acme, to)

    ended = run(*restore.command, at=f"tenantry.capsules.{at}", with_signal=signal.SIGTERM)

    assert (128 + signal.SIGTERM, restore.before) == (ended.returncode, found(folder)), ended
    if to == "server":
        assert {} == row_counts(restore.url)
    with closing(postgres_server.connect()) as connection:
        assert (
            [] == connection.execute("SELECT FROM pg_database WHERE datname = 'globex'").fetchall()
        )


@pytest.mark.usefixtures("no_globex")
@pytest.mark.parametrize(("to", "at", "number"), TOO_LATE)
def test_a_late_signal_removes_nothing(  # noqa: PLR0917 - pytest fixtures are parameters
    settings: HostSettings,
    acme: Callable[..., None],
    run: Run,
    postgres_server: Postgres,
    to: str,
    at: str,
    number: signal.Signals,
) -> None:
    """A signal that arrives once a restore writes the tenant file does not undo the restore."""
    folder = settings.data_dir.parent
    restore = Restore(settings, postgres_server, acme, to)

    made = run(*restore.command, at=at, with_signal=number)

    assert (0, restore.files) == (made.returncode, found(folder) - restore.before), made
    assert {"alembic_version": 1, "goods": 2} == row_counts(restore.url)
