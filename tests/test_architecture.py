"""The floor plan is checked by a machine, and the machine notices."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("lint-imports"))
    return subprocess.run(
        [program, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture(name="copy")
def _copy(tmp_path: Path) -> Path:
    """Return a copy of the code that a test may spoil."""
    for package in ("core", "config"):
        shutil.copytree(ROOT / package, tmp_path / package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_only_go_down(copy: Path) -> None:
    """The code keeps its import contracts."""
    result = _lint_imports(copy)

    assert (0, True) == (result.returncode, " 0 broken" in result.stdout), result.stdout


@pytest.mark.live
@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("core/mounts.py", "import core.host"),
        ("core/limits.py", "import core.front"),
        ("config/secrets.py", "import core.errors"),
        ("core/endpoints/landing/models.py", "import flask"),
    ],
)
def test_a_planted_import_is_noticed(copy: Path, module: str, planted: str) -> None:
    """An import that goes up, sideways or out of its room breaks a contract."""
    path = copy / module
    path.write_text(f"{path.read_text()}\n{planted}\n")

    result = _lint_imports(copy)

    assert result.returncode == 1, result.stdout


def test_a_room_that_nobody_drew_is_noticed(copy: Path) -> None:
    """A new module of core must get its place in the plan."""
    (copy / "core/utils.py").write_text("")

    assert _lint_imports(copy).returncode == 1


def test_the_floor_plan_names_every_room() -> None:
    """`core/__init__.py` draws the rooms that there are."""
    plan = (ROOT / "core/__init__.py").read_text()
    rooms = {path.stem for path in (ROOT / "core").iterdir() if path.suffix in ("", ".py")}

    assert set() == {
        room for room in rooms - {"__init__", "__pycache__"} if not re.search(room, plan)
    }
