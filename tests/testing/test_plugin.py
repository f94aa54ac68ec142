"""pytest finds the fixtures and markers of `tenantry.testing`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import tenant_text

TESTS = """\
import pytest
from tenantry import current_tenant
from tenantry.testing import for_each_tenant


def test_without_a_marker(client, tenant):
    assert "acme" == tenant.config["APP_NAME"]
    assert {"hello": "Ada"}.items() <= client.get("/?name=Ada").json.items()


@for_each_tenant
def test_each(tenant, client):
    with tenant.app_context():
        assert current_tenant.name == tenant.config["APP_NAME"]
    assert 201 == client.get("/").status_code


@for_each_tenant
class TestClass:
    @pytest.mark.tenant(TONE="new")
    def test_each_with_keys(self, tenant):
        assert "new" == tenant.config["TONE"]


@pytest.mark.tenant("globex", TONE="low")
def test_named(tenant):
    assert ("globex", "low") == (tenant.config["APP_NAME"], tenant.config["TONE"])


@pytest.mark.tenant(TONE="low")
def test_keys_only(tenant, two_tenants, tmp_path):
    names = [app.config["APP_NAME"] for app in two_tenants]
    assert (["acme", "globex"], "low") == (names, tenant.config["TONE"])
    assert str(tmp_path) in tenant.instance_path


def test_two_files(two_tenants):
    assert len({app.secret_key for app in two_tenants}) == 2


@pytest.mark.tenant(BLUEPRINTS=["landin"])
def test_misspelt(tenant):
    pass


@pytest.mark.tenant("initech")
def test_unknown(tenant):
    pass


@pytest.mark.tenant(["landing"])
def test_list(tenant):
    pass


@pytest.mark.tenant(blueprints=["landing"])
def test_lower_case(tenant):
    pass
"""


@pytest.fixture(name="project")
def _project(tmp_path: Path) -> Path:
    """Return a project with two tenants and a file of tests."""
    (tmp_path / "tenants").mkdir()
    for name in ("acme", "globex"):
        (tmp_path / "tenants" / f"{name}.py").write_text(tenant_text(name))
    (tmp_path / "test_shop.py").write_text(TESTS)
    return tmp_path


def _pytest(folder: Path, *words: str) -> str:
    """Run pytest as a user does, and return its output."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    return run.stdout + run.stderr


@pytest.mark.live
def test_the_fixtures_build_the_chosen_tenants(project: Path) -> None:
    """Markers choose tenants. A mistake in a marker is one line, without a traceback."""
    output = _pytest(
        project, "-p", "tenantry.testing", "-W", "error", "--strict-markers", "-rA", "-v"
    )

    outcomes = re.findall(r"^(PASSED|ERROR) test_shop\.py::(\S+)", output, re.MULTILINE)
    assert {
        ("PASSED", "test_without_a_marker"),
        ("PASSED", "test_each[acme]"),
        ("PASSED", "test_each[globex]"),
        ("PASSED", "TestClass::test_each_with_keys[acme]"),
        ("PASSED", "TestClass::test_each_with_keys[globex]"),
        ("PASSED", "test_named"),
        ("PASSED", "test_keys_only"),
        ("PASSED", "test_two_files"),
        ("ERROR", "test_misspelt"),
        ("ERROR", "test_unknown"),
        ("ERROR", "test_list"),
        ("ERROR", "test_lower_case"),
    } == set(outcomes), output
    assert "no endpoint named 'landin'; did you mean 'landing'?" in output
    assert "the marker 'tenant' has ['landing'], but a name is text; write" in output
    assert "the marker 'tenant' has 'blueprints'; keys are upper-case." in output
    assert "Traceback" not in output


@pytest.mark.live
def test_another_plugin_keeps_its_client(project: Path) -> None:
    """If another plugin has a fixture `client`, tests get the fixture of that plugin."""
    (project / "other.py").write_text(
        "import pytest\n@pytest.fixture\ndef client():\n    return 'other'\n"
    )
    (project / "test_shop.py").write_text(
        "def test_client(client):\n    assert 'other' == client\n"
    )

    outputs = [
        _pytest(project, "-p", first, "-p", second)
        for first, second in (("other", "tenantry.testing"), ("tenantry.testing", "other"))
    ]

    assert ["1 passed", "1 passed"] == [
        found for output in outputs for found in re.findall(r"\d passed", output)
    ]


@pytest.mark.live
def test_a_folder_without_tenants_is_explained(project: Path) -> None:
    """Without tenant files, `for_each_tenant` is an error that says what to do."""
    for path in (project / "tenants").iterdir():
        path.unlink()

    output = _pytest(project, "-p", "tenantry.testing")

    assert "tenants has no tenant file; create one with: tenantry new NAME" in output


def test_the_plugin_imports_only_pytest() -> None:
    """Loading the plugin imports no library except pytest, and little of Tenantry."""
    code = (
        "import sys, pytest; before = {*sys.modules}; import tenantry.testing;"
        "new = {name for name in {*sys.modules} - before if name.partition('.')[0] not in"
        " sys.stdlib_module_names}; print(sorted(new))"
    )
    environ = {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )

    assert "['tenantry', 'tenantry.testing']" == run.stdout.strip()
