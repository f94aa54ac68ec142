"""File events report changes of a real tenants folder."""

import logging
import os
import threading
from pathlib import Path

import pytest

from servers import DEADLINE_S, wait_until
from tenantry.reload import file_events
from tenantry.reload.file_events import are_events_reliable, watch_folder


def test_a_missing_folder_is_watched_when_it_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """File events of a missing tenants folder become reliable when the folder appears."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(file_events, "RETRY_S", 0.01)
    monkeypatch.setattr(file_events, "FOLDER_CHECK_MS", 10)
    monkeypatch.setattr(file_events, "are_events_reliable", lambda _: True)
    folder, stopping, events = tmp_path / "tenants", threading.Event(), threading.Semaphore(0)
    reliable: list[bool] = []
    arguments = (folder, stopping, events.release, reliable.append)
    watching = threading.Thread(target=watch_folder, args=arguments)
    watching.start()
    heard = [events.acquire(timeout=DEADLINE_S)]
    folder.mkdir()

    for number in range(5):  # A change before the watch begins causes no event, so try again.
        wait_until(lambda path=folder / f"t{number}.py": _touch_and_hear(path, events))  # type: ignore[misc]

    wait_until(lambda: reliable[-1])
    stopping.set()
    watching.join(DEADLINE_S)
    assert [False, True, False] == [*dict.fromkeys(reliable), reliable[-1]]
    assert (True, False) == (all(heard), watching.is_alive())
    assert {"tenantry.reload.file_events"} == {record.name for record in caplog.records}


def _touch_and_hear(path: Path, events: threading.Semaphore) -> bool:
    path.touch()
    return events.acquire(timeout=0.2)


@pytest.mark.parametrize(
    ("kind", "inner", "expected"),
    [("ext4", "", True), ("nfs4", "", False), ("fuse.sshfs", "", False), ("ext4", "/a.py", False)],
)
def test_events_are_reliable_on_a_local_file_system(
    tmp_path: Path, kind: str, inner: str, *, expected: bool
) -> None:
    """File events are reliable only on a local file system without mounts inside the folder."""
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    table = tmp_path / "mountinfo"
    table.write_text(
        f"22 1 0:21 / /proc rw shared:2 - proc proc rw\n"
        f"27 1 {number} / / rw shared:1 master:2 - {kind} /dev/vda rw\n"
        f"28 27 0:99 / {tmp_path / 'tenants'}{inner or '2'} rw - tmpfs tmpfs rw\n"
    )
    folder = tmp_path / "tenants"
    folder.mkdir()

    assert expected == are_events_reliable(folder, table)
