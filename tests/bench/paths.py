"""Checks which tenant answers generated paths, with which status, and at what cost.

    python tests/bench/paths.py [--paths 100000] [--seed 1]

The benchmark runs the whole host in one process, with four tenants. Each tenant has the landing
endpoint, and an endpoint that adds the tenant's name to every response. No path may reach the wrong
tenant, no response may have a status of 500 or above, and the slowest path may cost at most 20
times as much as a plain path. The cost of a path is the minimum of several runs, interleaved with
runs of the plain path.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from loads import Bounds
from werkzeug.test import create_environ, run_wsgi_app

from tenantry.host import Host
from tenantry.settings import HostSettings

PREFIXES = ("/acme", "/acme-2", "/clients/acme", "/a/b/c/d")
PLAIN = "/acme/"
SLOWER = 20
RUNS = 7
CHUNK = 100

TENANT_HEADER = """\
from flask import Blueprint, current_app
header_bp = Blueprint("header", __name__)

@header_bp.after_app_request
def mark(response):
    response.headers["X-Tenant"] = current_app.config["URL_PREFIX"]
    return response
"""

ODD = (
    *("", ".", "..", "acmecorp", "ACME", "%2f", "%00", "\\", ";", "?", "#", "@evil.test", "\0"),
    *("caf\xe9", "\xff\xfe", " ", "\r\n", "-", "admin", "static", "index.html", "x" * 300),
)


def make_path(dice: random.Random) -> str:
    """Return a random path of up to 4,094 bytes, the server's maximum."""
    words = [part for prefix in PREFIXES for part in prefix.split("/")[1:]] + list(ODD)
    kind = dice.random()
    if kind < 0.1:
        return "/" * dice.randrange(1, 4094)
    if kind < 0.2:
        return "".join(chr(dice.randrange(256)) for _ in range(dice.randrange(1, 60)))
    start = dice.choice((*PREFIXES, "")) if kind < 0.8 else ""
    count = dice.randrange(12) if kind < 0.95 else dice.randrange(2000)
    return (start + "".join(f"/{dice.choice(words)}" for _ in range(count)))[:4094] or "/"


def owner_of(path: str) -> str:
    """Return the prefix of the tenant that must answer, or an empty string for the host."""
    for prefix in PREFIXES:
        if path == prefix or path.startswith(f"{prefix}/"):
            return prefix
    return ""


def get(host: Host, path: str) -> tuple[int, str, float]:
    """Return the status, the tenant that answered, and the processor seconds."""
    environ = create_environ(environ_overrides={"PATH_INFO": path, "SCRIPT_NAME": ""})
    began = time.thread_time()
    body, status, headers = run_wsgi_app(host, environ, buffered=True)
    b"".join(body)
    return int(status[:3]), headers.get("X-Tenant", ""), time.thread_time() - began


def cost(host: Host, path: str) -> float:
    """Return the cost of a path, divided by the cost of the plain path."""
    pairs = [(get(host, path)[2], get(host, PLAIN)[2]) for _ in range(RUNS)]
    return min(each for each, _ in pairs) / min(plain for _, plain in pairs)


def run(host: Host, count: int, seed: int) -> None:
    """Request all paths, compare the results, and print the figures."""
    dice = random.Random(seed)
    bounds = Bounds()
    wrong: list[str] = []
    statuses: Counter[int] = Counter()
    slowest = (0.0, "")
    for _ in range(0, count, CHUNK):
        plain_s = min(get(host, PLAIN)[2] for _ in range(RUNS))
        for path in (make_path(dice) for _ in range(CHUNK)):
            status, tenant, took_s = get(host, path)
            statuses[status] += 1
            if tenant != owner_of(path):
                wrong.append(path)
            # Other load on the machine can make a path look slow, so measure the path again.
            if took_s > slowest[0] * plain_s:
                slowest = max(slowest, (cost(host, path), path))
    print(f"{count} paths, seed {seed}; by status: {dict(sorted(statuses.items()))}")
    print(f"the slowest: {slowest[1][:60]!r}, {len(slowest[1])} bytes")
    bounds.check("paths that reached the wrong tenant", len(wrong), 0)
    bounds.check("responses of 500 and above", sum(statuses[s] for s in statuses if s >= 500), 0)
    bounds.check("the slowest path ÷ the plain one", slowest[0], SLOWER)
    bounds.end()


def main() -> None:
    """Create the tenants, and run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--paths", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        package = site / "demo/header"
        package.mkdir(parents=True)
        (site / "demo/__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "blueprint.py").write_text(TENANT_HEADER)
        tenants = site / "tenants"
        tenants.mkdir()
        for number, prefix in enumerate(PREFIXES):
            (tenants / f"t{number}.py").write_text(
                f"URL_PREFIX = {prefix!r}\nSECRET_KEY = {f'{number}-' * 32!r}\n"
                "BLUEPRINTS = ['demo.header', 'landing']\n"
            )
        sys.path.insert(0, folder)
        host = Host(HostSettings(tenants_dir=tenants, data_dir=site / "data", admin_bind="off"))
        host.load()
        try:
            run(host, arguments.paths, arguments.seed)
        finally:
            host.close()


if __name__ == "__main__":
    main()
