"""An image file is stored completely or not at all, and one thread at a time changes a shard."""

import hashlib
import os
import threading
from io import BytesIO
from pathlib import Path

import pytest

from image_files import picture
from tenantry.endpoints.images.content_store import ContentStore

ONE, TWO = picture("PNG"), picture("JPEG")


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    return tmp_path / "images"


def test_an_upload_is_kept_or_deleted(folder: Path) -> None:
    """If the caller does not keep an upload, or the upload fails, no file is left."""
    store = ContentStore(folder)

    with store.receiving(BytesIO(ONE)) as received, store.locked(received.sha256) as shard:
        shard.keep(received)
    with pytest.raises(ZeroDivisionError), store.receiving(BytesIO(TWO)):
        raise ZeroDivisionError

    path = store.path_of(hashlib.sha256(ONE).hexdigest())
    assert [path] == [path for path in folder.rglob("*") if path.is_file()]
    assert ONE == path.read_bytes()


def test_content_is_on_the_disk_before_it_has_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stored file is synced to disk before it is renamed, and its folder is synced afterwards."""
    events: list[str] = []
    store = ContentStore(folder)
    rename = Path.rename

    def renaming(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    with store.receiving(BytesIO(ONE)) as received, store.locked(received.sha256) as shard:
        kinds = {received.path.stat().st_ino: "file", shard.folder.stat().st_ino: "folder"}
        monkeypatch.setattr(os, "fsync", lambda fd: events.append(kinds[os.fstat(fd).st_ino]))
        monkeypatch.setattr(Path, "rename", renaming)
        shard.keep(received)

    assert ["file", "rename", "folder"] == events


def test_one_thread_at_a_time_changes_a_shard(folder: Path) -> None:
    """Only one thread at a time can change a shard (subfolder) of the image files."""
    store = ContentStore(folder)
    entered = threading.Event()

    def enter() -> None:
        with store.locked("ab"):
            entered.set()

    thread = threading.Thread(target=enter)
    with store.locked("ab"):
        thread.start()
        with store.locked("cd"):
            was_kept_out = not entered.is_set()
    thread.join()

    assert (True, True) == (was_kept_out, entered.is_set())
