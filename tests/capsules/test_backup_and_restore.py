"""`tenantry backup` and `restore` save and restore a tenant on SQLite and on PostgreSQL."""

import contextlib
import hashlib
import random
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine, make_url
from werkzeug.test import Client

from capsule_files import members_of, quiet, rewrite, tree
from capsule_tenants import acme_fixture, backup, restore, rows, things_fixture, url_of
from conftest import KEY
from image_files import picture
from image_tables import migrate
from postgres import Postgres
from servers import wait_until
from shops import WriteShop, first, write_shop_fixture
from tenantry.capsules import backup_staging, read_capsule
from tenantry.capsules.archive import CapsuleError
from tenantry.capsules.configuration import render_tenant_file
from tenantry.capsules.json_values import dump_value
from tenantry.capsules.restore import restore_capsule
from tenantry.capsules.staging import RestoreStaging
from tenantry.capsules.tenant_folder import FolderSnapshot
from tenantry.host import Host
from tenantry.settings import HostSettings

pytestmark = pytest.mark.live

__all__ = ["acme_fixture", "things_fixture", "write_shop_fixture"]


def test_another_program_reads_a_capsule(
    settings: HostSettings, acme: Path, tmp_path: Path
) -> None:
    """Other programs can read a backup file (a tar archive in zstd).

    Only the owner of the file may read the file.
    """
    path = tmp_path / "a.capsule"
    path.write_text("an older one")

    backup(settings, "acme", path)

    assert ["capsule.json", "config.json", "files/static/a.css", "manifest.jsonl"] == [
        *members_of(path)
    ]
    assert 0o600 == path.stat().st_mode & 0o777
    assert {"a.capsule", "instance", "tenants"} == {path.name for path in tmp_path.iterdir()}
    assert [] == list((settings.data_dir / ".capsules").iterdir())
    assert acme.is_dir()


def test_a_shortened_or_altered_capsule_is_rejected(
    settings: HostSettings, acme: Path, tmp_path: Path
) -> None:
    """A backup file with any byte removed, changed or added is rejected."""
    (acme / "big").write_bytes(random.Random(1).randbytes(5000))
    path, spoilt = tmp_path / "a.capsule", tmp_path / "b.capsule"
    backup(settings, "acme", path)
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
        ({"config.json": b"{"}, "config.json: not a value"),
        ({"config.json": dump_value({"SECRET_KEY": "mine"}).encode()}, "'SECRET_KEY' is never"),
        ({"config.json": dump_value({"A = 1; B": 1}).encode()}, "not a key of a tenant file"),
        ({"config.json": dump_value({"\uff33ECRET_KEY": "mine"}).encode()}, "not a key"),
        ({"files/../out": b""}, "not the path of a file"),
        ({"files//etc/out": b""}, "not the path of a file"),
        ({"files/a/./b": b""}, "not the path of a file"),
        ({"files/": b""}, "not the path of a file"),
        ({"files/operator_state.json": b""}, "never part of a capsule"),
        ({"tables/other/000001.jsonl": b""}, "this version does not know"),
    ],
)  # fmt: skip
def test_untrusted_content_is_rejected(
    settings: HostSettings, acme: Path, tmp_path: Path, changes: Mapping[str, bytes], reason: str
) -> None:
    """A restore rejects malicious content before creating any file, even if all hashes match."""
    path = tmp_path / "a.capsule"
    backup(settings, "acme", path)
    rewrite(path, **changes)

    with pytest.raises(CapsuleError, match=reason):
        read_capsule(path, quiet)

    assert acme.is_dir()


def test_no_secret_is_in_a_capsule(
    settings: HostSettings, write_tenant: Callable[..., Path], postgres_url: str, tmp_path: Path
) -> None:
    """A backup file contains no secret keys or passwords, only the names of omitted keys."""
    url = postgres_url.replace("postgres@", "postgres:MARKER-database@")
    keys = {"SECRET_KEY": f"MARKER-{KEY}", "SECRET_KEY_FALLBACKS": [f"MARKER-old-{KEY}"]}
    keys |= {"DATABASE_URI": url, "MAIL": {"password": "MARKER-mail"}, "API_KEY": "MARKER-api"}
    keys |= {"BROKER": "redis://:MARKER-redis@host/0", "ECHO": f"is MARKER-{KEY}", "THEME": "dark"}
    write_tenant("acme", **keys)

    capsule = backup(settings, "acme", path := tmp_path / "a.capsule")

    assert b"MARKER" not in b"".join(members_of(path).values())
    assert {"BLUEPRINTS": ["landing"], "THEME": "dark"} == capsule.config
    assert ["API_KEY", "BROKER", "ECHO", "MAIL"] == capsule.metadata.secret_keys


def test_a_tenant_that_loses_its_clients_is_disabled() -> None:
    """A tenant restored without its client keys is disabled, because it would admit everybody."""
    text = render_tenant_file(
        "acme", {"ENABLED": True, "WHEN": timedelta(1)}, expressions={}, secret_keys=["CLIENTS"]
    )
    values: dict[str, Any] = {}

    exec(text, values)

    assert (False, timedelta(1)) == (values["ENABLED"], values["WHEN"])


# -- databases ------------------------------------------------------------------------------------


def test_rows_go_between_engines(
    settings: HostSettings, things: Callable[..., None], postgres_server: Postgres, tmp_path: Path
) -> None:
    """Rows that are copied from SQLite to PostgreSQL and back keep their exact values."""
    things("acme")
    one, two = postgres_server.new_database(), postgres_server.new_database()

    restore(backup(settings, "acme", tmp_path / "1"), settings, "globex", one)
    capsule = backup(settings, "globex", tmp_path / "2")
    restore(capsule, settings, "initech")
    restore(capsule, settings, "umbrella", two)

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


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_a_restore_that_fails_leaves_nothing(
    settings: HostSettings,
    things: Callable[..., None],
    postgres_server: Postgres,
    tmp_path: Path,
    engine: str,
) -> None:
    """A restore that fails leaves no folder and no files, and leaves the database empty."""
    things("acme")
    capsule = backup(settings, "acme", path := tmp_path / "a")
    url = None if engine == "sqlite" else postgres_server.new_database()
    database = None if url is None else make_url(url)
    before = sorted(tree(settings.data_dir))

    with (
        pytest.raises(ZeroDivisionError),
        RestoreStaging(settings.data_dir, "globex") as staging,
        restore_capsule(capsule, staging, database, quiet),
    ):
        raise ZeroDivisionError
    path = Path(shutil.copy(path, tmp_path / "b"))
    rewrite(path, **{"tables/a_first/000001.jsonl": b"[1,99]\n"})
    with pytest.raises(CapsuleError):
        restore(read_capsule(path, quiet), settings, "globex", url)

    assert before == sorted(tree(settings.data_dir))
    if url is not None:
        # `dropdb` without `--force` fails unless the database is empty.
        restore(capsule, settings, "globex", url)


def test_unknown_revisions_are_rejected(
    settings: HostSettings, things: Callable[..., None], write_shop: WriteShop, tmp_path: Path
) -> None:
    """A restore creates nothing if the code does not know the database revision in the backup."""
    things("acme")
    capsule = backup(settings, "acme", tmp_path / "a")
    write_shop(first("other_1"))

    with pytest.raises(CapsuleError, match="at shop_1, which this code does not know"):
        restore(capsule, settings, "globex")

    assert not (settings.data_dir / "globex").exists()


def test_a_lost_database_is_not_backed_up_as_an_empty_one(
    settings: HostSettings, things: Callable[..., None], tmp_path: Path
) -> None:
    """If a tenant's SQLite file has disappeared, `tenantry backup` fails and writes no file."""
    things("acme")
    file = settings.data_dir / "acme/acme.sqlite3"
    file.with_name("acme.sqlite3.made").touch()
    file.unlink()

    with pytest.raises(CapsuleError, match="is gone"):
        backup(settings, "acme", tmp_path / "a")


# -- while the tenant serves -----------------------------------------------------------------------


def test_a_folder_snapshot_notices_new_folders(tmp_path: Path) -> None:
    """If a new folder appears while a backup takes a snapshot, the snapshot starts again."""
    folder = tmp_path / "acme/images/ab"
    folder.mkdir(parents=True)
    (folder / "1").touch()
    with backup_staging(tmp_path, "acme") as staged:
        copy = FolderSnapshot(tmp_path / "acme", staged)

        def begin() -> None:
            # The first attempt of the backup finds a change, and the second attempt succeeds.
            if not (folder / "2").exists():
                (folder / "2").touch()
                (folder.parent / "cd").mkdir()  # the backup has not locked this folder
                (folder / "1").unlink()

        copy.freeze(begin)

        assert ["images/ab/2"] == [path for path, _ in copy.files()]


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_a_backup_under_load_is_of_one_moment(
    settings: HostSettings,
    write_tenant: Callable[..., Path],
    postgres_server: Postgres,
    tmp_path: Path,
    engine: str,
) -> None:
    """A backup taken during uploads and deletions has exactly one file per row."""
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
            capsule = backup(settings, "acme", tmp_path / f"{number}")
    restore(capsule, settings, "globex", url)

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
    """Upload and delete images in threads. Yield a function that waits for ten more uploads."""
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

    client = Client(host)  # The first request migrates the database.
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
