"""What a request that reads one row costs, beside a bare Flask app with an engine of its own.

    python tests/bench/one_row.py [--rounds 40]

Two gunicorns with the same settings, one worker each, asked by one client in turns of 50 requests:
a tenant in all the layers that the host puts around it, and a bare app with the same view on
SQLAlchemy's own pool; on SQLite in a file and on PostgreSQL. Compared are the medians of the
quieter quarter of the turns, which other work on the machine disturbs least.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import rows
from loads import Bounds, Connection, serving
from sqlalchemy import create_engine, text

TURN = 50

BARE = """\
from flask import Flask
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

app = Flask("bare")
engine = create_engine({url!r})


@app.route("/")
def read():
    with Session(engine) as session:
        return session.execute(text("SELECT x FROM t")).scalar_one()
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    bounds = Bounds()
    with rows.running() as server, tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        rows.make_template(server)
        engine = create_engine(f"sqlite:///{site}/rows.db")
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE t (x TEXT)"))
            connection.execute(text("INSERT INTO t VALUES ('good')"))
        engine.dispose()
        for name, url in (
            ("sqlite", f"sqlite:///{site}/rows.db"),
            ("postgresql", server.url("rows")),
        ):
            ours, bare = compare(site / name, name, url, rounds)
            print(f"{name}: ours {ours * 1e6:.0f} µs, bare {bare * 1e6:.0f} µs")
            bounds.check(f"{name}: ours ÷ bare", ours / bare, 1.10)
    bounds.end()


def compare(folder: Path, name: str, url: str, rounds: int) -> tuple[float, float]:
    """Return what a request costs at the tenant and at the bare app, in seconds."""
    tenants = rows.make_site(folder)
    (tenants / f"{name}.py").write_text(rows.tenant_text(name, url))
    (folder / "bare.py").write_text(BARE.format(url=url))
    with serving(folder, 1) as host, serving(folder, 1, "bare:app") as bare:
        host.wait_for(f"/{name}/", 200)
        bare.wait_for("/", 200)
        return measure(host.port, f"/{name}/", bare.port, rounds)


def measure(our_port: int, our_path: str, bare_port: int, rounds: int) -> tuple[float, float]:
    """Ask both in turns, and return the median seconds of a request of each."""
    medians: tuple[list[float], list[float]] = ([], [])
    with (
        contextlib.closing(Connection(our_port)) as ours,
        contextlib.closing(Connection(bare_port)) as bare,
    ):
        for turn in range(rounds + 2):
            for side, (connection, path) in enumerate(((ours, our_path), (bare, "/"))):
                took = [_ask(connection, path) for _ in range(TURN)]
                if turn >= 2:  # the first turns warm caches up
                    medians[side].append(statistics.median(took))
    quiet = [statistics.mean(sorted(side)[: max(rounds // 4, 1)]) for side in medians]
    return quiet[0], quiet[1]


def _ask(connection: Connection, path: str) -> float:
    start = time.perf_counter()
    answer = connection.get(path)
    took = time.perf_counter() - start
    if answer != (200, b"good"):
        raise SystemExit(f"{path} answered {answer}")
    return took


if __name__ == "__main__":
    main()
