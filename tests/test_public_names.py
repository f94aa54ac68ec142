"""The public names of `tenantry` exist, and importing `tenantry` loads no other library."""

import subprocess
import sys

import pytest

import tenantry
from tenantry.planned import PLANNED_NAMES


@pytest.mark.parametrize("name", tenantry.__all__)
def test_each_public_name_exists(name: str) -> None:
    """Every name in `tenantry.__all__` can be imported."""
    assert getattr(tenantry, name) is not None


@pytest.mark.parametrize("name", PLANNED_NAMES)
def test_a_planned_name_is_rejected(name: str) -> None:
    """Importing a name that is planned for a later version raises an error that says so."""
    with pytest.raises(ImportError, match=f"tenantry.{name} comes with a later version"):
        getattr(tenantry, name)
    with pytest.raises(ImportError, match=f"tenantry.{name} comes with a later version"):
        exec(f"from tenantry import {name}")


def test_secret_imports_nothing_heavy() -> None:
    """`from tenantry import secret` loads no library and no other part of Tenantry."""
    code = (
        "import sys; before = {*sys.modules}; from tenantry import secret;"
        "new = {name for name in {*sys.modules} - before if name.partition('.')[0] not in"
        " sys.stdlib_module_names}; print(sorted(new))"
    )
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)

    assert "['tenantry', 'tenantry.tenants', 'tenantry.tenants.secrets']" == run.stdout.strip()
