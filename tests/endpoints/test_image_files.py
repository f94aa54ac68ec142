"""Content that is there whole or not at all; rows and files that agree, or are made to."""

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import create_engine, delete
from sqlalchemy.orm import Session

from image_tables import migrate
from pictures_for_tests import picture
from tenantry.app.factory import close_app, create_app
from tenantry.database.session import db
from tenantry.endpoints.images.checks import ImageCheckModel
from tenantry.endpoints.images.files import ContentFolder
from tenantry.endpoints.images.models import ImageModel, ImageRepoModel, MissingContentError

ONE, TWO = picture("PNG"), picture("JPEG")
DAY_S = 86_400


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture(name="session", params=["sqlite", "postgresql"])
def _session(
    request: pytest.FixtureRequest, postgres_url: str, tmp_path: Path
) -> Iterator[Session]:
    """Return a session on a database with tables."""
    url = postgres_url if request.param == "postgresql" else f"sqlite:///{tmp_path}/a.sqlite3"
    migrate(url)
    engine = create_engine(url)
    with Session(engine, expire_on_commit=False) as session:
        yield session
    engine.dispose()


def check(session: Session, folder: Path, *, mend: bool = False, settled_s: float = 0) -> list[str]:
    """Return what is found, each as one line."""
    model = ImageCheckModel(session, folder, mend=mend, settled_s=settled_s, is_thorough=True)
    return [f"{one.what}: {one.subject} {'mended' * one.is_mended}".strip() for one in
            model.findings()]  # fmt: skip


def sha256(data: bytes) -> str:
    """Return the hash of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def test_received_bytes_are_kept_or_gone(folder: Path) -> None:
    """What is not kept until the end of the block leaves nothing, also when the block fails."""
    files = ContentFolder(folder)

    with files.receiving(BytesIO(ONE)) as received, files.locked(received.sha256) as shard:
        shard.keep(received)
    with pytest.raises(ZeroDivisionError), files.receiving(BytesIO(TWO)):
        raise ZeroDivisionError

    assert [files.path_of(sha256(ONE))] == [path for path in folder.rglob("*") if path.is_file()]
    assert ONE == files.path_of(sha256(ONE)).read_bytes()


def test_content_is_on_the_disk_before_it_has_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is synced, then renamed, then its folder is synced: all of it or nothing."""
    events: list[str] = []
    files = ContentFolder(folder)
    rename = Path.rename

    def renaming(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    with files.receiving(BytesIO(ONE)) as received, files.locked(received.sha256) as shard:
        kinds = {received.path.stat().st_ino: "file", shard.folder.stat().st_ino: "folder"}
        monkeypatch.setattr(os, "fsync", lambda fd: events.append(kinds[os.fstat(fd).st_ino]))
        monkeypatch.setattr(Path, "rename", renaming)
        shard.keep(received)

    assert ["file", "rename", "folder"] == events


def test_one_thread_at_a_time_changes_a_shard(folder: Path) -> None:
    """Whoever holds the lock of a shard keeps others out of it, and out of no other one."""
    files = ContentFolder(folder)
    entered = threading.Event()

    def enter() -> None:
        with files.locked("ab"):
            entered.set()

    thread = threading.Thread(target=enter)
    with files.locked("ab"):
        thread.start()
        with files.locked("cd"):
            was_kept_out = not entered.is_set()
    thread.join()

    assert (True, True) == (was_kept_out, entered.is_set())


def test_the_row_comes_after_the_file(session: Session, folder: Path) -> None:
    """When the database fails, no row promises what is not there; the file waits to be mended."""
    repo = ImageRepoModel(session, folder)
    session.connection()  # a transaction is open: beginning another fails

    with pytest.raises(Exception, match="begun"):
        repo.add(BytesIO(ONE), "one")
    session.rollback()

    assert [f"file without an image: {sha256(ONE)}"] == check(session, folder)
    assert ([], None) == repo.page(10, None)


@pytest.mark.parametrize("spoilt", [ONE[:10], ONE[:-1] + b"?"], ids=["cut", "altered"])
def test_uploading_again_mends_a_damaged_file(
    session: Session, folder: Path, spoilt: bytes
) -> None:
    """A file that has lost bytes, or has others, is found; the same image makes it whole."""
    repo = ImageRepoModel(session, folder)
    image = repo.add(BytesIO(ONE), "one")
    path = ContentFolder(folder).path_of(image.sha256)
    path.write_bytes(spoilt)

    found = check(session, folder, mend=True)
    repo.add(BytesIO(ONE), "again")

    assert [f"image with a damaged file: {image.id}"] == found
    assert (ONE, []) == (path.read_bytes(), check(session, folder))


def test_what_does_not_agree_is_found_and_mended(session: Session, folder: Path) -> None:
    """Files without a row go, rows without a file go, and what agrees stays."""
    repo = ImageRepoModel(session, folder)
    kept, lost = repo.add(BytesIO(ONE), "kept"), repo.add(BytesIO(TWO), "lost")
    files = ContentFolder(folder)
    files.path_of(lost.sha256).unlink()
    (folder / "incoming/tmp1").write_bytes(b"part")
    orphan = folder / "ff" / ("ff" * 32)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"whole")
    wrong = {
        "upload that never ended: tmp1",
        f"file without an image: {orphan.name}",
        f"image without a file: {lost.id}",
    }

    seen, mended, after = (set(check(session, folder, mend=mend)) for mend in (False, True, False))

    assert (wrong, {f"{one} mended" for one in wrong}, set()) == (seen, mended, after)
    assert [kept.id] == [image.id for image in repo.page(10, None)[0]]
    assert ONE == files.path_of(kept.sha256).read_bytes()


def test_what_is_fresh_is_left_alone(session: Session, folder: Path) -> None:
    """An upload in progress is no leftover; one of yesterday is."""
    files = ContentFolder(folder)
    with files.receiving(BytesIO(ONE)) as received:
        fresh = check(session, folder, mend=True, settled_s=3600)
        is_there = received.path.exists()
        os.utime(received.path, (1, received.path.stat().st_mtime - DAY_S))
        old = check(session, folder, settled_s=3600)

    assert ([], True) == (fresh, is_there)
    assert [f"upload that never ended: {received.path.name}"] == old


def test_an_empty_folder_with_images_is_not_mended(session: Session, folder: Path) -> None:
    """Where all files are gone a volume is not mounted: no row is removed for that."""
    repo = ImageRepoModel(session, folder)
    image = repo.add(BytesIO(ONE), "one")
    folder.rename(folder.with_name("elsewhere"))

    with pytest.raises(MissingContentError):
        check(session, folder, mend=True)

    assert image.id == repo.get(str(image.id)).id


def test_the_same_bytes_come_and_go_at_once(data_dir: Path) -> None:
    """Threads that add and delete the same bytes never leave an image without its file."""
    (data_dir / "acme").mkdir(parents=True)
    found: list[int] = []

    def come_and_go(app: Flask) -> None:
        for _ in range(10):
            client = app.test_client()
            image = client.post("/images/", data=ONE).get_json()
            with client.get(f"/images/{image['id']}/content") as answer:
                found.append(len(answer.data))
            found.append(client.delete(f"/images/{image['id']}").status_code)

    with _app(data_dir) as app:
        threads = [threading.Thread(target=come_and_go, args=(app,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert (80, {len(ONE), 204}) == (len(found), set(found))
    assert [] == [path for path in (data_dir / "acme/images").rglob("*") if path.is_file()]


@contextmanager
def _app(data_dir: Path) -> Iterator[Flask]:
    migrate(f"sqlite:///{data_dir}/acme/acme.sqlite3")
    config = {"APP_NAME": "acme", "SECRET_KEY": "k" * 32, "BLUEPRINTS": ["images"]}
    app = create_app(config, data_dir=data_dir)
    try:
        yield app
    finally:
        close_app(app)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--older-than=0"], 1, "file without an image: {}\n1 found, 0 mended.\n"),
        (
            ["--older-than=0", "--mend"],
            0,
            "file without an image: {} (mended)\n1 found, 1 mended.\n",
        ),
        ([], 0, "0 found, 0 mended.\n"),
    ],
)
def test_the_command_says_what_it_finds(
    data_dir: Path, arguments: list[str], code: int, text: str
) -> None:
    """`images check` prints a line per finding, and fails where something wrong stays."""
    (data_dir / "acme").mkdir(parents=True)
    with _app(data_dir) as app:
        app.test_client().post("/images/", data=ONE).close()
        with app.app_context():
            db.session.execute(delete(ImageModel))
            db.session.commit()
        result = app.test_cli_runner().invoke(args=["images", "check", *arguments])

    assert (code, text.format(sha256(ONE))) == (result.exit_code, result.output)


def test_the_command_reads_all_files_if_asked(data_dir: Path) -> None:
    """`--hash` finds bytes that are others than those that were uploaded, of the same number."""
    (data_dir / "acme").mkdir(parents=True)
    with _app(data_dir) as app:
        image = app.test_client().post("/images/", data=ONE).get_json()
        path = ContentFolder(data_dir / "acme/images").path_of(sha256(ONE))
        path.write_bytes(ONE[:-1] + b"?")
        quick, thorough = (
            app.test_cli_runner().invoke(args=["images", "check", *words])
            for words in ([], ["--hash"])
        )

    text = f"image with a damaged file: {image['id']}\n1 found, 0 mended.\n"
    assert (0, "0 found, 0 mended.\n") == (quick.exit_code, quick.output)
    assert (1, text) == (thorough.exit_code, thorough.output)


def test_the_command_names_a_folder_that_looks_unmounted(data_dir: Path) -> None:
    """The operator is told which folder has no files."""
    (data_dir / "acme").mkdir(parents=True)
    folder = data_dir / "acme/images"
    with _app(data_dir) as app:
        app.test_client().post("/images/", data=ONE).close()
        folder.rename(data_dir / "elsewhere")
        result = app.test_cli_runner().invoke(args=["images", "check", "--mend"])

    text = f"Error: {folder} has no files, but there are images; is a volume not mounted?\n"
    assert (1, text) == (result.exit_code, result.output)
