"""Counts the calls of Tenantry's own functions for the simplest request.

    python tests/bench/calls.py

The benchmark runs the whole host in one process, with usage counters, an access log, and one tenant
that has the landing endpoint. Calls inside the endpoint do not count. The bound is
70 calls without a server, and 60 calls with Tenantry's own server, in all its threads. With its own
server, the host does less itself.
"""

import sys
import tempfile
from pathlib import Path

from loads import Bounds
from werkzeug.test import create_environ, run_wsgi_app

sys.path.append(str(Path(__file__).parents[1]))  # Make the tests' module `call_count` importable.

from call_count import count_served_calls, counting_calls
from tenantry.host import create_host
from tenantry.settings import HostSettings

MAX_CALLS = 70
MAX_SERVED_CALLS = 60
REQUEST = b"GET /acme/ HTTP/1.1\r\nHost: a\r\n\r\n"


def main() -> None:
    """Print each function with its number of calls, and the totals."""
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
        host = create_host(
            HostSettings(tenants_dir=tenants_dir, data_dir=data_dir), is_serving=True
        )
        served = count_served_calls(host, REQUEST)
        host.close()
    for name, count in served.most_common():
        print(f"{count:3d}  {name} (served)")
    for name, count in calls.most_common():
        print(f"{count:3d}  {name}")
    modules = {name.rpartition(".")[0].partition(".<")[0] for name in calls}
    print(f"{len(modules)} classes and modules")
    bounds = Bounds()
    bounds.check("calls of our functions", calls.total(), MAX_CALLS)
    bounds.check("calls of our functions, server included", served.total(), MAX_SERVED_CALLS)
    bounds.end()


main()
