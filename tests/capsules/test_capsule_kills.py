"""Backup, restore and clone that are killed, or asked to end, wherever they are.

After SIGKILL the same command does it all again, and nothing is left of the first; after SIGTERM
nothing is left at once.
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
from tenantry.tenants.lookup import load_tenant

pytestmark = pytest.mark.live

__all__ = ["write_shop_fixture"]

_ENDS_ITSELF = """\
import os, sys
from importlib import import_module
module, function, number, *sys.argv[1:] = sys.argv[1:]
owner = import_module(module)
*classes, name = function.split(".")
for one in classes:
    owner = getattr(owner, one)
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
    """Return a function that runs `tenantry`, which gets a signal when it calls something."""

    def run(
        *words: str, at: str = "tenantry.cli.main", with_signal: int = 0
    ) -> subprocess.CompletedProcess[str]:
        module, _, function = at.partition(":")
        begin = [sys.executable, "-c", _ENDS_ITSELF, module, function, str(int(with_signal))]
        begin = begin if with_signal else [str(Path(sys.executable).with_name("tenantry"))]
        return subprocess.run(
            [*begin, *words],
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
    """Return a function that makes tenant acme, with rows and a file."""

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


def held(url: str) -> dict[str, int]:
    """Return the tables of a database, and how many rows are in each."""
    with create_engine(url, poolclass=NullPool).connect() as connection:
        names = inspect(connection).get_table_names()
        counts = [connection.exec_driver_sql(f"SELECT count(*) FROM {name}") for name in names]
        return dict(zip(names, (int(one.scalar_one()) for one in counts), strict=True))


def found(folder: Path) -> set[str]:
    """Return what is below a folder, but for the tenant that was there before, and its code."""
    names = set(tree(folder)) | {f"{path}" for path in folder.glob("instance/.capsules/*")}
    return {name for name in names if not name.startswith(("code/", "instance/acme/"))}


BACKUP = (
    "tenant_folder:FolderSnapshot.freeze",
    "archive_writer:ArchiveWriter.add_file",
    "archive_writer:ArchiveWriter._publish",
)
RESTORE = (
    ("default", "restore:_fill"),
    ("default", "row_import:RowImport.finish"),
    ("default", "staging:RestoreStaging.move"),
    ("default", "staging:RestoreStaging.add"),
    ("default", "staging:RestoreStaging.commit"),
    ("file", "restore:_fill"),
    ("file", "new_database:NewDatabaseFile.keep"),
    ("server", "restore:_migrate"),
    ("server", "row_import:RowImport.finish"),
    ("server", "postgres_database:NewPostgresDatabase.keep"),
    ("database", "restore:capsule_branches"),
    ("database", "restore:_fill"),
    ("schema", "restore:_fill"),
)
LAST = (
    ("file", "staging:RestoreStaging.add"),
    ("server", "row_import:RowImport.finish"),
    ("database", "staging:RestoreStaging.add"),
)
TOO_LATE = (
    ("default", "tenantry.capsules.new_tenant:write_tenant_file", signal.SIGTERM),
    ("file", "tenantry.capsules.new_database:NewDatabaseFile.keep", signal.SIGHUP),
    ("database", "tenantry.capsules.new_tenant:RestoredTenant", signal.SIGINT),
)
"""From when the tenant file is about to be there, to when nothing but a report is left to do."""


@pytest.mark.parametrize("at", BACKUP)
def test_a_killed_backup_leaves_nothing_for_long(
    acme: Callable[..., None], run: Run, tmp_path: Path, at: str
) -> None:
    """The next one removes the half capsule, and the copy of the folder."""
    acme()
    before = found(tmp_path)

    killed = run("backup", "acme", "a", at=f"tenantry.capsules.{at}", with_signal=signal.SIGKILL)
    left = found(tmp_path) - before
    again = run("backup", "acme", "a")

    assert (-signal.SIGKILL, True) == (killed.returncode, bool(left)), killed
    assert (0, {"a"}) == (again.returncode, found(tmp_path) - before), again


def test_a_backup_that_is_asked_to_end_leaves_nothing(
    acme: Callable[..., None], run: Run, tmp_path: Path
) -> None:
    """SIGTERM is an orderly end: neither half a capsule nor a copy stays."""
    acme()
    before = found(tmp_path)

    ended = run(
        "backup", "acme", "a", at=f"tenantry.capsules.{BACKUP[2]}", with_signal=signal.SIGTERM
    )

    assert (128 + signal.SIGTERM, before) == (ended.returncode, found(tmp_path)), ended
    assert "tenantry: ended by a signal." == ended.stderr.splitlines()[-1]


class Restore:
    """A restore of acme as globex, or a clone, into a database of some kind."""

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
            self.command = ["restore", "a", "--as", "globex"]
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
    """Drop the database of the clone after the test."""
    yield
    with closing(postgres_server.connect()) as connection:
        connection.execute("DROP DATABASE IF EXISTS globex")


@pytest.mark.usefixtures("no_globex")
@pytest.mark.parametrize(("to", "at"), RESTORE)
def test_a_killed_restore_leaves_nothing_for_long(  # noqa: PLR0917 - fixtures and cases
    settings: HostSettings,
    acme: Callable[..., None],
    run: Run,
    postgres_server: Postgres,
    to: str,
    at: str,
) -> None:
    """The next one has a folder, a secret and a database, as if it had been the only one."""
    folder = settings.data_dir.parent
    restore = Restore(settings, postgres_server, acme, to)

    killed = run(*restore.command, at=f"tenantry.capsules.{at}", with_signal=signal.SIGKILL)
    left = found(folder) - restore.before
    again = run(*restore.command)

    assert (-signal.SIGKILL, True) == (killed.returncode, bool(left)), killed
    assert (0, restore.files) == (again.returncode, found(folder) - restore.before), again
    assert {"alembic_version": 1, "goods": 2} == held(restore.url)


@pytest.mark.usefixtures("no_globex")
@pytest.mark.parametrize(("to", "at"), LAST)
def test_a_restore_that_is_asked_to_end_leaves_nothing(  # noqa: PLR0917 - fixtures and cases
    settings: HostSettings,
    acme: Callable[..., None],
    run: Run,
    postgres_server: Postgres,
    to: str,
    at: str,
) -> None:
    """SIGTERM is an orderly end: no folder, secret, file or database of a clone, no table."""
    folder = settings.data_dir.parent
    restore = Restore(settings, postgres_server, acme, to)

    ended = run(*restore.command, at=f"tenantry.capsules.{at}", with_signal=signal.SIGTERM)

    assert (128 + signal.SIGTERM, restore.before) == (ended.returncode, found(folder)), ended
    if to == "server":
        assert {} == held(restore.url)
    with closing(postgres_server.connect()) as connection:
        assert (
            [] == connection.execute("SELECT FROM pg_database WHERE datname = 'globex'").fetchall()
        )


@pytest.mark.usefixtures("no_globex")
@pytest.mark.parametrize(("to", "at", "number"), TOO_LATE)
def test_a_signal_that_is_too_late_takes_nothing_away(  # noqa: PLR0917 - fixtures and cases
    settings: HostSettings,
    acme: Callable[..., None],
    run: Run,
    postgres_server: Postgres,
    to: str,
    at: str,
    number: signal.Signals,
) -> None:
    """A tenant that may serve already keeps its folder, its secret and its database."""
    folder = settings.data_dir.parent
    restore = Restore(settings, postgres_server, acme, to)

    made = run(*restore.command, at=at, with_signal=number)

    assert (0, restore.files) == (made.returncode, found(folder) - restore.before), made
    assert {"alembic_version": 1, "goods": 2} == held(restore.url)
