"""Measures a warm tenant's response times while another tenant builds for 2 s.

    python tests/bench/slow_build.py

One gunicorn serves all tenants with 2 workers of 8 threads. Each round has a calm window and a
window of the same length in which 1 or 32 clients request a new tenant whose app takes 2 s to
build. Calm windows and windows with a build alternate, so that other load on the machine affects
both equally. The warm tenant's p99 may be at most 1.5 times its calm p99, and no request of the
warm tenant may take longer than 0.5 s. Requests wait for the build without a thread.
"""

import os
import tempfile
import threading
import time
from pathlib import Path

from loads import Bounds, Server, describe, percentile, serving

ROUNDS = 4
WINDOW_S = 2.5
BUILD_S = 2.0
RATIO = 1.5
SLOWEST_S = 0.5
"""Maximum seconds of one request of the warm tenant, whose usual request takes some milliseconds on
a busy machine. Requests that wait for a build occupy no thread."""


def main() -> None:
    """Measure with 1 client and with 32 clients of the slow tenant."""
    bounds = Bounds()
    for clients in (1, 32):
        with tempfile.TemporaryDirectory() as folder:
            make_tenants(Path(folder))
            with serving(Path(folder)) as server:
                server.wait_for("/-/livez", 200)
                calm, beside = measure(server, clients)
        print(f"{clients:>2} clients of the tenant that builds for {BUILD_S:g} s:")
        print(f"  calm   {describe(calm)}\n  beside {describe(beside)}")
        ratio = percentile(beside, 99) / percentile(calm, 99)
        bounds.check(f"{clients} clients: p99 beside ÷ calm", ratio, RATIO)
        bounds.check(f"{clients} clients: slowest", max(beside), SLOWEST_S, " s")
    bounds.end()


def measure(server: Server, clients: int) -> tuple[list[float], list[float]]:
    """Return the warm tenant's request durations, in calm windows and during builds."""
    calm: list[float] = []
    beside: list[float] = []
    request(server, "/globex/")
    for number in range(ROUNDS):
        calm += window(server)
        callers = [
            threading.Thread(target=request, args=(server, f"/slow-{number}/", 0))
            for _ in range(clients)
        ]
        for caller in callers:
            caller.start()
        beside += window(server)
        for caller in callers:
            caller.join()
    return calm, beside


def window(server: Server) -> list[float]:
    """Request the warm tenant repeatedly, each time on a new connection."""
    times = []
    end = time.perf_counter() + WINDOW_S
    while (start := time.perf_counter()) < end:
        request(server, "/globex/")
        times.append(time.perf_counter() - start)
    return times


def request(server: Server, path: str, expected: int = 201) -> None:
    """Send one GET. Fail on a status other than `expected`, unless `expected` is 0."""
    status = server.status(path)
    if expected and status != expected:
        raise SystemExit(f"{path} answered {status}")


def make_tenants(folder: Path) -> None:
    """Create one warm tenant, and one slow tenant per round."""
    tenants, package = folder / "tenants", folder / "slowly/sub"
    tenants.mkdir()
    package.mkdir(parents=True)
    for init in (package.parent / "__init__.py", package / "__init__.py"):
        init.write_text("")
    (package / "blueprint.py").write_text(
        "import time\nfrom flask import Blueprint\n"
        f"time.sleep({BUILD_S})\nsub_bp = Blueprint('sub', __name__)\n"
        "sub_bp.add_url_rule('/', view_func=lambda: ('slow', 201))\n"
    )
    names = {f"slow-{number}": "slowly.sub" for number in range(ROUNDS)} | {"globex": "landing"}
    for name, endpoint in names.items():
        key = f"{name}-{os.urandom(16).hex()}"
        (tenants / f"{name}.py").write_text(f"SECRET_KEY={key!r}\nBLUEPRINTS=[{endpoint!r}]\n")


if __name__ == "__main__":
    main()
