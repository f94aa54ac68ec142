"""Capsules: what goes in comes out, on both engines; what is not whole, or not ours, is refused."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import NullPool, create_engine, make_url
from werkzeug.test import Client

from capsule_files import archive, heads, parts_of, quiet, rewritten, sealed, tree
from conftest import KEY, tenant_text
from image_files import picture
from image_tables import migrate
from postgres import Postgres
from servers import wait_until
from shops import WriteShop, first, write_shop_fixture
from tenantry.capsules import Capsule, RestoreStaging, read_capsule, restore_capsule, write_capsule
from tenantry.capsules.archive import CapsuleError
from tenantry.capsules.configuration import render_tenant_file
from tenantry.capsules.json_values import dump_value
from tenantry.capsules.staging import backup_staging
from tenantry.capsules.tenant_folder import FolderSnapshot
from tenantry.cli import main
from tenantry.host import Host
from tenantry.settings import HostSettings
from tenantry.tenants.file import FILE_LIMIT_BYTES
from tenantry.tenants.lookup import load_tenant

pytestmark = pytest.mark.live

__all__ = ["write_shop_fixture"]

LIVE = pytest.mark.live  # each takes some seconds: run with `-m live`

Tenantry = Callable[..., tuple[int, str, str]]

KINDS = """\
import sqlalchemy as sa
from alembic import op
revision = "shop_1"
down_revision = None
branch_labels = ("shop",)
def upgrade():
    op.create_table(
        "things",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("parent", sa.Integer, sa.ForeignKey("things.id")),
        sa.Column("key", sa.Uuid),
        sa.Column("name", sa.String(50)),
        sa.Column("is_on", sa.Boolean),
        sa.Column("price", sa.Numeric(12, 4)),
        sa.Column("weight", sa.Float),
        sa.Column("made", sa.DateTime),
        sa.Column("day", sa.Date),
        sa.Column("data", sa.LargeBinary),
        sa.Column("extra", sa.JSON),
    )
    op.create_table(
        "a_first",  # its name comes before that of the table it refers to
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("thing", sa.Integer, sa.ForeignKey("things.id"), nullable=False),
    )
    op.execute("INSERT INTO things (id, name) VALUES (77, 'by the migration')")
def downgrade():
    pass
"""

THINGS = (
    (
        "INSERT INTO things VALUES (1, 2, '0123456789abcdef0123456789abcdef', 'ä\n\t\\', {true}, "
        "12345.6789, 0.1, '2026-01-02 03:04:05.000006', '2026-01-02', {bytes}, "
        "'{{\"a\": [1.5, null]}}')"
    ),
    "INSERT INTO things VALUES (2, NULL, NULL, '', {false}, -0.5, 1e300, NULL, NULL, NULL, NULL)",
    "INSERT INTO a_first VALUES (1, 2)",
)


@pytest.fixture(name="tenantry")
def _tenantry(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Tenantry:
    """Return a function that runs a command in process: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tenantry", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capfd.readouterr()

    return run


@pytest.fixture(name="acme")
def _acme(settings: HostSettings, write_tenant: Callable[..., Path]) -> Path:
    """Return the folder of a tenant that has a file and no database."""
    write_tenant("acme")
    folder = settings.data_dir / "acme"
    (folder / "static").mkdir(parents=True)
    (folder / "static/a.css").write_text("body {}")
    (folder / "operator_state.json").write_text("{}")
    return folder


def save(settings: HostSettings, name: str, path: Path) -> Capsule:
    """Write a tenant's capsule and read it."""
    tenant, loaded = load_tenant(settings, name)
    write_capsule(tenant, loaded, settings.data_dir, path, quiet)
    return read_capsule(path, quiet)


def make(capsule: Capsule, settings: HostSettings, name: str, url: str | None = None) -> None:
    """Restore a capsule, and write its tenant file."""
    database = None if url is None else make_url(url)
    with (
        RestoreStaging(settings.data_dir, name) as place,
        restore_capsule(capsule, place, database, quiet) as made,
        made.commit(),
    ):
        keys = dict(capsule.config) | ({} if url is None else {"DATABASE_URI": url})
        path = settings.tenants_dir / f"{name}.py"
        path.write_text(tenant_text(name, **keys))


def test_another_program_reads_a_capsule(
    settings: HostSettings, acme: Path, tmp_path: Path
) -> None:
    """It is a tar archive in zstd without the host's own files; only its owner may read it."""
    path = tmp_path / "a.capsule"
    path.write_text("an older one")

    save(settings, "acme", path)

    assert ["capsule.json", "config.json", "files/static/a.css", "manifest.jsonl"] == [
        *parts_of(path)
    ]
    assert 0o600 == path.stat().st_mode & 0o777
    assert {"a.capsule", "instance", "tenants"} == {one.name for one in tmp_path.iterdir()}
    assert [] == list((settings.data_dir / ".capsules").iterdir())
    assert acme.is_dir()


def test_a_cut_or_altered_capsule_is_refused(
    settings: HostSettings, acme: Path, tmp_path: Path
) -> None:
    """Wherever it is cut and whichever byte is another one: nothing is made of it."""
    (acme / "big").write_bytes(random.Random(1).randbytes(5000))
    path, spoilt = tmp_path / "a.capsule", tmp_path / "b.capsule"
    save(settings, "acme", path)
    whole = path.read_bytes()
    places = [*range(60), *range(60, len(whole) - 60, 97), *range(len(whole) - 60, len(whole))]
    accepted = []

    for place in places:
        altered = bytearray(whole)
        altered[place] ^= 1 << place % 8
        for content in (whole[:place], bytes(altered), whole + whole[:place] if place else b""):
            spoilt.write_bytes(content)
            with contextlib.suppress(CapsuleError):
                read_capsule(spoilt, quiet)
                accepted.append(place)

    assert [] == accepted


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"capsule.json": b"{}"}, "'format': Field required"),
        ({"config.json": b"{"}, "config.json: no value"),
        ({"config.json": dump_value({"SECRET_KEY": "mine"}).encode()}, "'SECRET_KEY' is in no"),
        ({"config.json": dump_value({"A = 1; B": 1}).encode()}, "no key of a tenant file"),
        ({"config.json": dump_value({"\uff33ECRET_KEY": "mine"}).encode()}, "no key of a tenant"),
        ({"files/../out": b""}, "none of a tenant's file"),
        ({"files//etc/out": b""}, "none of a tenant's file"),
        ({"files/a/./b": b""}, "none of a tenant's file"),
        ({"files/": b""}, "none of a tenant's file|in no capsule"),
        ({"files/operator_state.json": b""}, "belongs in no capsule"),
        ({"tables/other/000001.jsonl": b""}, "not known here"),
    ],
)  # fmt: skip
def test_what_is_not_ours_is_refused(
    settings: HostSettings, acme: Path, tmp_path: Path, changes: Mapping[str, bytes], reason: str
) -> None:
    """A capsule with good hashes and bad content is refused before anything is made."""
    path = tmp_path / "a.capsule"
    save(settings, "acme", path)
    rewritten(path, **changes)

    with pytest.raises(CapsuleError, match=reason):
        read_capsule(path, quiet)

    assert acme.is_dir()


def test_no_secret_is_in_a_capsule(
    settings: HostSettings, write_tenant: Callable[..., Path], postgres_url: str, tmp_path: Path
) -> None:
    """Keys, passwords and what `secret(…)` returned are nowhere in it, and their keys are named."""
    url = postgres_url.replace("postgres@", "postgres:MARKER-database@")
    keys = {"SECRET_KEY": f"MARKER-{KEY}", "SECRET_KEY_FALLBACKS": [f"MARKER-old-{KEY}"]}
    keys |= {"DATABASE_URI": url, "MAIL": {"password": "MARKER-mail"}, "API_KEY": "MARKER-api"}
    keys |= {"BROKER": "redis://:MARKER-redis@host/0", "ECHO": f"is MARKER-{KEY}", "THEME": "dark"}
    write_tenant("acme", **keys)

    capsule = save(settings, "acme", path := tmp_path / "a.capsule")

    assert b"MARKER" not in b"".join(parts_of(path).values())
    assert {"BLUEPRINTS": ["landing"], "THEME": "dark"} == capsule.config
    assert ["API_KEY", "BROKER", "ECHO", "MAIL"] == capsule.metadata.secret_keys


def test_a_tenant_without_its_guards_is_not_open() -> None:
    """What was closed to strangers and lost its keys on the way is restored disabled."""
    text = render_tenant_file("acme", {"ENABLED": True, "WHEN": timedelta(1)}, {}, ["CLIENTS"])
    values: dict[str, Any] = {}

    exec(text, values)

    assert (False, timedelta(1)) == (values["ENABLED"], values["WHEN"])


# -- databases ------------------------------------------------------------------------------------


def rows(url: str, table: str) -> list[tuple[Any, ...]]:
    """Return a table's rows, as the driver has them."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        found = connection.exec_driver_sql(f"SELECT * FROM {table} ORDER BY id")
        return [tuple(row) for row in found]


def url_of(settings: HostSettings, name: str) -> str:
    """Return the URL of a tenant's database."""
    return load_tenant(settings, name)[0].database_uri.get_secret_value()


@pytest.fixture(name="things")
def _things(
    settings: HostSettings, write_shop: WriteShop, write_tenant: Callable[..., Path]
) -> Callable[..., None]:
    """Return a function that makes a tenant with a row of every kind of column."""

    def write(name: str, **keys: object) -> None:
        write_tenant(name, BLUEPRINTS=[write_shop(KINDS)], **keys)
        url = url_of(settings, name)
        (settings.data_dir / name).mkdir(parents=True, exist_ok=True)
        with create_engine(url, poolclass=NullPool).begin() as connection:
            context = MigrationContext.configure(connection)
            revision: dict[str, Any] = {}
            exec(KINDS, revision)
            with Operations.context(context):
                revision["upgrade"]()
            context._ensure_version_table()
            connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('shop_1')")
        is_server_database = "DATABASE_URI" in keys
        words = {"true": "true", "false": "false", "bytes": r"'\x00ff'"}
        words = words if is_server_database else {"true": "1", "false": "0", "bytes": "x'00ff'"}
        with create_engine(url, poolclass=NullPool).begin() as connection:
            connection.exec_driver_sql("DELETE FROM things")
            for statement in (THINGS[1], THINGS[0], THINGS[2]):
                text = statement.format(**words)
                connection.exec_driver_sql(text.replace("%", "%%") if is_server_database else text)

    return write


def test_rows_go_between_engines(
    settings: HostSettings, things: Callable[..., None], postgres_server: Postgres, tmp_path: Path
) -> None:
    """Every value is exact, SQLite → PostgreSQL → SQLite; new rows get numbers of their own."""
    things("acme")
    one, two = postgres_server.new_database(), postgres_server.new_database()

    make(save(settings, "acme", tmp_path / "1"), settings, "globex", one)
    capsule = save(settings, "globex", tmp_path / "2")
    make(capsule, settings, "initech")
    make(capsule, settings, "umbrella", two)

    for table in ("things", "a_first"):
        assert rows(url_of(settings, "acme"), table) == rows(url_of(settings, "initech"), table)
        assert rows(one, table) == rows(two, table)
    assert (
        1, 2, uuid.UUID("0123456789abcdef0123456789abcdef"), "ä\n\t\\", True,
        Decimal("12345.6789"), 0.1,
        datetime(2026, 1, 2, 3, 4, 5, 6), date(2026, 1, 2), b"\0\xff", {"a": [1.5, None]},  # noqa: DTZ001
    ) == rows(one, "things")[0]  # fmt: skip
    with create_engine(two, poolclass=NullPool).begin() as connection:
        ask = connection.exec_driver_sql
        assert "shop_1" == ask("SELECT version_num FROM alembic_version").scalar()
        assert 3 == ask("INSERT INTO things (name) VALUES ('new') RETURNING id").scalar()
        assert 0 == ask("SELECT count(*) FROM pg_constraint WHERE condeferrable").scalar()


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("postgresql", marks=LIVE)])
def test_a_restore_that_fails_leaves_nothing(
    settings: HostSettings,
    things: Callable[..., None],
    postgres_server: Postgres,
    tmp_path: Path,
    engine: str,
) -> None:
    """A bad row, or whatever fails after the rows: no folder, no file, an empty database."""
    things("acme")
    capsule = save(settings, "acme", path := tmp_path / "a")
    url = None if engine == "sqlite" else postgres_server.new_database()
    database = None if url is None else make_url(url)
    before = sorted(tree(settings.data_dir))

    with (
        pytest.raises(ZeroDivisionError),
        RestoreStaging(settings.data_dir, "globex") as place,
        restore_capsule(capsule, place, database, quiet),
    ):
        raise ZeroDivisionError
    path = Path(shutil.copy(path, tmp_path / "b"))
    rewritten(path, **{"tables/a_first/000001.jsonl": b"[1,99]\n"})
    with pytest.raises(CapsuleError):
        make(read_capsule(path, quiet), settings, "globex", url)

    assert before == sorted(tree(settings.data_dir))
    if url is not None:
        make(capsule, settings, "globex", url)  # for which it must be empty


def test_tables_of_unknown_revisions_are_refused(
    settings: HostSettings, things: Callable[..., None], write_shop: WriteShop, tmp_path: Path
) -> None:
    """Code that does not know what the tables were at makes nothing."""
    things("acme")
    capsule = save(settings, "acme", tmp_path / "a")
    write_shop(first("other_1"))

    with pytest.raises(CapsuleError, match="at shop_1, which this code does not know"):
        make(capsule, settings, "globex")

    assert not (settings.data_dir / "globex").exists()


def test_a_database_that_is_lost_is_no_empty_one(
    settings: HostSettings, things: Callable[..., None], tmp_path: Path
) -> None:
    """A SQLite file that was there and is gone does not make a capsule without rows."""
    things("acme")
    file = settings.data_dir / "acme/acme.sqlite3"
    file.with_name("acme.sqlite3.made").touch()
    file.unlink()

    with pytest.raises(CapsuleError, match="is gone"):
        save(settings, "acme", tmp_path / "a")


def test_a_database_of_before_is_left_out(
    settings: HostSettings,
    write_tenant: Callable[..., Path],
    tenantry: Tenantry,
) -> None:
    """A default database that is not used any more is named, and in no capsule's way."""
    folder = settings.data_dir / "acme"
    folder.mkdir(parents=True)
    write_tenant("acme", BLUEPRINTS=["landing"], DATABASE_URI=f"sqlite:///{folder}/main.db")
    (folder / "main.db").touch()
    old = ["acme.sqlite3", "acme.sqlite3-wal", "acme.sqlite3.made"]
    for name in (*old, "other.sqlite3"):
        (folder / name).write_text("old")

    told = json.loads(tenantry("backup", "acme", "a", "--json")[1])
    shutil.rmtree(folder)
    (settings.tenants_dir / "acme.py").unlink()
    restored = tenantry("restore", "a")

    assert old == told["left_out"]
    assert 0 == restored[0], restored
    assert {"other.sqlite3": b"old"} == tree(folder)


def test_an_older_capsule_with_a_database_of_before_is_restored(
    settings: HostSettings, acme: Path, tenantry: Tenantry
) -> None:
    """What would be the default database of the new tenant is named and left out."""
    save(settings, "acme", path := Path("a").absolute())
    rewritten(path, **{"files/zeta.sqlite3": b"old", "files/zeta.sqlite3.made": b""})

    code, out, _ = tenantry("restore", "a", "--as", "zeta", "--json")

    assert (0, ["zeta.sqlite3", "zeta.sqlite3.made"]) == (code, json.loads(out)["left_out"])
    assert {"static/a.css": b"body {}"} == tree(settings.data_dir / "zeta")
    assert acme.is_dir()


# -- while it serves ------------------------------------------------------------------------------


def test_a_copy_waits_for_whoever_changes_files_and_rows(tmp_path: Path) -> None:
    """The snapshot begins while nobody holds a folder's lock, and what came before it is there."""
    folder = tmp_path / "acme/images/ab"
    folder.mkdir(parents=True)
    (folder / "1").touch()
    with backup_staging(tmp_path, "acme") as staged:
        copy = FolderSnapshot(tmp_path / "acme", staged, "")

        def begin() -> None:
            if not (folder / "2").exists():  # somebody was quicker than the first look
                (folder / "2").touch()
                (folder.parent / "cd").mkdir()  # in a folder that nobody had locked
                (folder / "1").unlink()

        copy.freeze(begin)

        assert ["images/ab/2"] == [path for path, _ in copy.files()]


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("postgresql", marks=LIVE)])
def test_a_backup_under_write_load_is_of_one_moment(
    settings: HostSettings,
    write_tenant: Callable[..., Path],
    postgres_server: Postgres,
    tmp_path: Path,
    engine: str,
) -> None:
    """While images come and go, each row of the capsule has its file, whole, and no file more."""
    keys = {} if engine == "sqlite" else {"DATABASE_URI": postgres_server.new_database()}
    write_tenant("acme", BLUEPRINTS=["images"], **keys)
    if keys:
        migrate(keys["DATABASE_URI"])
    url = None if engine == "sqlite" else postgres_server.new_database()
    host = Host(settings)
    host.load()
    with contextlib.closing(host), writing(host) as wait_for_more:
        for number in range(3):
            wait_for_more()
            capsule = save(settings, "acme", tmp_path / f"{number}")
    make(capsule, settings, "globex", url)

    found = {row[6]: row[3] for row in rows(url_of(settings, "globex"), "images")}
    files = {
        path.name: path.read_bytes()
        for path in (settings.data_dir / "globex/images").rglob("*")
        if path.is_file()
    }
    assert len(found) == capsule.summary.files > 0
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == {
        name: name for name in files
    }
    assert found == {name: len(content) for name, content in files.items()}


@contextlib.contextmanager
def writing(host: Host) -> Iterator[Callable[[], None]]:
    """Upload and delete images in threads; yield what waits until more have come and gone."""
    stop = threading.Event()
    counts = [0, 0, 0]
    wrong: list[str] = []

    def work(number: int) -> None:
        client, kept = Client(host), list[str]()
        while not stop.is_set():
            answer = client.post("/acme/images/", data=picture(size=(20, 20)))
            if answer.status_code != 201:
                wrong.append(answer.text)
                return
            kept.append(answer.json["id"])  # type: ignore[index]
            if len(kept) > number:
                client.delete(f"/acme/images/{kept.pop()}")
            counts[number] += 1

    def wait_for_more() -> None:
        before = sum(counts)
        wait_until(lambda: bool(wrong) or sum(counts) > before + 10)

    client = Client(host)  # the first request makes the tables
    wait_until(lambda: client.get("/acme/images/").status_code == 200)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield wait_for_more
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [] == wrong


# -- commands -------------------------------------------------------------------------------------


@LIVE
def test_backup_restore_and_clone_make_tenants_that_serve(
    settings: HostSettings,
    things: Callable[..., None],
    tenantry: Tenantry,
    postgres_server: Postgres,
) -> None:
    """A tenant goes to a file and comes back under its name or another, and beside its database."""
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
    made = json.loads(cloned[1])
    assert ("/globex-2", {"a_first": 1, "things": 2}, ["API_KEY"]) == (
        made["prefix"], made["rows"], made["missing_keys"]
    )  # fmt: skip
    assert url_of(settings, "globex-2").endswith("/globex-2")
    assert rows(url, "things") == rows(url_of(settings, "globex-2"), "things")
    assert (0, True) == (restored[0], "serves /initech; 2 tables, 3 rows, 0 files." in restored[1])
    assert "'API_KEY' is secret and was in no capsule; write it again." in restored[2]
    assert (1, True) == (again[0], "initech.py is there already" in again[2])
    assert 0 == checked[0], checked
    files = {
        name: (settings.tenants_dir / f"{name}.py").read_text() for name in ("initech", "globex-2")
    }
    assert all("Acme Ltd" in text for text in files.values())
    one, two = (load_tenant(settings, name)[0].secret_key for name in files)
    assert one != two


@LIVE
def test_a_clone_gets_a_schema_beside_a_schema(
    settings: HostSettings,
    things: Callable[..., None],
    tenantry: Tenantry,
    postgres_server: Postgres,
) -> None:
    """A tenant with a schema of its own is cloned into another one of the same database."""
    url = postgres_server.new_database()
    with contextlib.closing(postgres_server.connect(url.rpartition("/")[2])) as connection:
        connection.execute("CREATE SCHEMA acme")
    things("acme", DATABASE_URI=f"{url}?options=-csearch_path%3Dacme")

    assert 0 == tenantry("clone", "acme", "globex")[0]

    assert 2 == len(rows(url, "globex.things"))
    assert rows(url, "acme.things") == rows(url_of(settings, "globex"), "things")


def test_a_clone_that_fails_drops_its_database(
    things: Callable[..., None],
    tenantry: Tenantry,
    postgres_server: Postgres,
    write_tenant: Callable[..., Path],
) -> None:
    """A prefix that is taken: no database is left, and no secret."""
    things("acme", DATABASE_URI=postgres_server.new_database())
    write_tenant("zeta", URL_PREFIX="/taken")

    code, _, err = tenantry("clone", "acme", "made-for-nothing", "--prefix", "/taken")

    assert (1, True) == (code, "/taken is the prefix of tenant 'zeta'" in err)
    with contextlib.closing(postgres_server.connect()) as connection:
        found = connection.execute("SELECT FROM pg_database WHERE datname = 'made-for-nothing'")
        assert None is found.fetchone()


@LIVE
def test_a_password_is_in_no_tenant_file(
    settings: HostSettings,
    things: Callable[..., None],
    tenantry: Tenantry,
    postgres_server: Postgres,
) -> None:
    """A URL with a password goes to `<data>/secrets`; the name of a secret stays one."""
    things("acme")
    tenantry("backup", "acme", "a")
    url = postgres_server.new_database().replace("postgres@", "postgres:MARKER@")

    code, out, _ = tenantry("restore", "a", "--as", "globex", "--database", url)

    assert 0 == code
    assert out.endswith(f"its database: {url.replace('MARKER', '********')}\n"), out
    text = (settings.tenants_dir / "globex.py").read_text()
    assert "MARKER" not in text
    assert "DATABASE_URI = secret('GLOBEX_DATABASE_URI')" in text
    assert 0o600 == (settings.data_dir / "secrets/GLOBEX_DATABASE_URI").stat().st_mode & 0o777
    assert 2 == len(rows(url_of(settings, "globex"), "things"))


@pytest.mark.parametrize(
    ("variable", "remedy"),
    [
        ("GLOBEX_SECRET_KEY", "or choose another name."),
        ("GLOBEX_DATABASE_URI", "and say --database GLOBEX_DATABASE_URI."),
    ],
)
def test_what_would_not_count_is_not_written(  # noqa: PLR0917 - fixtures and cases
    settings: HostSettings,
    acme: Path,
    tenantry: Tenantry,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    remedy: str,
) -> None:
    """A secret that is set elsewhere would be the tenant's key, or name another database."""
    save(settings, "acme", Path("a").absolute())
    before = sorted(tree(Path()))
    monkeypatch.setenv(variable, "postgresql+psycopg://user:MARKER@old/db")
    url = "postgresql+psycopg://user:MARKER@new/db"

    code, _, err = tenantry("restore", "a", "--as", "globex", "--database", url)

    assert (1, True) == (code, f"is taken from environment variable {variable}, " in err), err
    assert err.endswith(f"{remedy}\n")
    assert "MARKER" not in err
    assert (before, True) == (sorted(tree(Path())), acme.is_dir())


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("backup", "nobody", "x"), 2, "no tenant named 'nobody'"),
        (("backup", "acme", "instance/acme/x"), 2, "in the tenant's own folder"),
        (("backup", "acme", "away/x"), 1, "is no folder"),
        (("restore", "missing"), 1, "cannot read missing"),
        (("restore", "a"), 1, "acme.py is there already"),
        (("restore", "a", "--as", "A/.."), 2, "a tenant's name begins with"),
        (("restore", "a", "--as", "b", "--prefix", "b"), 2, "--prefix 'b'"),
        (("restore", "a", "--as", "b", "--prefix", "/acme"), 1, "is the prefix of tenant 'acme'"),
        (("restore", "a", "--as", "b", "--database", "nonsense://"), 2, "unknown dialect"),
        (("restore", "a", "--as", "b", "--database", "NO_SUCH"), 1, "no secret 'NO_SUCH'"),
        (("restore", "a", "--as", "b", "--database", "sqlite:///a"), 1, "is there already"),
        (("clone", "acme", "acme"), 1, "acme.py is there already"),
        (("clone", "acme", "../x"), 2, "a tenant's name begins with"),
    ],
)
def test_what_an_operator_gets_wrong_is_one_line(  # noqa: PLR0917 - fixtures and cases
    settings: HostSettings,
    acme: Path,
    tenantry: Tenantry,
    words: tuple[str, ...],
    code: int,
    reason: str,
) -> None:
    """Each mistake is named, with the exit code of the contract, and nothing is made."""
    save(settings, "acme", Path("a").absolute())
    before = sorted(tree(Path()))

    ended, out, err = tenantry(*words)

    told = [line for line in err.splitlines() if line.startswith("tenantry: ")]
    assert (code, "", 1, True) == (ended, out, len(told), reason in told[-1]), err
    assert before == sorted(tree(Path()))
    assert acme.is_dir()


def test_a_capsule_that_makes_too_large_a_tenant_file_is_refused(
    settings: HostSettings, tenantry: Tenantry
) -> None:
    """A tenant file has 1 MiB at most: nothing is made that no host would read."""
    config = dump_value({"BLUEPRINTS": ["landing"], "WORDS": "x" * FILE_LIMIT_BYTES}).encode()
    Path("a").write_bytes(sealed(archive(heads(config))))

    code, _, err = tenantry("restore", "a", "--as", "globex")

    assert (1, True) == (code, "globex.py would be over 1 MiB" in err)
    assert {} == tree(settings.tenants_dir)
    assert {} == tree(settings.data_dir)


def test_only_a_file_is_replaced(acme: Path, tenantry: Tenantry) -> None:
    """A link, which `/dev/stdout` is, and whatever else is no file stays what it is."""
    Path("link").symlink_to("/dev/null")
    os.mkfifo("pipe")

    for name in ("link", "pipe"):
        code, _, err = tenantry("backup", "acme", name)
        assert (1, True) == (code, f"{name} is there, and no ordinary file" in err)

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
    tenantry: Tenantry,
    postgres_server: Postgres,
    statement: str,
) -> None:
    """A database that holds something, of whatever kind, is refused, and still holds it."""
    things("acme")
    tenantry("backup", "acme", "a")
    url = postgres_server.new_database()
    with create_engine(url, poolclass=NullPool).begin() as connection:
        connection.exec_driver_sql(statement)

    code, _, err = tenantry("restore", "a", "--as", "initech", "--database", url)

    assert (1, True) == (code, "is not empty: it holds " in err), err
    with create_engine(url, poolclass=NullPool).begin() as connection:
        connection.exec_driver_sql(" ".join(["DROP", *statement.split()[1:3]]).partition("(")[0])
