"""File events, on a real folder."""

import logging
import os
import threading
from pathlib import Path

import pytest

from servers import DEADLINE_S, wait_until
from tenantry.reload import file_events as watch_module
from tenantry.reload.file_events import are_events_sure, watch_folder


def test_it_notifies_survives_an_absent_folder_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that is not there yet is watched when it comes; only our own events are logged."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(watch_module, "RETRY_S", 0.01)
    monkeypatch.setattr(watch_module, "LOOK_MS", 10)
    monkeypatch.setattr(watch_module, "are_events_sure", lambda _: True)
    folder, stopping, told = tmp_path / "tenants", threading.Event(), threading.Semaphore(0)
    trusted: list[bool] = []
    arguments = (folder, stopping, told.release, trusted.append)
    watching = threading.Thread(target=watch_folder, args=arguments)
    watching.start()
    heard = [told.acquire(timeout=DEADLINE_S)]
    folder.mkdir()

    for number in range(5):  # a change just before it watches the new folder is not told
        wait_until(lambda path=folder / f"t{number}.py": _touch_and_hear(path, told))  # type: ignore[misc]

    wait_until(lambda: trusted[-1])
    stopping.set()
    watching.join(DEADLINE_S)
    assert [False, True, False] == [*dict.fromkeys(trusted), trusted[-1]]
    assert (True, False) == (all(heard), watching.is_alive())
    assert {"tenantry.reload.file_events"} == {record.name for record in caplog.records}


def _touch_and_hear(path: Path, told: threading.Semaphore) -> bool:
    path.touch()
    return told.acquire(timeout=0.2)


@pytest.mark.parametrize(
    ("kind", "inner", "expected"),
    [("ext4", "", True), ("nfs4", "", False), ("fuse.sshfs", "", False), ("ext4", "/a.py", False)],
)
def test_events_are_sure_on_a_local_file_system(
    tmp_path: Path, kind: str, inner: str, *, expected: bool
) -> None:
    """On no other, and not when a file of the folder is mounted by itself."""
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

    assert expected == are_events_sure(folder, table)
