"""`tenantry adopt` says whether an application can be a tenant, and writes its tenant file."""

import json
from pathlib import Path

import pytest

from commands import Tenantry


@pytest.fixture(autouse=True)
def _folders(tenants_dir: Path, data_dir: Path) -> None:
    """Use an empty tenants folder and data folder."""


def test_an_application_that_fits_becomes_a_tenant(
    tenantry: Tenantry, tenants_dir: Path, tmp_path: Path
) -> None:
    """`--write` writes the tenant file and its secret, and `check` finds no problem in them."""
    (tmp_path / "shop.py").write_text("from flask import Flask\napp = Flask(__name__)\n")

    result = tenantry("adopt", "shop:app", "--write", "acme")

    assert (0, "") == (result.code, result.err)
    assert result.out.startswith("shop:app can be a tenant as it is.\n")
    assert "\n" + str(tenants_dir / "acme.py") + ": answers at /acme" in "\n" + result.out
    text = 'SECRET_KEY = secret("ACME_SECRET_KEY")\nAPP = "shop:app"\n'
    assert (tenants_dir / "acme.py").read_text().endswith(text)
    assert 0 == tenantry("check").code


def test_an_application_that_does_not_fit_writes_nothing(
    tenantry: Tenantry, tenants_dir: Path, tmp_path: Path
) -> None:
    """If the application ends its process, the verdict says so, and there is no tenant file."""
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps/shop.py").write_text("import os\nos._exit(3)\n")

    result = tenantry("adopt", "shop:app", "--app-dir", "apps", "--write", "acme", "--json")

    assert (1, "tenantry: no tenant file for 'acme' is written.\n") == (result.code, result.err)
    verdict = json.loads(result.out)
    reason = "while it is built, it ends its process (exit code 3)"
    assert ("no", reason) == (verdict["fit"], verdict["failure"])
    assert [] == [*tenants_dir.iterdir()]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["shop:("], 2, "'shop:(': expected 'module:app'"),
        (["shop", "--app-dir", "nowhere"], 2, "nowhere"),
        (["shop", "--write", "Acme"], 2, "'Acme'"),
        (["shop", "--write", "admin"], 2, "admin"),
        (["nowhere:app"], 1, "no module named 'nowhere'"),
    ],
)
def test_wrong_arguments(tenantry: Tenantry, words: list[str], code: int, text: str) -> None:
    """An application that does not exist, and names that are not valid, are one line."""
    result = tenantry("adopt", *words)

    assert (code, 1) == (result.code, len(result.err.splitlines()))
    assert text in result.err


@pytest.mark.usefixtures("acme")
def test_a_tenant_file_is_never_overwritten(tenantry: Tenantry, tmp_path: Path) -> None:
    """`--write` with the name of a tenant fails before the application is built."""
    (tmp_path / "shop.py").write_text("import os\nos._exit(3)\n")

    result = tenantry("adopt", "shop:app", "--write", "acme")

    assert (1, "") == (result.code, result.out)
    assert "acme.py exists; choose another name." in result.err
