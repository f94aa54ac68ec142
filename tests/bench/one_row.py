"""What a request that reads one row costs, beside a bare Flask app with an engine of its own.

    python tests/bench/one_row.py [--rounds 40]

Two gunicorns with the same settings, one worker each, which log a line per request to a file, are
asked by one client in turns of 50 requests: a tenant in all the layers that the host puts around
it, and a bare app with the same view, a secret key as every app has one, and one engine on
SQLAlchemy's own pool, in gunicorn's own threaded worker, as who has no Tenantry runs it; on SQLite
in a file, opened with the same pragmas, and on PostgreSQL. That is the bound: the whole request.
Two more comparisons tell where the cost is: with the bare app in our worker, and with the same
tenant, in the same layers, with an engine of its own in the place of `db`: what the budget and the
guards alone cost.

What is bound is the processor time of the workers, of the quieter quarter of the turns, which other
work on the machine disturbs least. Beside it stand the medians of how long the client waited, which
on a busy machine say who was let on a processor.
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
BARE_APP, BARE_IN_OURS = "a bare app", "a bare app in our worker"

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
            for number, beside in enumerate((BARE_APP, BARE_IN_OURS, "an engine of its own")):
                ratio = compare(site / name / str(number), name, url, beside, rounds)
                bound = 1.10 if beside == BARE_APP else float("inf")
                bounds.check(f"{name}: beside {beside}", ratio, bound)
    bounds.end()


def compare(folder: Path, name: str, url: str, beside: str, rounds: int) -> float:
    """Return what a request costs at the tenant ÷ beside; print both, and the waiting."""
    tenants = rows.make_site(folder)
    (tenants / f"{name}.py").write_text(rows.tenant_text(name, url))
    (folder / "bare.py").write_text(BARE.format(url=url))
    other = folder / "other"
    (rows.make_site(other, rows.UNBOUNDED) / f"{name}.py").write_text(rows.tenant_text(name, url))
    path = f"/{name}/"
    log = str(folder / "access.log")
    is_bare = beside in (BARE_APP, BARE_IN_OURS)
    options = ["bare:app", "--access-logfile", log] if is_bare else []
    options += ["-k", "gthread"] if beside == BARE_APP else []
    other_path = "/" if options else path
    with serving(folder, 1) as host, serving(folder if options else other, 1, *options) as bare:
        host.wait_for(path, 200)
        bare.wait_for(other_path, 200)
        (ours, ours_cpu), (theirs, theirs_cpu) = measure((host, path), (bare, other_path), rounds)
    print(f"{name}: of the workers' processors {ours_cpu * 1e6:.0f} µs, {beside} "
          f"{theirs_cpu * 1e6:.0f} µs; the client waited {ours * 1e6:.0f} and "
          f"{theirs * 1e6:.0f} µs ({ours / theirs:.2f})")  # fmt: skip
    return ours_cpu / theirs_cpu


Side = tuple[Server, str]


def measure(ours: Side, theirs: Side, rounds: int) -> list[tuple[float, float]]:
    """Ask both in turns; return for each the median seconds of a request, and of a processor."""
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
                took = [_ask(connection, path) for _ in range(TURN)]
                if turn >= 2:  # the first turns warm caches up
                    taken[side].append(statistics.median(took))
                    cpu[side].append((cpu_s(worker) - before) / TURN)
    quiet = max(rounds // 4, 1)
    means = [[statistics.mean(sorted(one)[:quiet]) for one in figures] for figures in (taken, cpu)]
    return list(zip(*means, strict=True))


def _ask(connection: Connection, path: str) -> float:
    start = time.perf_counter()
    answer = connection.get(path)
    took = time.perf_counter() - start
    if answer != (200, b"good"):
        raise SystemExit(f"{path} answered {answer}")
    return took


if __name__ == "__main__":
    main()
