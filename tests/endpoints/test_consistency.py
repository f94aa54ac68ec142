"""The command `images check` finds and fixes differences between image rows and image files."""

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

from image_files import picture
from image_tables import migrate
from tenantry.app.factory import close_app, create_app
from tenantry.database.session import db
from tenantry.endpoints.images.consistency import ImageConsistencyModel
from tenantry.endpoints.images.content_store import ContentStore
from tenantry.endpoints.images.models import ImageModel, ImageRepoModel, MissingContentError
from tenantry.files.memory_budget import DECODING_BYTES, MemoryBudget

ONE, TWO = picture("PNG"), picture("JPEG")
DAY_S = 86_400


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture(name="session", params=["sqlite", "postgresql"])
def _session(
    request: pytest.FixtureRequest, postgres_url: str, tmp_path: Path
) -> Iterator[Session]:
    """Return a session of a database that has the image tables."""
    url = postgres_url if request.param == "postgresql" else f"sqlite:///{tmp_path}/a.sqlite3"
    migrate(url)
    engine = create_engine(url)
    with Session(engine, expire_on_commit=False) as session:
        yield session
    engine.dispose()


@pytest.fixture(name="memory")
def _memory() -> MemoryBudget:
    """Return a memory budget that never runs out."""
    return MemoryBudget(DECODING_BYTES, wait_s=0)


def check(session: Session, folder: Path, *, fix: bool = False, min_age_s: float = 0) -> list[str]:
    """Return the differences that `images check` finds, one per line."""
    model = ImageConsistencyModel(session, folder, fix=fix, min_age_s=min_age_s, is_thorough=True)
    return [
        f"{item.description}: {item.subject}{' fixed' if item.is_fixed else ''}"
        for item in model.inconsistencies()
    ]


def sha256(data: bytes) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def test_the_row_comes_after_the_file(session: Session, folder: Path, memory: MemoryBudget) -> None:
    """If the database fails during an upload, there is never a row without a file."""
    repo = ImageRepoModel(session, folder)
    session.connection()  # a transaction is already open, so the next `begin` fails

    with pytest.raises(Exception, match="begun"):
        repo.add(BytesIO(ONE), "one", memory)
    session.rollback()

    assert [f"file without an image: {sha256(ONE)}"] == check(session, folder)
    assert ([], None) == repo.page(10, None)


@pytest.mark.parametrize("damaged", [ONE[:10], ONE[:-1] + b"?"], ids=["cut", "altered"])
def test_a_new_upload_replaces_a_damaged_file(
    session: Session, folder: Path, memory: MemoryBudget, damaged: bytes
) -> None:
    """`images check` finds a damaged file, and uploading the same image again repairs the file."""
    repo = ImageRepoModel(session, folder)
    image = repo.add(BytesIO(ONE), "one", memory)
    path = ContentStore(folder).path_of(image.sha256)
    path.write_bytes(damaged)

    found = check(session, folder, fix=True)
    repo.add(BytesIO(ONE), "again", memory)

    assert [f"image with a damaged file: {image.id}"] == found
    assert (ONE, []) == (path.read_bytes(), check(session, folder))


def test_differences_are_found_and_fixed(
    session: Session, folder: Path, memory: MemoryBudget
) -> None:
    """`images check --fix` removes files without a row, and rows without a file."""
    repo = ImageRepoModel(session, folder)
    kept, lost = repo.add(BytesIO(ONE), "kept", memory), repo.add(BytesIO(TWO), "lost", memory)
    store = ContentStore(folder)
    store.path_of(lost.sha256).unlink()
    (folder / "incoming/tmp1").write_bytes(b"part")
    orphan = folder / "ff" / ("ff" * 32)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"whole")
    wrong = {
        "abandoned upload: tmp1",
        f"file without an image: {orphan.name}",
        f"image without a file: {lost.id}",
    }

    seen, fixed, after = (set(check(session, folder, fix=fix)) for fix in (False, True, False))

    assert (wrong, {f"{one} fixed" for one in wrong}, set()) == (seen, fixed, after)
    assert [kept.id] == [image.id for image in repo.page(10, None)[0]]
    assert ONE == store.path_of(kept.sha256).read_bytes()


def test_recent_files_are_ignored(session: Session, folder: Path) -> None:
    """`images check` reports an unfinished upload after a day, but not an upload in progress."""
    store = ContentStore(folder)
    with store.receiving(BytesIO(ONE)) as received:
        fresh = check(session, folder, fix=True, min_age_s=3600)
        is_there = received.path.exists()
        os.utime(received.path, (1, received.path.stat().st_mtime - DAY_S))
        old = check(session, folder, min_age_s=3600)

    assert ([], True) == (fresh, is_there)
    assert [f"abandoned upload: {received.path.name}"] == old


def test_an_empty_folder_is_not_fixed(session: Session, folder: Path, memory: MemoryBudget) -> None:
    """If all image files are missing, `images check --fix` removes no rows.

    A likely cause is that the volume with the files is not mounted.
    """
    repo = ImageRepoModel(session, folder)
    image = repo.add(BytesIO(ONE), "one", memory)
    folder.rename(folder.with_name("elsewhere"))

    with pytest.raises(MissingContentError):
        check(session, folder, fix=True)

    assert image.id == repo.get(str(image.id)).id


def test_concurrent_uploads_and_deletions_of_one_image_agree(data_dir: Path) -> None:
    """Concurrent uploads and deletions of the same image never leave a row without a file."""
    (data_dir / "acme").mkdir(parents=True)
    found: list[int] = []

    def upload_and_delete(app: Flask) -> None:
        for _ in range(10):
            client = app.test_client()
            image = client.post("/images/", data=ONE).get_json()
            with client.get(f"/images/{image['id']}/content") as answer:
                found.append(len(answer.data))
            found.append(client.delete(f"/images/{image['id']}").status_code)

    with _app(data_dir) as app:
        threads = [threading.Thread(target=upload_and_delete, args=(app,)) for _ in range(4)]
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
        (["--older-than=0"], 1, "file without an image: {}\n1 found, 0 fixed.\n"),
        (
            ["--older-than=0", "--fix"],
            0,
            "file without an image: {} (fixed)\n1 found, 1 fixed.\n",
        ),
        ([], 0, "0 found, 0 fixed.\n"),
    ],
)
def test_the_command_prints_what_it_finds(
    data_dir: Path, arguments: list[str], code: int, text: str
) -> None:
    """`images check` prints a line for each difference, and fails if a difference remains."""
    (data_dir / "acme").mkdir(parents=True)
    with _app(data_dir) as app:
        app.test_client().post("/images/", data=ONE).close()
        with app.app_context():
            db.session.execute(delete(ImageModel))
            db.session.commit()
        result = app.test_cli_runner().invoke(args=["images", "check", *arguments])

    assert (code, text.format(sha256(ONE))) == (result.exit_code, result.output)


def test_the_hash_option_finds_altered_files(data_dir: Path) -> None:
    """`images check --hash` also finds files whose bytes changed but whose size did not."""
    (data_dir / "acme").mkdir(parents=True)
    with _app(data_dir) as app:
        image = app.test_client().post("/images/", data=ONE).get_json()
        path = ContentStore(data_dir / "acme/images").path_of(sha256(ONE))
        path.write_bytes(ONE[:-1] + b"?")
        quick, thorough = (
            app.test_cli_runner().invoke(args=["images", "check", *words])
            for words in ([], ["--hash"])
        )

    text = f"image with a damaged file: {image['id']}\n1 found, 0 fixed.\n"
    assert (0, "0 found, 0 fixed.\n") == (quick.exit_code, quick.output)
    assert (1, text) == (thorough.exit_code, thorough.output)


def test_the_command_names_a_folder_that_is_probably_not_mounted(data_dir: Path) -> None:
    """If an image folder has lost all files, the error of `images check` names the folder."""
    (data_dir / "acme").mkdir(parents=True)
    folder = data_dir / "acme/images"
    with _app(data_dir) as app:
        app.test_client().post("/images/", data=ONE).close()
        folder.rename(data_dir / "elsewhere")
        result = app.test_cli_runner().invoke(args=["images", "check", "--fix"])

    text = f"Error: The database has images, but {folder} has no files. Is the volume mounted?\n"
    assert (1, text) == (result.exit_code, result.output)
