"""The examples in the README for endpoint authors work."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client

from servers import running
from tenantry import endpoints
from tenantry.app.factory import close_app, create_app

README = Path(str(endpoints.__file__)).with_name("README.md")
EXAMPLE = re.compile(r"`(shop/[\w/]+\.py)`:\n\n```python\n(.*?)```", re.DOTALL)
BLOCK = re.compile(r"(?:`([\w/.]+)`:\n\n)?```(\w+)\n(.*?)```", re.DOTALL)
ALL = ["shop.files", "shop.invitations", "shop.stock"]


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder on the import path that contains the packages of the README."""
    for name, text in EXAMPLE.findall(README.read_text(encoding="utf-8")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if path.parent.name != "migrations":
            (path.parent / "__init__.py").touch()
    (tmp_path / "shop/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


def _client(closing: ExitStack, data_dir: Path, name: str = "acme", **keys: Any) -> Client:
    config = {"APP_NAME": name, "SECRET_KEY": "k" * 32, "BLUEPRINTS": ALL}
    app = create_app(config | keys, data_dir=data_dir)
    closing.callback(close_app, app)
    return Client(app)


def test_the_readme_has_all_examples(folder: Path) -> None:
    """Each example package in the README for endpoint authors has a blueprint."""
    found = {f"shop.{path.parent.name}" for path in folder.glob("shop/*/blueprint.py")}

    assert set(ALL) == found


@pytest.mark.usefixtures("folder")
def test_the_examples_answer_as_described(data_dir: Path) -> None:
    """The README's examples respect file quotas, and verify tokens as described."""
    with ExitStack() as closing:
        acme = _client(closing, data_dir, QUOTA_BYTES=1_000_000)
        globex = _client(closing, data_dir, "globex")

        files = [acme.put("/files/a.txt", data=bytes(size)).status_code for size in (10, 1_000_000)]
        token = acme.post("/invitations/", data={"email": "a@b.org"}).get_json()["token"]
        accepted = [client.get(f"/invitations/{token}") for client in (acme, globex)]

    assert [204, 507] == files
    assert bytes(10) == (data_dir / "acme/files/a.txt").read_bytes()
    assert [200, 404] == [answer.status_code for answer in accepted]
    assert {"email": "a@b.org"} == accepted[0].get_json()


@pytest.mark.usefixtures("folder")
def test_the_example_calls_another_service(data_dir: Path, tmp_path: Path) -> None:
    """The README's example view returns the response of the service that it calls."""
    service = tmp_path / "stock.json"
    service.write_text("[]", encoding="utf-8")
    with ExitStack() as closing:
        acme = _client(closing, data_dir, STOCK_URL=service.as_uri())

        answer = acme.get("/stock/")

    assert "[]" == answer.text


@pytest.mark.live
def test_the_guide_leads_from_an_empty_folder_to_an_endpoint(tmp_path: Path) -> None:
    """The files and commands of the guide, in their order, give a tested endpoint that serves."""
    text = README.read_text(encoding="utf-8")
    guide = text.partition("## From an empty folder")[2].partition("\n## ")[0]

    for path, language, block in BLOCK.findall(guide):
        if path:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(block, encoding="utf-8")
        elif language == "sh":
            output = _shell(tmp_path, block)
    with running(["tenantry", "serve", "--bind", "{bind}", "--workers", "1"], tmp_path) as server:
        page, content = server.get("/acme/notes/")
        _, notes = server.get("/acme/notes.json")

    assert '{"notes": ["Buy tea"]}' in output
    assert (200, True) == (page.status, b"<li>Buy tea</li>" in content)
    assert b'{"notes": ["Buy tea"]}\n' == notes
    assert "4 passed" in _shell(tmp_path, "pytest notes -W error --strict-markers")


def _shell(folder: Path, commands: str) -> str:
    """Run commands as a reader of the guide does, and return what they print."""
    programs = str(Path(sys.executable).parent)
    environ = {
        "PATH": os.pathsep.join([programs, os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTEST_ADDOPTS": "-p tenantry.testing",  # works without an installed entry point, too
    }
    run = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=folder, env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert 0 == run.returncode, run.stdout + run.stderr
    return run.stdout
