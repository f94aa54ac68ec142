"""import-linter checks which packages may import which, and detects violations."""

import ast
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "core/tenantry"


def _lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("lint-imports"))
    return subprocess.run(
        [program, "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder / "core")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(name="copy")
def _copy(tmp_path: Path) -> Path:
    """Return a copy of the code that a test may change."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "core/tenantry", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def _layers() -> list[set[str]]:
    """Return the packages of each layer, from the top."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = project["tool"]["importlinter"]["contracts"][0]
    return [set(layer.split(" | ")) for layer in contract["layers"]]


def test_the_code_keeps_its_import_contracts(copy: Path) -> None:
    """Packages import only packages of lower layers."""
    result = _lint_imports(copy)

    assert (0, True) == (result.returncode, " 0 broken" in result.stdout), result.stdout


@pytest.mark.live
@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("routing/mount.py", "import tenantry.host"),
        ("middleware/body_limit.py", "import tenantry.routing.mount"),
        ("middleware/body_limit.py", "import flask"),
        ("tenants/secrets.py", "import tenantry.routing.mount"),
        ("observability/scoreboard.py", "import tenantry.server.worker"),
        ("endpoints/landing/models.py", "import flask"),
        ("endpoints/landing/models.py", "import tenantry.endpoints.images.models"),
    ],
)
def test_a_forbidden_import_is_detected(copy: Path, module: str, planted: str) -> None:
    """import-linter detects an import from a higher layer, from the same layer, or of Flask."""
    path = copy / "core/tenantry" / module
    path.write_text(f"{path.read_text()}\n{planted}\n")

    result = _lint_imports(copy)

    assert (1, True) == (result.returncode, " BROKEN" in result.stdout), result.stdout


def test_a_module_without_a_layer_is_detected(copy: Path) -> None:
    """A new top-level module must be assigned to a layer."""
    (copy / "core/tenantry/utils.py").write_text("")

    assert _lint_imports(copy).returncode == 1


def test_at_most_ten_layers_contain_all_packages() -> None:
    """At most ten layers contain all packages and top-level modules of Tenantry."""
    layers = _layers()
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}

    assert modules - {"__init__", "__pycache__"} == set().union(*layers)
    assert len(layers) <= 10


def test_each_class_name_exists_once() -> None:
    """No two classes of Tenantry have the same name, so a name in a log or a search is unique."""
    names = Counter(
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )

    assert [] == [name for name, number in names.items() if number > 1]
