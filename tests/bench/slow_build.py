"""Measures a warm tenant's response times while another tenant builds for 2 s.

    python tests/bench/slow_build.py

One gunicorn serves all tenants with 2 workers of 8 threads. Each round has a calm window and a
window of the same length in which 1 or 32 clients request a new tenant whose app takes 2 s to
build. Calm windows and windows with a build alternate, so that other load on the machine affects
both equally. The warm tenant's p99 may be at most 1.5 times its calm p99, and no request of the
warm tenant may take longer than 0.5 s.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

from loads import Bounds, describe, percentile

ROUNDS = 4
WINDOW_S = 2.5
BUILD_S = 2.0
PORT = 8765
RATIO = 1.5
SLOWEST_S = 0.5
"""Twice `SHORT_WAIT_S`, the time for which 32 waiting requests can occupy all threads."""


def main() -> None:
    """Measure with 1 client and with 32 clients of the slow tenant."""
    bounds = Bounds()
    for clients in (1, 32):
        with tempfile.TemporaryDirectory() as folder, serving(Path(folder)):
            calm, beside = measure(clients)
        print(f"{clients:>2} clients of the tenant that builds for {BUILD_S:g} s:")
        print(f"  calm   {describe(calm)}\n  beside {describe(beside)}")
        ratio = percentile(beside, 99) / percentile(calm, 99)
        bounds.check(f"{clients} clients: p99 beside ÷ calm", ratio, RATIO)
        bounds.check(f"{clients} clients: slowest", max(beside), SLOWEST_S, " s")
    bounds.end()


def measure(clients: int) -> tuple[list[float], list[float]]:
    """Return the warm tenant's request durations, in calm windows and during builds."""
    calm: list[float] = []
    beside: list[float] = []
    request("/globex/")
    for number in range(ROUNDS):
        calm += window()
        callers = [
            threading.Thread(target=request, args=(f"/slow-{number}/", 0)) for _ in range(clients)
        ]
        for caller in callers:
            caller.start()
        beside += window()
        for caller in callers:
            caller.join()
    return calm, beside


def window() -> list[float]:
    """Request the warm tenant repeatedly, each time on a new connection."""
    times = []
    end = time.perf_counter() + WINDOW_S
    while (start := time.perf_counter()) < end:
        request("/globex/")
        times.append(time.perf_counter() - start)
    return times


def request(path: str, expected: int = 201) -> None:
    """Send one GET. Fail on a status other than `expected`, unless `expected` is 0."""
    connection = HTTPConnection("127.0.0.1", PORT, timeout=60)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    finally:
        connection.close()
    if expected and status != expected:
        raise SystemExit(f"{path} answered {status}")


@contextmanager
def serving(folder: Path) -> Iterator[None]:
    """Serve one warm tenant, and one slow tenant per round, from `folder`."""
    tenants, package = folder / "tenants", folder / "slowly"
    tenants.mkdir()
    package.mkdir()
    (package / "sub").mkdir()
    for init in (package / "__init__.py", package / "sub/__init__.py"):
        init.write_text("")
    (package / "sub/blueprint.py").write_text(
        "import time\nfrom flask import Blueprint\n"
        f"time.sleep({BUILD_S})\nsub_bp = Blueprint('sub', __name__)\n"
        "sub_bp.add_url_rule('/', view_func=lambda: ('slow', 201))\n"
    )
    names = {f"slow-{number}": "slowly.sub" for number in range(ROUNDS)} | {"globex": "landing"}
    for name, endpoint in names.items():
        key = f"{name}-{os.urandom(16).hex()}"
        (tenants / f"{name}.py").write_text(f"SECRET_KEY={key!r}\nBLUEPRINTS=[{endpoint!r}]\n")
    config = Path(__file__).parent.parent.parent / "config/gunicorn.conf.py"
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-c", str(config), "--bind", f"127.0.0.1:{PORT}",
         "--workers", "2", "--threads", "8", "--log-level", "error"],
        cwd=folder,
        env=os.environ | {"TENANTRY_ADMIN_BIND": "off"},
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until_it_answers()
        yield
    finally:
        process.terminate()
        process.wait()


def wait_until_it_answers() -> None:
    """Wait until the host answers."""
    for _ in range(500):
        try:
            request("/-/livez", 200)
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise SystemExit("the server did not start")


if __name__ == "__main__":
    main()
