"""No version that `pyproject.toml` allows has a vulnerability that a later version fixes."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent

FIXED_IN = {
    ("flask", "CVE-2026-27205"): "3.1.3",
    ("gunicorn", "CVE-2024-6827"): "22.0.0",
    ("joserfc", "CVE-2025-65015"): "1.4.2",
    ("pillow", "CVE-2026-25990"): "12.1.1",
    ("pillow", "CVE-2026-40192"): "12.2.0",
    ("pillow", "CVE-2026-55379"): "12.3.0",
    ("pillow", "CVE-2026-59199"): "12.3.0",
    ("pillow", "CGA-6r43-cc9v-c6c4"): "13.0.0",
    ("pydantic", "CVE-2024-3772"): "2.4.0",
    ("redis", "CVE-2023-28859"): "4.5.4",
    ("waitress", "CVE-2024-49768"): "3.0.1",
    ("werkzeug", "GHSA-29vq-49wr-vm6x"): "3.1.6",
    ("werkzeug", "GHSA-87hc-h4r5-73f7"): "3.1.5",
    ("werkzeug", "GHSA-hgf8-39gv-g3f2"): "3.1.4",
}
"""Maps a library and an advisory to the first version without the vulnerability."""


def _floors() -> dict[str, Version]:
    project = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"].values()
    requirements = [*project["dependencies"], *(one for extra in optional for one in extra)]
    return {
        one.name: Version(specifier.version)
        for one in map(Requirement, requirements)
        for specifier in one.specifier
        if specifier.operator == ">="
    }


@pytest.mark.parametrize(("library", "advisory"), FIXED_IN)
def test_the_lowest_allowed_version_has_the_fix(library: str, advisory: str) -> None:
    """The lowest allowed version of a library contains the fix of each known vulnerability."""
    assert Version(FIXED_IN[library, advisory]) <= _floors()[library]


def test_every_requirement_has_a_floor() -> None:
    """Each requirement in `pyproject.toml` states a lowest version."""
    project = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"].values()
    named = [*project["dependencies"], *(one for extra in optional for one in extra)]

    assert {Requirement(one).name for one in named} == set(_floors())
