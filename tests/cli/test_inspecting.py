"""Commands that only inspect tenants create and change no folders, secrets or databases."""

from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Tenantry
from tenantry.settings import HostSettings

CREATES = """\
from tenantry import secret
SECRET_KEY = secret("ACME_SECRET_KEY", create=True)
BLUEPRINTS = ["landing", "images"]
"""

INSPECTING = {
    "check": ("check",),
    "list": ("list",),
    "show": ("show", "acme"),
    "routes": ("routes", "acme"),
    "plan --save": ("plan", "--save", "snapshot"),
    "plan --against": ("plan", "--against", "snapshot"),
    "db status": ("db", "status", "--all"),
    "get": ("get", "/acme/"),
    "audit": ("audit",),
}


def content(folder: Path) -> dict[str, bytes]:
    """Return every file in a folder with its content, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


@pytest.fixture(name="sites")
def _sites(settings: HostSettings, write_tenant: Callable[..., Path], tmp_path: Path) -> Path:
    """Write two tenants that create secrets, and return the empty data folder."""
    for name in ("acme", "globex"):
        write_tenant(name, CREATES.replace("ACME", name.upper()))
    (tmp_path / "snapshot").write_text("")
    return settings.data_dir


@pytest.mark.live
@pytest.mark.parametrize("words", INSPECTING.values(), ids=INSPECTING)
def test_an_inspecting_command_creates_nothing(
    sites: Path, tenantry: Tenantry, words: tuple[str, ...], tmp_path: Path
) -> None:
    """Commands that inspect tenants that were never served leave the data folder empty."""
    if "--against" in words:
        (tmp_path / "snapshot").unlink()
        tenantry("plan", "--save", "snapshot")
    if "--save" in words:
        (tmp_path / "snapshot").unlink()

    result = tenantry(*words)

    left = content(sites)
    assert {} == left, result.err
    assert "Traceback" not in result.err


@pytest.mark.live
def test_a_secret_that_would_be_created_is_good(sites: Path, tenantry: Tenantry) -> None:
    """`tenantry check` accepts tenants whose secrets the host will create."""
    result = tenantry("check")

    assert (0, "2 tenants, 0 with problems.\n") == (result.code, result.out)
    assert not (sites / "secrets").exists()
