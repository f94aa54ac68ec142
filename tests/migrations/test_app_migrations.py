"""`tenantry db` runs the migrations of existing applications with their own `env.py`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, inspect

from commands import Tenantry
from postgres import Postgres
from tenantry.host import Host

NOTEBOOK = Path(__file__).parents[1] / "apps/notebook"

REVISION = "177dca9cee2e"

PLAIN_ENV = """\
from sqlalchemy import engine_from_config
from alembic import context
from model import metadata
engine = engine_from_config(context.config.get_section("alembic"), prefix="sqlalchemy.")
with engine.begin() as connection:
    context.configure(connection=connection, target_metadata=metadata)
    context.run_migrations()
"""

PLAIN_REVISION = """\
from alembic import op
from model import metadata
revision = "1a2b"
down_revision = None
def upgrade(): metadata.create_all(op.get_bind())
def downgrade(): metadata.drop_all(op.get_bind())
"""

MODEL = """\
import flask, sqlalchemy as sa
app = flask.Flask(__name__)
metadata = sa.MetaData()
sa.Table("pages", metadata, sa.Column("id", sa.Integer, primary_key=True))
"""


@pytest.fixture(name="project")
def _project(tmp_path: Path) -> Path:
    """Return a copy of an application with Flask-Migrate."""
    return shutil.copytree(NOTEBOOK, tmp_path / "project")


@pytest.fixture(name="plain")
def _plain(tmp_path: Path) -> Path:
    """Return an application with Alembic, whose `env.py` and revision import the models."""
    project = tmp_path / "plain"
    (project / "alembic/versions").mkdir(parents=True)
    (project / "model.py").write_text(MODEL)
    (project / "alembic.ini").write_text("[alembic]\nsqlalchemy.url = sqlite:///other.db\n")
    (project / "alembic/env.py").write_text(PLAIN_ENV)
    (project / "alembic/versions/1a2b_pages.py").write_text(PLAIN_REVISION)
    return project


@pytest.fixture(name="write")
def _write(write_tenant: Callable[..., Path]) -> Callable[..., None]:
    """Return a function that writes a tenant with an application."""

    def write(name: str, app: str, project: Path, migrations: str, **keys: object) -> None:
        blueprints = keys.pop("BLUEPRINTS", None)
        write_tenant(
            name, APP=app, APP_DIR=str(project), MIGRATIONS=migrations, BLUEPRINTS=blueprints,
            **keys,
        )  # fmt: skip

    return write


def states(output: str) -> dict[str, tuple[str, list[str]]]:
    """Return the state of each tenant, and the revisions of its database."""
    return {row["tenant"]: (row["state"], row["before"]) for row in json.loads(output)}


def tables(url: str) -> set[str]:
    """Return the tables of a database."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        return {*inspect(connection).get_table_names()}


def default_url(data_dir: Path, name: str) -> str:
    """Return the URL of a tenant's default database."""
    return f"sqlite:///{data_dir}/{name}/{name}.sqlite3"


def test_upgrade_status_and_downgrade(
    write: Callable[..., None], project: Path, tenantry: Tenantry, data_dir: Path
) -> None:
    """Each tenant has tables of its own; a downgrade of the run removes them."""
    for name in ("acme", "globex"):
        write(name, "wsgi", project, "migrations")

    upgraded = tenantry("db", "upgrade", "--all")

    assert 0 == upgraded.code, upgraded.err
    assert "2 tenants (run 1): 2 upgraded.\n" in upgraded.out
    assert "" == upgraded.err
    at_head = ("at head", [REVISION])
    assert {"acme": at_head, "globex": at_head} == states(tenantry("db", "status", "--json").out)
    assert {"alembic_version", "note", "user"} == tables(default_url(data_dir, "acme"))
    assert 0 == tenantry("db", "downgrade", "--tenant", "globex").code
    assert {"acme": at_head, "globex": ("behind", [])} == states(
        tenantry("db", "status", "--json").out
    )
    assert {"alembic_version"} == tables(default_url(data_dir, "globex"))
    assert not (project / "notebook.db").exists()


def test_pending_migrations_are_a_note(
    write: Callable[..., None], project: Path, tenantry: Tenantry, host: Host
) -> None:
    """`list` and `check` name pending migrations, and the host serves the tenant."""
    write("acme", "wsgi", project, "migrations")

    listed, checked = tenantry("list", "--json"), tenantry("check")

    note = (
        "the application's migrations are pending: the database is at nothing, the code at "
        f"{REVISION}; run: tenantry db upgrade --tenant acme"
    )
    assert [("", note)] == [(row["reason"], row["note"]) for row in json.loads(listed.out)]
    assert (0, True) == (checked.code, f"'MIGRATIONS': {note}.\n" in checked.out), checked.out
    host.load()
    assert ["idle"] == [mount.state for mount in host.report.statuses()]


@pytest.mark.parametrize(
    ("app", "value", "problem"),
    [
        ("wsgi", "migration", "there is no folder {project}/migration; write the path relative"),
        ("wsgi", "notebook", "{project}/notebook has no file env.py; expected a folder that"),
        ("wsgi", "empty", "{project}/empty has no folder versions; expected a folder that"),
        ("wsgi", "open", "every user can write to {project}/open; run: chmod o-w"),
        ("wsgi", "{data}/globex/m", "{data}/globex/m is in the data folder {data}, where tenants"),
        (None, "migrations", "only an existing application has this key; set 'APP', or remove"),
    ],
)  # fmt: skip
def test_a_wrong_folder_is_one_problem(
    *,
    write: Callable[..., None],
    project: Path,
    tenantry: Tenantry,
    data_dir: Path,
    app: str | None,
    value: str,
    problem: str,
) -> None:
    """The message names the folder, and what is wrong with it."""
    places = {"project": project, "data": data_dir}
    (project / "empty").mkdir()
    (project / "empty/env.py").touch()
    shutil.copytree(project / "migrations", project / "open").chmod(0o777)
    shutil.copytree(project / "migrations", data_dir / "globex/m")
    blueprints = None if app else ["landing"]
    write("acme", app, project, value.format(**places), BLUEPRINTS=blueprints)

    checked = tenantry("check")

    assert 1 == checked.code
    (line,) = [line for line in checked.out.splitlines() if not line.startswith("note: ")]
    assert "'MIGRATIONS': " in line
    assert problem.format(**places) in line


@pytest.mark.live
def test_alembic_beside_endpoints_with_tables(
    write: Callable[..., None], plain: Path, tenantry: Tenantry, data_dir: Path, host: Host
) -> None:
    """Plain Alembic gets the tenant's database, and endpoints keep their own revisions."""
    write("acme", "model", plain, "alembic", BLUEPRINTS=["images"])

    upgraded = tenantry("db", "upgrade", "--all")

    assert 0 == upgraded.code, upgraded.err
    assert {"alembic_version", "images", "pages"} <= tables(default_url(data_dir, "acme"))
    host.load()
    assert [""] == [mount.database for mount in host.report.statuses()]
    assert 0 == tenantry("db", "downgrade", "--all").code
    assert {"alembic_version"} == tables(default_url(data_dir, "acme"))


@pytest.mark.live
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('engine_from_config(context.config.get_section("alembic"), prefix="sqlalchemy.")',
         '__import__("sqlalchemy").create_engine("sqlite:///elsewhere.db")',
         "its env.py connects to sqlite:///elsewhere.db, which is not the tenant's database"),
        ("target_metadata=metadata", "version_table='versions'",
         "its env.py uses the version table versions; tenantry db needs alembic_version"),
        ("    context.run_migrations()\n", "", "its env.py does not call context.run_migrations"),
        ("from model", "from missing", "No module named 'missing'"),
    ],
)  # fmt: skip
def test_an_env_py_that_does_something_else_fails(
    *,
    write: Callable[..., None],
    plain: Path,
    tenantry: Tenantry,
    old: str,
    new: str,
    reason: str,
) -> None:
    """The error says what `env.py` does, and the next tenant is still upgraded."""
    write("acme", "model", plain, "alembic")
    write("globex", "model", shutil.copytree(plain, plain.with_name("good")), "alembic")
    (plain / "alembic/env.py").write_text(PLAIN_ENV.replace(old, new))

    upgraded = tenantry("db", "upgrade", "--all")

    assert 1 == upgraded.code
    assert reason in upgraded.err
    assert "2 tenants (run 1): 1 failed, 1 upgraded.\n" in upgraded.err


@pytest.mark.live
def test_postgresql(
    write: Callable[..., None], project: Path, tenantry: Tenantry, postgres_server: Postgres
) -> None:
    """A tenant's application is migrated in its PostgreSQL database; a failure changes nothing."""
    urls = {name: postgres_server.new_database() for name in ("acme", "globex")}
    for name, url in urls.items():
        write(name, "wsgi", project, "migrations", DATABASE_URI=url)
    with create_engine(urls["globex"], poolclass=NullPool).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE note (id int)")  # makes the migration fail

    upgraded = tenantry("db", "upgrade", "--all")

    assert 1 == upgraded.code
    assert {"alembic_version", "note", "user"} == tables(urls["acme"])
    assert {"note"} == tables(urls["globex"])
    assert 'relation "note" already exists; the database was left as it was.' in upgraded.err


@pytest.mark.live
def test_an_env_py_that_does_not_commit_fails(
    write: Callable[..., None], plain: Path, tenantry: Tenantry, postgres_url: str
) -> None:
    """An upgrade that the database has rolled back is a failure."""
    write("acme", "model", plain, "alembic", DATABASE_URI=postgres_url)
    (plain / "alembic/env.py").write_text(PLAIN_ENV.replace("engine.begin()", "engine.connect()"))

    upgraded = tenantry("db", "upgrade", "--all")

    assert 1 == upgraded.code
    assert "its env.py left the database at nothing" in upgraded.err
    assert set() == tables(postgres_url)


@pytest.mark.live
def test_a_capsule_holds_the_migrated_tables(
    write: Callable[..., None],
    project: Path,
    tenantry: Tenantry,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After `backup` and `restore --as`, the new tenant's database is at the same revision."""
    monkeypatch.setenv("TENANTRY_APP_DIR", str(project))  # a capsule contains no APP_DIR
    write("acme", "wsgi", project, "migrations")
    tenantry("db", "upgrade", "--all")

    saved = tenantry("backup", "acme", "acme.capsule")
    restored = tenantry("restore", "acme.capsule", "--as", "initech")

    assert (0, 0) == (saved.code, restored.code), (saved.err, restored.err)
    assert ("at head", [REVISION]) == states(tenantry("db", "status", "--json").out)["initech"]
    assert {"alembic_version", "note", "user"} == tables(default_url(data_dir, "initech"))
