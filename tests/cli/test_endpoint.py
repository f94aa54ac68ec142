"""`tenantry endpoint new` writes an endpoint whose test passes at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from commands import Tenantry
from tenantry.app.factory import close_app, create_app
from tenantry.endpoints.new_endpoint import NAME_CHARS

pytestmark = pytest.mark.usefixtures("data_dir")


def test_a_new_endpoint_answers(tenantry: Tenantry, tmp_path: Path) -> None:
    """The written endpoint is complete: a tenant that enables it answers."""
    result = tenantry("endpoint", "new", "price_list")

    app = create_app(
        {"APP_NAME": "acme", "SECRET_KEY": "k" * 32, "BLUEPRINTS": ["price_list"]},
        data_dir=tmp_path / "instance",
    )
    answer = app.test_client().get("/price_list/")
    close_app(app)
    assert (0, "") == (result.code, result.err)
    assert (200, {"hello": "price_list", "owner": "acme"}) == (answer.status_code, answer.json)


def test_the_next_steps_are_printed(tenantry: Tenantry) -> None:
    """The output says how to test the endpoint and how to enable it."""
    result = tenantry("endpoint", "new", "notes")

    assert (
        "notes: an endpoint that answers at /notes/, and its test. Next steps:\n"
        "  pytest notes\n"
        '  add "notes" to BLUEPRINTS in a tenant file, or: tenantry new shop --endpoint notes\n'
        "  tenantry serve\n"
    ) == result.out


def test_new_code_passes_the_linter_and_the_formatter(tenantry: Tenantry, tmp_path: Path) -> None:
    """Ruff has nothing to say about a new endpoint, with many rules."""
    tenantry("endpoint", "new", "notes")
    ruff = [sys.executable, "-m", "ruff"]
    rules = "A,ANN,ARG,B,C4,D1,E,F,I,N,PT,RET,RUF,SIM,TC,UP,W"
    commands = [
        [*ruff, "check", "--isolated", "--select", rules, "--ignore", "D104", "notes"],
        [*ruff, "format", "--isolated", "--check", "notes"],
    ]

    runs = [
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        for command in commands
    ]

    assert [0, 0] == [run.returncode for run in runs], [run.stdout for run in runs]


def test_the_endpoint_is_written_to_the_folder_of_the_host(
    tenantry: Tenantry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`TENANTRY_APP_DIR` is the folder of the new package."""
    (tmp_path / "own").mkdir()
    monkeypatch.setenv("TENANTRY_APP_DIR", "own")

    result = tenantry("endpoint", "new", "notes")

    files = sorted(path.name for path in (tmp_path / "own/notes").iterdir())
    assert result.out.startswith("own/notes: ")
    assert ["__init__.py", "blueprint.py", "models.py", "resources.py", "test_notes.py"] == files


@pytest.mark.parametrize("existing", ["notes/data.txt", "notes.py"])
def test_nothing_is_overwritten(tenantry: Tenantry, tmp_path: Path, existing: str) -> None:
    """If a package or module has the name, the command exits with 1 and changes nothing."""
    path = tmp_path / existing
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")

    result = tenantry("endpoint", "new", "notes")

    assert (1, True) == (result.code, "exists, and is never overwritten" in result.err)
    assert [path] == [one for one in tmp_path.rglob("*") if one.is_file()]


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("shop.notes", 2, "expected a name without dots"),
        ("Notes", 2, "characters of a-z, 0-9 and _"),
        ("price-list", 2, "like 'price_list'"),
        ("n" * (NAME_CHARS + 1), 2, "1 to 27 characters"),
        ("class", 2, "a keyword of Python; choose another name"),
        ("landing", 2, "an endpoint with this name comes with Tenantry"),
        ("json", 2, "Python has a module of this name"),
        ("flask", 1, "a library is named 'flask'"),
        ("tenantry", 1, "a library is named 'tenantry'"),
        ("tenants", 1, "tenants is a folder of the host"),
        ("instance", 1, "instance is a folder of the host"),
    ],
)
def test_a_bad_name_is_explained(
    tenantry: Tenantry, tmp_path: Path, name: str, code: int, message: str
) -> None:
    """A name that an endpoint cannot have is one line that says why, and nothing is written."""
    result = tenantry("endpoint", "new", name)

    assert (code, True, 1) == (result.code, message in result.err, result.err.count("\n"))
    assert [] == list(tmp_path.iterdir())
