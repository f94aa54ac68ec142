"""The commands `backup`, `restore` and `clone` report what they skip, and create valid tenants."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine

from capsule_files import archive, headers, rewrite, sealed, tree
from capsule_tenants import (
    RunCommand,
    acme_fixture,
    backup,
    rows,
    tenantry_fixture,
    things_fixture,
    url_of,
)
from postgres import Postgres
from shops import environment, write_shop_fixture
from tenantry.capsules.json_values import dump_value
from tenantry.settings import HostSettings
from tenantry.tenants.catalogue import load_tenant
from tenantry.tenants.file import FILE_LIMIT_BYTES

pytestmark = pytest.mark.live

__all__ = ["acme_fixture", "tenantry_fixture", "things_fixture", "write_shop_fixture"]


def test_an_unused_default_database_is_left_out(
    settings: HostSettings,
    write_tenant: Callable[..., Path],
    tenantry: RunCommand,
) -> None:
    """`backup` omits and reports a default database that the tenant no longer uses."""
    folder = settings.data_dir / "acme"
    folder.mkdir(parents=True)
    write_tenant("acme", BLUEPRINTS=["landing"], DATABASE_URI=f"sqlite:///{folder}/main.db")
    (folder / "main.db").touch()
    old = ["acme.sqlite3", "acme.sqlite3-wal", "acme.sqlite3.made"]
    for name in (*old, "other.sqlite3"):
        (folder / name).write_text("old")

    printed = json.loads(tenantry("backup", "acme", "a", "--json")[1])
    shutil.rmtree(folder)
    (settings.tenants_dir / "acme.py").unlink()
    restored = tenantry("restore", "a")

    assert old == printed["left_out"]
    assert 0 == restored[0], restored
    assert {"other.sqlite3": b"old"} == tree(folder)


def test_a_file_in_the_place_of_the_database_is_left_out(
    settings: HostSettings, acme: Path, tenantry: RunCommand
) -> None:
    """`restore` skips and reports a file that the new tenant would open as its database."""
    backup(settings, "acme", path := Path("a").absolute())
    rewrite(path, **{"files/zeta.sqlite3": b"old", "files/zeta.sqlite3.made": b""})

    code, out, _ = tenantry("restore", "a", "--as", "zeta", "--json", "--with-templates")

    assert (0, ["zeta.sqlite3", "zeta.sqlite3.made"]) == (code, json.loads(out)["left_out"])
    assert {"static/a.css": b"body {}"} == tree(settings.data_dir / "zeta")
    assert acme.is_dir()


def test_restored_and_cloned_tenants_can_be_built(
    settings: HostSettings,
    things: Callable[..., None],
    tenantry: RunCommand,
    postgres_server: Postgres,
) -> None:
    """A restored or cloned tenant has the same rows, a fresh secret and its own URL prefix."""
    url = postgres_server.new_database()
    things(
        "acme", DATABASE_URI=url, URL_PREFIX="/clients/acme", API_KEY="x" * 9, APP_NAME="Acme Ltd"
    )
    assert 0 == tenantry("backup", "acme", "a.capsule", "--json")[0]

    cloned = tenantry("clone", "acme", "globex-2", "--json")
    restored = tenantry("restore", "a.capsule", "--as", "initech")
    again = tenantry("restore", "a.capsule", "--as", "initech")
    checked = tenantry("check")

    assert (0, "") == (cloned[0], cloned[2])
    printed = json.loads(cloned[1])
    assert ("/globex-2", {"a_first": 1, "things": 2}, ["API_KEY"]) == (
        printed["prefix"], printed["rows"], printed["missing_keys"]
    )  # fmt: skip
    assert url_of(settings, "globex-2").endswith("/globex-2")
    assert rows(url, "things") == rows(url_of(settings, "globex-2"), "things")
    assert (0, True) == (
        restored[0],
        "answers at /initech; 2 tables, 3 rows, 0 files." in restored[1],
    )
    assert "'API_KEY' is a secret, and capsules hold no secrets; set it again." in restored[2]
    assert (1, True) == (again[0], "initech.py exists" in again[2])
    assert 0 == checked[0], checked
    files = {
        name: (settings.tenants_dir / f"{name}.py").read_text() for name in ("initech", "globex-2")
    }
    assert all("Acme Ltd" in text for text in files.values())
    one, two = (load_tenant(settings, name)[0].secret_key for name in files)
    assert one != two


def test_a_clone_gets_a_schema_beside_a_schema(
    settings: HostSettings,
    things: Callable[..., None],
    tenantry: RunCommand,
    postgres_server: Postgres,
) -> None:
    """`clone` copies a tenant's PostgreSQL schema into a new schema of the same database."""
    url = postgres_server.new_database()
    with contextlib.closing(postgres_server.connect(url.rpartition("/")[2])) as connection:
        connection.execute("CREATE SCHEMA acme")
    things("acme", DATABASE_URI=f"{url}?options=-csearch_path%3Dacme")

    assert 0 == tenantry("clone", "acme", "globex")[0]

    assert 2 == len(rows(url, "globex.things"))
    assert rows(url, "acme.things") == rows(url_of(settings, "globex"), "things")


def test_a_clone_that_fails_drops_its_database(
    things: Callable[..., None],
    tenantry: RunCommand,
    postgres_server: Postgres,
    write_tenant: Callable[..., Path],
) -> None:
    """If the URL prefix of a clone is taken, no database and no secret remain."""
    things("acme", DATABASE_URI=postgres_server.new_database())
    write_tenant("zeta", URL_PREFIX="/taken")

    code, _, err = tenantry("clone", "acme", "made-for-nothing", "--prefix", "/taken")

    assert (1, True) == (code, "/taken is the prefix of tenant 'zeta'" in err)
    with contextlib.closing(postgres_server.connect()) as connection:
        found = connection.execute("SELECT FROM pg_database WHERE datname = 'made-for-nothing'")
        assert None is found.fetchone()


def test_a_password_goes_to_a_secret(
    settings: HostSettings,
    things: Callable[..., None],
    tenantry: RunCommand,
    postgres_server: Postgres,
) -> None:
    """If a database URL contains a password, `restore` stores the URL as a secret."""
    things("acme")
    tenantry("backup", "acme", "a")
    url = postgres_server.new_database().replace("postgres@", "postgres:MARKER@")

    code, out, _ = tenantry("restore", "a", "--as", "globex", "--database", url)

    assert 0 == code
    assert out.endswith(f"database: {url.replace('MARKER', '********')}\n"), out
    text = (settings.tenants_dir / "globex.py").read_text()
    assert "MARKER" not in text
    assert "DATABASE_URI = secret('GLOBEX_DATABASE_URI')" in text
    assert 0o600 == (settings.data_dir / "secrets/GLOBEX_DATABASE_URI").stat().st_mode & 0o777
    assert 2 == len(rows(url_of(settings, "globex"), "things"))


@pytest.mark.parametrize(
    ("variable", "remedy"),
    [
        ("GLOBEX_SECRET_KEY", "or choose another name."),
        ("GLOBEX_DATABASE_URI", "and use --database GLOBEX_DATABASE_URI."),
    ],
)
def test_a_secret_that_is_set_elsewhere_ends_the_restore(  # noqa: PLR0917 - pytest fixtures are parameters
    settings: HostSettings,
    acme: Path,
    tenantry: RunCommand,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    remedy: str,
) -> None:
    """`restore` rejects a secret that is set elsewhere, because the new tenant would use it."""
    backup(settings, "acme", Path("a").absolute())
    before = sorted(tree(Path()))
    monkeypatch.setenv(variable, "postgresql+psycopg://user:MARKER@old/db")
    url = "postgresql+psycopg://user:MARKER@new/db"

    code, _, err = tenantry("restore", "a", "--as", "globex", "--database", url)

    assert (1, True) == (code, f"the value of environment variable {variable}, " in err), err
    assert err.endswith(f"{remedy}\n")
    assert "MARKER" not in err
    assert (before, True) == (sorted(tree(Path())), acme.is_dir())


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("backup", "nobody", "x"), 2, "no tenant named 'nobody'"),
        (("backup", "acme", "instance/acme/x"), 2, "in the tenant's own folder"),
        (("backup", "acme", "away/x"), 1, "is not a folder"),
        (("restore", "missing"), 1, "cannot read missing"),
        (("restore", "a"), 1, "acme.py exists"),
        (("restore", "a", "--as", "A/.."), 2, "a tenant's name has 1 to 63 characters"),
        (("restore", "a", "--as", "b", "--prefix", "b"), 2, "'--prefix': 'b': expected"),
        (("restore", "a", "--as", "b", "--prefix", "/acme"), 1, "is the prefix of tenant 'acme'"),
        (("restore", "a", "--as", "b", "--database", "nonsense://"), 2, "unknown dialect"),
        (("restore", "a", "--as", "b", "--database", "NO_SUCH"), 1, "no secret 'NO_SUCH'"),
        (("restore", "a", "--as", "b", "--database", "sqlite:///a"), 1, "already exists"),
        (("clone", "acme", "acme"), 1, "acme.py exists"),
        (("clone", "acme", "../x"), 2, "a tenant's name has 1 to 63 characters"),
    ],
)
def test_a_mistake_is_one_line(  # noqa: PLR0917 - pytest fixtures are parameters
    settings: HostSettings,
    acme: Path,
    tenantry: RunCommand,
    words: tuple[str, ...],
    code: int,
    reason: str,
) -> None:
    """A mistake in a `backup`, `restore` or `clone` command prints one line and creates nothing."""
    backup(settings, "acme", Path("a").absolute())
    before = sorted(tree(Path()))

    ended, out, err = tenantry(*words)

    errors = [line for line in err.splitlines() if line.startswith("tenantry: ")]
    assert (code, "", 1, True) == (ended, out, len(errors), reason in errors[-1]), err
    assert before == sorted(tree(Path()))
    assert acme.is_dir()


def test_a_tenant_file_over_the_limit_is_not_written(
    settings: HostSettings, tenantry: RunCommand
) -> None:
    """`restore` rejects a tenant file of more than 1 MiB, which no host would read."""
    config = dump_value({"BLUEPRINTS": ["landing"], "WORDS": "x" * FILE_LIMIT_BYTES}).encode()
    Path("a").write_bytes(sealed(archive(headers(config))))

    code, _, err = tenantry("restore", "a", "--as", "globex")

    assert (1, True) == (code, "globex.py would be larger than 1 MiB" in err)
    assert {} == tree(settings.tenants_dir)
    assert {} == tree(settings.data_dir)


def test_only_a_file_is_replaced(acme: Path, tenantry: RunCommand) -> None:
    """`backup` rejects an output path that is a symbolic link or a pipe, and keeps that file."""
    Path("link").symlink_to("/dev/null")
    os.mkfifo("pipe")

    for name in ("link", "pipe"):
        code, _, err = tenantry("backup", "acme", name)
        assert (1, True) == (code, f"{name} is not a regular file" in err)

    assert Path("link").is_symlink()
    assert Path("pipe").is_fifo()
    assert acme.is_dir()


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE mine (id int)", "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'"],
    ids=["table", "function"],
)
def test_a_full_database_is_not_restored_into(
    things: Callable[..., None],
    tenantry: RunCommand,
    postgres_server: Postgres,
    statement: str,
) -> None:
    """`restore` rejects a database that contains a table or a function, and leaves it unchanged."""
    things("acme")
    tenantry("backup", "acme", "a")
    url = postgres_server.new_database()
    with create_engine(url, poolclass=NullPool).begin() as connection:
        connection.exec_driver_sql(statement)

    code, _, err = tenantry("restore", "a", "--as", "initech", "--database", url)

    assert (1, True) == (code, "is not empty: it holds " in err), err
    with create_engine(url, poolclass=NullPool).begin() as connection:
        connection.exec_driver_sql(" ".join(["DROP", *statement.split()[1:3]]).partition("(")[0])


def test_a_capsule_goes_to_standard_output(
    settings: HostSettings, acme: Path, tmp_path: Path
) -> None:
    """`backup NAME -` writes only the capsule, which can be restored like a capsule file."""
    assert acme.exists()
    command = [sys.executable, "-m", "tenantry", "backup", "acme", "-"]
    with (tmp_path / "a").open("wb") as file:
        code = subprocess.run(command, env=environment(settings), stdout=file, check=False)
    shown = subprocess.run(
        [*command[:3], "restore", str(tmp_path / "a"), "--as", "globex", "--json"],
        env=environment(settings), capture_output=True, check=False,
    )  # fmt: skip

    assert (0, 0) == (code.returncode, shown.returncode), shown.stderr
