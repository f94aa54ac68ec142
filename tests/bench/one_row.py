"""What a request that reads one row costs, beside a bare Flask app with an engine of its own.

    python tests/bench/one_row.py [--rounds 60]

Both in this process, called as WSGI apps, in turns of 50 requests: SQLite in a file and
PostgreSQL. The bare app has the same view, on SQLAlchemy's own pool; the tenant's stands in all
the layers that the host puts around it. Compared are the fastest quarter of the turns' medians,
which other work on the machine disturbs least.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import rows
from flask import Flask
from loads import Bounds
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from werkzeug.test import create_environ, run_wsgi_app

from config.settings import HostSettings
from core.host import Host

TURN = 50


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    bounds = Bounds()
    with rows.running() as server, tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        tenants = rows.make_site(site)
        sys.path.insert(0, folder)
        rows.make_template(server)
        urls = {"sqlite": f"sqlite:///{site}/rows.db", "postgresql": server.url("rows")}
        engine = create_engine(urls["sqlite"])
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE t (x TEXT)"))
            connection.execute(text("INSERT INTO t VALUES ('good')"))
        engine.dispose()
        for name, url in urls.items():
            (tenants / f"{name}.py").write_text(rows.tenant_text(name, url))
        host = Host(HostSettings(tenants_dir=tenants, data_dir=site / "instance"))
        host.load()
        for name, url in urls.items():
            bare, closing = bare_app(url)
            ours, theirs = measure(asker(host, f"/{name}/"), asker(bare, "/"), rounds)
            closing()
            print(f"{name}: ours {ours * 1e6:.0f} µs, bare {theirs * 1e6:.0f} µs")
            bounds.check(f"{name}: ours ÷ bare", ours / theirs, 1.10)
        host.close()
    bounds.end()


def bare_app(url: str) -> tuple[Flask, Callable[[], None]]:
    """Return a Flask app with one engine, as its documentation shows it; and what ends it."""
    app = Flask("bare")
    engine = create_engine(url)

    @app.route("/")
    def read() -> str:
        with Session(engine) as session:
            return str(session.execute(text("SELECT x FROM t")).scalar_one())

    return app, engine.dispose


def asker(app: Callable[..., object], path: str) -> Callable[[], None]:
    """Return a function that sends one request."""

    def ask() -> None:
        body, status, _ = run_wsgi_app(app, create_environ(path), buffered=True)  # type: ignore[arg-type]
        if (status[:3], b"".join(body)) != ("200", b"good"):
            raise SystemExit(f"{path} answered {status}")

    return ask


def measure(one: Callable[[], None], other: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Return what a request of either costs, in seconds."""
    medians: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 2):
        for side, ask in enumerate((one, other)):
            times = []
            for _ in range(TURN):
                start = time.perf_counter()
                ask()
                times.append(time.perf_counter() - start)
            if turn >= 2:
                medians[side].append(statistics.median(times))
    quiet = [statistics.mean(sorted(side)[: max(rounds // 4, 1)]) for side in medians]
    return quiet[0], quiet[1]


if __name__ == "__main__":
    main()
