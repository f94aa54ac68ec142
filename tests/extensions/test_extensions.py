"""Ten Flask extensions work for two tenants, and the guide describes the extensions that we try."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from extension_cases import CASES, IN_TEST_EXTRA

ROOT = Path(__file__).parents[2]
GUIDE = ROOT.joinpath("core/tenantry/endpoints/EXTENSIONS.md").read_text(encoding="utf-8")


@pytest.mark.live
@pytest.mark.parametrize("name", IN_TEST_EXTRA)
def test_an_extension_works_for_two_tenants(name: str) -> None:
    """Each tenant gets its own answers from the extension, and the audit finds nothing."""
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("extension_trial.py")), name],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "core")},
        check=True,
    )

    assert [] == json.loads(run.stdout.splitlines()[-1])


def test_the_guide_describes_each_extension_that_the_command_tries() -> None:
    """The table of the guide has one row for each of the thirty extensions, in order of name."""
    table = GUIDE.split("| extension |", 1)[1].split("\n\n", 1)[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:]]

    assert (sorted(CASES), 30) == (rows, len(rows))
