"""Scripts and workers of job queues use tenants with `tenantry.tenant`."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tenantry.settings import HostSettings

pytestmark = pytest.mark.live

SCRIPT = """\
import os
from sqlalchemy import text
import tenantry
from tenantry import current_tenant, db

def report(name):
    with tenantry.tenant(name) as app:
        rows = db.session.execute(text("SELECT 1")).scalar()
        return app, f"{current_tenant.name} {rows}"

parent, line = report("acme")
print(line, flush=True)
if not (child := os.fork()):
    app, line = report("acme")
    print(line, "again" if app is parent else "built by the child", flush=True)
    raise SystemExit
os.waitpid(child, 0)
app, line = report("acme")
print(line, "again" if app is parent else "built anew")
"""


def test_a_forked_worker_builds_its_own_app(
    settings: HostSettings, write_tenant: Callable[..., Path], tmp_path: Path
) -> None:
    """A child process of a script neither uses nor closes the app of its parent."""
    write_tenant("acme")
    environ = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TENANTRY_TENANTS_DIR": str(settings.tenants_dir),
        "TENANTRY_DATA_DIR": str(settings.data_dir),
    }

    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        cwd=tmp_path, env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip

    expected = ["acme 1", "acme 1 built by the child", "acme 1 again"]
    assert (expected, "") == (run.stdout.splitlines(), run.stderr)
