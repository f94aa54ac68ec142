"""File events, on a real folder."""

import logging
import threading
from pathlib import Path

import pytest
from servers import DEADLINE_S, wait_until

from core import watch as watch_module
from core.watch import watch_folder


def test_it_notifies_survives_an_absent_folder_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that is not there yet is watched when it comes; only our own events are logged."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(watch_module, "RETRY_S", 0.01)
    folder, stopping, told = tmp_path / "tenants", threading.Event(), threading.Semaphore(0)
    watching = threading.Thread(target=watch_folder, args=(folder, stopping, told.release))
    watching.start()
    heard = [told.acquire(timeout=DEADLINE_S)]
    folder.mkdir()

    for number in range(5):  # a change just before it watches the new folder is not told
        wait_until(lambda path=folder / f"t{number}.py": _touch_and_hear(path, told))  # type: ignore[misc]

    stopping.set()
    watching.join(DEADLINE_S)
    assert (True, False) == (all(heard), watching.is_alive())
    assert {"core.watch"} == {record.name for record in caplog.records}


def _touch_and_hear(path: Path, told: threading.Semaphore) -> bool:
    path.touch()
    return told.acquire(timeout=0.2)
