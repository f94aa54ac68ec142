"""The functions of Tenantry that the simplest request passes through, and the number of calls.

    python tests/bench/calls.py

The whole host in one process, with accounting and a log line, and one tenant with the landing
endpoint. Calls in the server and in the endpoint do not count. Bound: at most 70 calls.
"""

import sys
import tempfile
from pathlib import Path

from loads import Bounds
from werkzeug.test import create_environ, run_wsgi_app

sys.path.append(str(Path(__file__).parents[1]))  # makes `call_count` of the tests importable

from call_count import counting_calls
from tenantry.host import create_host
from tenantry.settings import HostSettings

MAX_CALLS = 70


def main() -> None:
    """Print each function with the number of calls, and the totals."""
    with tempfile.TemporaryDirectory() as folder:
        tenants_dir, data_dir = Path(folder, "tenants"), Path(folder, "instance")
        tenants_dir.mkdir()
        (tenants_dir / "acme.py").write_text(f"SECRET_KEY = {'k' * 40!r}\nBLUEPRINTS = ['landing']")
        host = create_host(
            HostSettings(tenants_dir=tenants_dir, data_dir=data_dir), is_serving=True
        )
        host.load()
        for _ in range(2):
            run_wsgi_app(host, create_environ("/acme/"), buffered=True)
        with counting_calls() as calls:
            run_wsgi_app(host, create_environ("/acme/"), buffered=True)
        host.close()
    for name, count in calls.most_common():
        print(f"{count:3d}  {name}")
    modules = {name.rpartition(".")[0].partition(".<")[0] for name in calls}
    print(f"{len(modules)} classes and modules")
    bounds = Bounds()
    bounds.check("calls of our functions", calls.total(), MAX_CALLS)
    bounds.end()


main()
