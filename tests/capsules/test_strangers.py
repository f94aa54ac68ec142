"""A backup file from a stranger can influence only what `tenants/README.md` lists."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import make_url

from capsule_files import archive, headers, sealed, tree
from capsule_tenants import RunCommand, tenantry_fixture
from postgres import Postgres
from tenantry.capsules.capsule import MARK_TABLE
from tenantry.capsules.json_values import dump_value
from tenantry.capsules.new_database import DatabaseError
from tenantry.capsules.postgres_database import NewPostgresDatabase
from tenantry.settings import HostSettings

__all__ = ["tenantry_fixture"]

FILES = [
    ("files/notes.txt", b"notes"),
    ("files/static/a.js", b"alert(1)"),
    ("files/templates/page.html", b"{{ 7 * 7 }}"),
]


def write(path: Path, *members: tuple[str, bytes], **keys: object) -> None:
    """Write a malicious backup file with correct hashes."""
    config = dump_value({"BLUEPRINTS": ["landing"]} | keys).encode()
    path.write_bytes(sealed(archive([*headers(config), *members])))


def test_templates_are_restored_only_on_request(
    settings: HostSettings, tenantry: RunCommand
) -> None:
    """Without `--with-templates`, `restore` leaves out templates and static files, and says so."""
    write(Path("a"), *FILES)

    plain = tenantry("restore", "a")
    whole = tenantry("restore", "a", "--as", "globex", "--with-templates")

    assert (0, 0) == (plain[0], whole[0]), (plain, whole)
    assert {"notes.txt": b"notes"} == tree(settings.data_dir / "acme")
    assert "left out: 2 files in templates and static; to restore them" in plain[2]
    assert {name.removeprefix("files/"): content for name, content in FILES} == tree(
        settings.data_dir / "globex"
    )


@pytest.mark.parametrize(
    ("keys", "shown"),
    [
        ({}, "a: neither 'CLIENTS' nor 'OIDC' is set: everybody is admitted."),
        (
            {"CLIENTS": {"stranger": "sha256:" + "0" * 64}},
            "a: 'CLIENTS' admits ['stranger'].",
        ),
        (
            {"OIDC": {"issuer": "https://evil.test", "audience": "acme"}},
            "a: 'OIDC' admits tokens of {'issuer': 'https://evil.test', 'audience': 'acme',",
        ),
        ({"CLIENTS": "\x1b[2J\u202e", "OIDC": 1}, "a: 'CLIENTS' admits '\\x1b[2J\\u202e'."),
    ],
)
def test_who_gets_in_is_shown_first(
    settings: HostSettings, tenantry: RunCommand, keys: dict[str, object], shown: str
) -> None:
    """`restore` shows who can use the tenant before it creates anything, in printable text."""
    write(Path("a"), **keys)

    code, _, err = tenantry("restore", "a", "--database", "NO_SUCH")

    assert (1, True) == (code, err.splitlines()[1].startswith(shown)), err
    assert {} == tree(settings.data_dir)


@pytest.mark.parametrize("name", ["alembic_version", "tenantry_restoring", "sqlite_master"])
def test_a_reserved_table_is_rejected(
    settings: HostSettings, tenantry: RunCommand, name: str
) -> None:
    """A backup file cannot fill the tables that control migrations, restores or the engine."""
    members = headers(tables=[{"name": name, "columns": ["a"]}])
    Path("a").write_bytes(sealed(archive(members)))

    code, _, err = tenantry("restore", "a")

    assert (1, True) == (code, f"the table {name!r} is never part of a capsule" in err), err
    assert {} == tree(settings.data_dir)


@pytest.fixture(name="shared_url")
def _shared_url(postgres_server: Postgres) -> Iterator[str]:
    """Return the URL of a database in which another role can create tables."""
    url = postgres_server.new_database()
    with closing(postgres_server.connect(str(make_url(url).database))) as connection:
        connection.execute("CREATE ROLE stranger")
        connection.execute("GRANT CREATE ON SCHEMA public TO stranger")
        try:
            yield url
        finally:
            connection.execute("RESET ROLE")
            connection.execute("DROP OWNED BY stranger")
            connection.execute("DROP ROLE stranger")


@pytest.mark.live
def test_a_mark_of_another_role_is_rejected(postgres_server: Postgres, shared_url: str) -> None:
    """A restore rejects a database whose mark table was created by another role."""
    url = make_url(shared_url)
    with closing(postgres_server.connect(str(url.database))) as connection:
        connection.execute("SET ROLE stranger")
        connection.execute(f"CREATE TABLE {MARK_TABLE} (kind text, name text)")
        connection.execute(f"INSERT INTO {MARK_TABLE} VALUES ('table', 'x; DROP ROLE stranger')")

        with pytest.raises(DatabaseError, match="belongs to another role, 'stranger'"):
            NewPostgresDatabase(url).__enter__()

        assert [(1,)] == connection.execute(f"SELECT count(*) FROM {MARK_TABLE}").fetchall()


@pytest.mark.live
def test_a_mark_only_chooses_among_the_objects_of_the_catalogue(
    postgres_server: Postgres, postgres_url: str
) -> None:
    """A restore executes only names of existing objects, whatever the mark table contains."""
    url = make_url(postgres_url)
    with closing(postgres_server.connect(str(url.database))) as connection:
        connection.execute("CREATE TABLE goods (id int)")
        connection.execute("CREATE SCHEMA other CREATE TABLE kept (id int)")
        connection.execute(f"CREATE TABLE {MARK_TABLE} (kind text, name text)")
        names = ["public.goods", "other.kept", "public.goods, other.kept", 'x"; DROP SCHEMA other']
        for name in names:
            connection.execute(f"INSERT INTO {MARK_TABLE} VALUES ('table', %s)", (name,))

        with NewPostgresDatabase(url):
            pass

        found = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname <> ALL (%s)",
            (["pg_catalog", "information_schema"],),
        ).fetchall()
    assert [("kept",)] == found
