"""Each restart of a host begins a generation of code, which lives as long as a process uses it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenantry.private_code import generations
from tenantry.private_code.generations import (
    begin_generation,
    begin_host,
    end_host,
    follow_disk,
    host_name,
    new_generation,
    remove_if_unused,
    remove_old_generations,
    use_newest_generation,
)
from tenantry.private_code.snapshot import use_snapshot, used_snapshot


@pytest.fixture(autouse=True)
def _own_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin and end each test as a process without a host."""
    monkeypatch.setattr(generations, "_host", None)
    monkeypatch.setattr(generations, "_follows_disk", False)
    monkeypatch.setattr(generations, "_locks", [])
    yield
    unlock()
    use_snapshot(None)


def unlock() -> None:
    """Release all locks, as the end of the process does."""
    while generations._locks:
        os.close(generations._locks.pop())


def used(data_dir: Path) -> str:
    """Return the number of the generation that a new process uses."""
    use_newest_generation(data_dir, ())
    snapshot = used_snapshot()
    assert snapshot is not None
    return snapshot.folder.name


def test_a_host_begins_with_one_generation(tmp_path: Path) -> None:
    """All processes of a host use the same generation, which only the host's user can read."""
    folder = begin_host(tmp_path)

    assert ["1", "1"] == [used(tmp_path), used(tmp_path)]
    assert (tmp_path / ".code", host_name()) == (folder.parent, folder.name)
    assert [0o40700] * 3 == [one.stat().st_mode for one in (folder.parent, folder, folder / "1")]


def test_a_process_without_a_master_begins_its_own_host(tmp_path: Path) -> None:
    """Under other servers, a process uses the code that it started with."""
    assert "1" == used(tmp_path)
    assert host_name().startswith(f"{os.getpid()}-")


def test_the_folders_of_ended_hosts_are_removed(tmp_path: Path) -> None:
    """A new host removes what a killed host has left, and keeps the folder of a running host."""
    begin_host(tmp_path)
    unlock()
    running = begin_host(tmp_path)

    other = begin_host(tmp_path)

    assert {running, other} == set((tmp_path / ".code").iterdir())


def test_a_new_generation_is_used_by_later_processes(tmp_path: Path) -> None:
    """After a SIGHUP, the generation of the earlier workers lives until they have ended."""
    folder = begin_host(tmp_path)
    before = used(tmp_path)
    lock = generations._locks.pop()
    begin_generation()
    after = used(tmp_path)
    remove_old_generations()
    kept = sorted(one.name for one in folder.iterdir())
    os.close(lock)

    remove_old_generations()

    assert ("1", "2", ["1", "2"]) == (before, after, kept)
    assert [folder / "2"] == list(folder.iterdir())


def test_a_restart_publishes_a_complete_generation(tmp_path: Path) -> None:
    """A worker that starts while `restart` still copies the new code uses the old code."""
    folder = begin_host(tmp_path)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/models.py").write_text("")
    with new_generation(tmp_path, host_name(), ()) as new:
        copying = used_snapshot()
        assert copying is not None
        copying.copy_of(str(tmp_path / "shop"))
        assert not new.exists()

    assert (folder / "2", None) == (new, used_snapshot())
    assert ["models.py"] == [path.name for path in new.rglob("*.py")]
    assert "2" == used(tmp_path)


def test_a_failed_restart_returns_to_the_old_generation(tmp_path: Path) -> None:
    """The new generation is discarded, unless a worker uses it already."""
    begin_host(tmp_path)
    with new_generation(tmp_path, host_name(), ()) as new:
        pass
    remove_if_unused(new)
    unused = used(tmp_path)
    with new_generation(tmp_path, host_name(), ()) as new:
        pass
    in_use = used(tmp_path)

    remove_if_unused(new)

    assert ("1", "2", True) == (unused, in_use, new.exists())


def test_an_error_while_copying_publishes_nothing(tmp_path: Path) -> None:
    """A generation that is incomplete is never used."""
    folder = begin_host(tmp_path)

    with pytest.raises(ValueError, match="no"), new_generation(tmp_path, host_name(), ()):
        raise ValueError("no")

    assert [folder / "1"] == list(folder.iterdir())


def test_a_removed_folder_is_made_again(tmp_path: Path) -> None:
    """If an operator empties the data folder, new workers serve what is on disk then."""
    begin_host(tmp_path)
    shutil.rmtree(tmp_path / ".code")

    remove_old_generations()

    assert "1" == used(tmp_path)


def test_a_host_that_ends_leaves_nothing(tmp_path: Path) -> None:
    """The master removes the folder of the host."""
    begin_host(tmp_path)

    end_host()

    assert [] == list((tmp_path / ".code").iterdir())


def test_a_host_can_follow_the_disk(tmp_path: Path) -> None:
    """With `serve --reload`, no process has a snapshot."""
    follow_disk()

    use_newest_generation(tmp_path, ())

    assert (None, []) == (used_snapshot(), list(tmp_path.iterdir()))
