"""Compares the cost of a request that reads one row at a tenant and in a bare Flask app.

    python tests/bench/one_row.py [--rounds 40]

Two gunicorns with the same settings and one worker each write an access log to a file. One client
sends 50 requests to the two servers alternately. The first server runs a tenant with all layers of
the host. The second server runs a bare Flask app with the same view, a secret key, one SQLAlchemy
engine with SQLAlchemy's own pool, and gunicorn's threaded worker. Both servers read SQLite (with
the same pragmas), and then PostgreSQL. The tenant's worker may take at most 1.10 times the
processor time of the bare app's worker.

Two more comparisons have no bound, and show where the cost arises. The first comparison runs the
bare app in Tenantry's worker. The second comparison gives the tenant an engine of its own instead
of `db`, which shows the cost of the connection budget.

Each figure is the mean of the cheapest quarter of the windows, because other work on the machine
disturbs those windows least. The benchmark also prints the waiting times of the client, which
depend on the load.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import rows
from loads import Bounds, Connection, Server, serving
from many import cpu_s
from sqlalchemy import create_engine, text

TURN = 50
BARE_APP, BARE_IN_OUR_WORKER = "a bare app", "a bare app in our worker"

BARE = """\
from flask import Flask
from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import Session

app = Flask("bare")
app.secret_key = "k" * 40
engine = create_engine({url!r})


@event.listens_for(engine, "connect")
def set_up(connection, _):
    if engine.dialect.name == "sqlite":
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA busy_timeout = 5000")


@app.route("/")
def read():
    with Session(engine) as session:
        return session.execute(text("SELECT x FROM t")).scalar_one()
"""


def main() -> None:
    """Measure and print the cost of a request that reads one row."""
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
            for number, other_side in enumerate(
                (BARE_APP, BARE_IN_OUR_WORKER, "an engine of its own")
            ):
                ratio = compare(site / name / str(number), name, url, other_side, rounds)
                bound = 1.10 if other_side == BARE_APP else float("inf")
                bounds.check(f"{name}: beside {other_side}", ratio, bound)
    bounds.end()


def compare(folder: Path, name: str, url: str, other_side: str, rounds: int) -> float:
    """Print both sides' cost of a request, and return the tenant's cost divided by the other's."""
    tenants = rows.make_site(folder)
    (tenants / f"{name}.py").write_text(rows.tenant_text(name, url))
    (folder / "bare.py").write_text(BARE.format(url=url))
    other = folder / "other"
    (rows.make_site(other, rows.UNBOUNDED) / f"{name}.py").write_text(rows.tenant_text(name, url))
    path = f"/{name}/"
    log = str(folder / "access.log")
    is_bare = other_side in (BARE_APP, BARE_IN_OUR_WORKER)
    options = ["bare:app", "--access-logfile", log] if is_bare else []
    options += ["-k", "gthread"] if other_side == BARE_APP else []
    other_path = "/" if options else path
    with serving(folder, 1) as host, serving(folder if options else other, 1, *options) as bare:
        host.wait_for(path, 200)
        bare.wait_for(other_path, 200)
        (ours, ours_cpu), (theirs, theirs_cpu) = measure((host, path), (bare, other_path), rounds)
    print(f"{name}: of the workers' processors {ours_cpu * 1e6:.0f} µs, {other_side} "
          f"{theirs_cpu * 1e6:.0f} µs; the client waited {ours * 1e6:.0f} and "
          f"{theirs * 1e6:.0f} µs ({ours / theirs:.2f})")  # fmt: skip
    return ours_cpu / theirs_cpu


Side = tuple[Server, str]


def measure(ours: Side, theirs: Side, rounds: int) -> list[tuple[float, float]]:
    """Send requests to two servers alternately.

    Return each server's seconds and processor seconds.
    """
    taken: tuple[list[float], list[float]] = ([], [])
    cpu: tuple[list[float], list[float]] = ([], [])
    with (
        contextlib.closing(Connection(ours[0].port)) as one,
        contextlib.closing(Connection(theirs[0].port)) as other,
    ):
        for turn in range(rounds + 2):
            for side, (connection, (server, path)) in enumerate(((one, ours), (other, theirs))):
                (worker,) = server.workers()
                before = cpu_s(worker)
                took = [_request(connection, path) for _ in range(TURN)]
                # The figures exclude the first windows, which warm up caches.
                if turn >= 2:
                    taken[side].append(statistics.median(took))
                    cpu[side].append((cpu_s(worker) - before) / TURN)
    quiet = max(rounds // 4, 1)
    means = [[statistics.mean(sorted(one)[:quiet]) for one in figures] for figures in (taken, cpu)]
    return list(zip(*means, strict=True))


def _request(connection: Connection, path: str) -> float:
    start = time.perf_counter()
    answer = connection.get(path)
    took = time.perf_counter() - start
    if answer != (200, b"good"):
        raise SystemExit(f"{path} answered {answer}")
    return took


if __name__ == "__main__":
    main()
