"""The benchmark `tests/bench/beside` runs with every side that is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.live

BENCHMARK = Path(__file__).parents[1] / "bench/beside"
DEADLINE_S = 300.0
SIDES = (
    *("gunicorn gthread", "waitress (no log)", "granian", "uWSGI", "DispatcherMiddleware"),
    *("gunicorn per tenant", "uWSGI Emperor", "Tenantry"),
)


def test_a_quick_run_measures_every_side(tmp_path: Path) -> None:
    """Each side is in the table, or the output says what to install. In CI, no side is missing."""
    if shutil.which("wrk") is None:
        text = "wrk is missing: apt-get install wrk"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(text)
    command = [sys.executable, str(BENCHMARK), "--quick", "--pictures", str(tmp_path)]

    run = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    assert 0 == run.returncode, run.stderr
    lines = run.stdout.splitlines()
    left_out = [line for line in lines if line.startswith("left out: ")]
    for side in SIDES:
        measured = any(line.startswith(f"  {side} ") for line in lines)
        assert measured != any(f" {side}: " in line for line in left_out), run.stdout
    assert not (left_out and os.environ.get("CI")), left_out
    pictures = {file.name for file in tmp_path.iterdir()}
    assert {"processor-time.svg", "memory.svg"} <= pictures
