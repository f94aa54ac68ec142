"""Tenantry works when it is installed from a wheel, without the repository."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from servers import running

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]


@pytest.fixture(name="bin_dir", scope="module")
def _bin_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `bin` folder of an environment with the built wheel and all requirements."""
    folder = tmp_path_factory.mktemp("installed")
    wheels = str(folder / "wheels")
    _run(folder, sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, str(ROOT))
    venv.create(folder / "venv", with_pip=True)
    (wheel,) = Path(wheels).iterdir()
    _run(folder, str(folder / "venv/bin/python"), "-m", "pip", "install", "-q", str(wheel))
    return folder / "venv/bin"


def _run(folder: Path, *command: str) -> None:
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    assert 0 == result.returncode, result


@pytest.mark.parametrize(
    ("endpoint", "path", "status"), [("landing", "/shop/", 201), ("images", "/shop/images/", 200)]
)
def test_a_wheel_serves_a_new_tenant(
    bin_dir: Path, tmp_path: Path, endpoint: str, path: str, status: int
) -> None:
    """With the wheel installed, `tenantry new` and `tenantry serve` work in an empty folder."""
    tenantry = str(bin_dir / "tenantry")
    _run(tmp_path, tenantry, "new", "shop", "--endpoint", endpoint)
    command = [tenantry, "serve", "--bind", "{bind}", "--workers", "1"]

    with running(command, tmp_path, PYTHONPATH="") as server:
        answer = server.get(path)[0]

    assert status == answer.status


def test_a_wheel_brings_the_fixtures_to_pytest(bin_dir: Path, tmp_path: Path) -> None:
    """With the wheel and pytest installed, the test of a new endpoint passes at once."""
    _run(tmp_path, str(bin_dir / "python"), "-m", "pip", "install", "-q", "pytest")
    _run(tmp_path, str(bin_dir / "tenantry"), "endpoint", "new", "notes")

    _run(tmp_path, str(bin_dir / "pytest"), "-W", "error", "--strict-markers", "notes")
