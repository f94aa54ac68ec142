"""A host serves existing applications, and follows their tenant files and their code."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from servers import Server, program

pytestmark = pytest.mark.live

APPS = Path(__file__).parents[1] / "apps"


def test_an_application_follows_its_file_and_its_code(
    tmp_path: Path, write_tenant: Callable[..., Path], start_server: Callable[..., Server]
) -> None:
    """A changed tenant file takes effect at once with the old code, new code with `restart`."""
    project = shutil.copytree(APPS / "tutorial", tmp_path / "project")
    keys = {"BLUEPRINTS": None, "APP": "flaskr:create_app", "APP_DIR": "project"}
    for name in ("acme", "globex"):
        write_tenant(name, **keys)
    server = start_server(["tenantry", "serve", "--bind", "{bind}", "--workers", "2"])
    before = [text(server, f"/{name}/hello") for name in ("acme", "globex")]
    code = project / "flaskr/__init__.py"
    code.write_text(code.read_text().replace("Hello, World!", "Hello, new world!"))

    write_tenant("acme", URL_PREFIX="/shop", **keys)
    subprocess.run([program("tenantry"), "list", "--wait"], cwd=tmp_path, check=True)
    moved = [text(server, path) for path in ("/shop/hello", "/globex/hello")]
    subprocess.run([program("tenantry"), "restart"], cwd=tmp_path, check=True)
    after = [text(server, path) for path in ("/shop/hello", "/globex/hello")]

    assert ["Hello, World!"] * 4 == before + moved
    assert ["Hello, new world!"] * 2 == after


def text(server: Server, path: str) -> str:
    """Return the text of a page."""
    return server.get(path)[1].decode()
