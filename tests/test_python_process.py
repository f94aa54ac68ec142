"""Processes that Tenantry starts search for modules in a safe order."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tenantry.python_process import leave_out_current_folder, library_path, python_command


@pytest.fixture(name="libraries", autouse=True)
def _libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put the current folder first on `sys.path`. Return the other entries."""
    monkeypatch.chdir(tmp_path)
    libraries = [entry for entry in sys.path if os.path.realpath(entry) != str(tmp_path)]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *libraries])
    return libraries


def test_the_current_folder_is_not_searched(libraries: list[str]) -> None:
    """A process of Tenantry finds no module in the folder in which it starts."""
    leave_out_current_folder()
    leave_out_current_folder()

    assert libraries == sys.path


def test_a_link_to_the_current_folder_is_removed_too(
    tmp_path: Path, libraries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current folder is removed even if `sys.path` contains it as a link."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    monkeypatch.setattr(sys, "path", [str(link), *libraries])

    leave_out_current_folder()

    assert libraries == sys.path


def test_pythonpath_can_name_the_current_folder(
    tmp_path: Path, libraries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If `PYTHONPATH` contains the current folder, the folder is searched after all libraries."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    leave_out_current_folder()

    assert [*libraries, str(tmp_path)] == sys.path


def test_the_library_path_has_no_current_folder(libraries: list[str]) -> None:
    """The loader process does not search the current folder for modules."""
    assert libraries == library_path()


def test_the_library_path_keeps_what_pythonpath_names(
    tmp_path: Path, libraries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If `PYTHONPATH` contains the current folder, that entry stays in the search path."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    assert [str(tmp_path), *libraries] == library_path()


def test_a_child_has_the_same_path(tmp_path: Path, libraries: list[str]) -> None:
    """A child process has its parent's module search path, and runs no `sitecustomize.py`."""
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('sitecustomize ran')\n")
    leave_out_current_folder()
    command = python_command("import json; print(json.dumps([sys.path, sys.argv]))", "argument")

    result = subprocess.run(command, capture_output=True, text=True, check=True)

    path, arguments = json.loads(result.stdout)
    assert (libraries, ["-c", "argument"]) == (path, arguments)
