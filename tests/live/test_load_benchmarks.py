"""The benchmarks that load the server run for a short time, and no request is lost in them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pgbouncer import need_pgbouncer
from servers import DEADLINE_S

pytestmark = pytest.mark.live

BENCHMARKS = Path(__file__).parents[1] / "bench"

COMMANDS = {
    "behind PgBouncer": ("pooler.py", "--requests", "1000"),
    "slow clients": ("slow_clients.py", "--seconds", "0.5"),
    "crowds": ("crowds.py", "--rounds", "1", "--seconds", "1", "7"),
    "behind nginx": ("behind_nginx.py", "--seconds", "2"),
    "first requests": ("first_requests.py", "--rounds", "2", "--kills", "2", "--tenants", "30"),
    "mixed": ("mixed.py", "0.05"),
    "code changes": ("code_changes.py", "--rounds", "2", "--seconds", "3"),
    "ends of workers": ("restarts.py", "--quick", "stop", "recycle", "freeze", "TERM"),
}


def _is_count(line: str) -> bool:
    """Return whether a line shows a number of requests or resources, and not a time."""
    return "÷" not in line and not line.endswith(" s)")


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_nothing_is_lost_under_load(command: tuple[str, ...]) -> None:
    """Each count that a benchmark reports meets its bound.

    Times do not matter here, because other tests run at the same time.
    """
    if command[0] == "pooler.py":
        need_pgbouncer()
    if command[0] == "behind_nginx.py":
        _require_nginx()
    words = [sys.executable, str(BENCHMARKS / command[0]), *command[1:]]

    run = subprocess.run(words, capture_output=True, text=True, timeout=3 * DEADLINE_S, check=False)

    lines = run.stdout.splitlines()
    assert any(line.startswith("met") for line in lines), run.stderr
    missed = [line for line in lines if line.startswith("MISSED") and _is_count(line)]
    assert [] == missed, run.stdout
    assert "Traceback" not in run.stderr, run.stderr


def _require_nginx() -> None:
    if shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        text = "nginx is missing: apt-get install nginx-light"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(text)
