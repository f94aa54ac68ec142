"""Sends requests to tenants whose databases are behind PgBouncer in transaction mode.

    python tests/bench/pooler.py [--requests 10000] [--tenants 20] [--mode transaction]

PgBouncer has two server processes per database, and changes the server process of a client after
each transaction. Two gunicorn workers serve the tenants. Each request counts a visit: it reads a
row, changes it, and commits. Half of the tenants set `DATABASE_OPTIONS = {"prepare_threshold":
None}`; the other half relies on Tenantry to detect the pooler. The benchmark counts the failed
requests and the visits that are missing from the databases. The benchmark needs `pgbouncer` from
Debian.
"""

import argparse
import contextlib
import tempfile
import threading
from pathlib import Path

import rows
from loads import Bounds, Connection, serving

from pgbouncer import PROGRAM, running_pgbouncer
from servers import in_threads

CLIENTS = 16

VIEW = """\
from flask import Blueprint
from sqlalchemy import text
from tenantry.database.session import db

rows_bp = Blueprint("rows", __name__)


@rows_bp.route("/")
def visit():
    number = db.session.execute(
        text("UPDATE visits SET number = number + :more RETURNING number"), {"more": 1}
    ).scalar_one()
    db.session.commit()
    return str(number)
"""


def main() -> None:
    """Send the requests, and count those that fail."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--tenants", type=int, default=20)
    parser.add_argument("--mode", default="transaction")
    arguments = parser.parse_args()
    if PROGRAM is None:
        raise SystemExit("PgBouncer is missing: apt-get install pgbouncer")
    names = [f"shop{number}" for number in range(arguments.tenants)]
    bounds = Bounds()
    with (
        rows.running(max_connections="100") as server,
        running_pgbouncer(server, arguments.mode) as port,
        tempfile.TemporaryDirectory() as folder,
    ):
        write_tenants(Path(folder), server, names, port)
        with serving(Path(folder), 2) as host:
            for name in names:
                host.wait_for(f"/{name}/", 200)
            before = visits(server, names)
            statuses = send(host.port, names, arguments.requests)
            served = statuses.count(200)
            missing = served - (visits(server, names) - before)
            if served < len(statuses):
                print(host.log.read_text()[-3000:])
    print(f"{len(statuses)} requests to {len(names)} tenants")
    bounds.check("failed requests", len(statuses) - served, 0)
    bounds.check("visits that are not in the database", abs(missing), 0)
    bounds.end()


def write_tenants(folder: Path, server: rows.Postgres, names: list[str], port: int) -> None:
    """Create a database and a tenant file for each name."""
    tenants = rows.make_site(folder, VIEW)
    server.new_database("rows")
    with server.connect("rows") as connection:
        connection.execute("CREATE TABLE visits (number INTEGER)")
        connection.execute("INSERT INTO visits VALUES (0)")
    with server.connect() as connection:
        for number, name in enumerate(names):
            rows.make_database(connection, name)
            text = rows.tenant_text(name, server.url(name, port=port))
            if number % 2:
                text += 'DATABASE_OPTIONS = {"prepare_threshold": None}\n'
            (tenants / f"{name}.py").write_text(text)


def visits(server: rows.Postgres, names: list[str]) -> int:
    """Return the number of visits in all databases."""
    total = 0
    for name in names:
        with contextlib.closing(server.connect(name)) as connection:
            row = connection.execute("SELECT number FROM visits").fetchone()
            total += int(str(row[0])) if row else 0
    return total


def send(port: int, names: list[str], request_count: int) -> list[int]:
    """Send requests to all tenants in turn, from several clients. Return the statuses."""
    statuses: list[int] = []
    left = iter(range(request_count))
    lock = threading.Lock()  # this lock protects `left`, which all clients share

    def visit(_: threading.Event) -> None:
        connection = Connection(port)
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                break
            statuses.append(connection.get(f"/{names[number % len(names)]}/")[0])
            if connection.is_closing:
                connection.close()
                connection = Connection(port)
        connection.close()

    with in_threads(*[visit] * CLIENTS):
        pass
    return statuses


if __name__ == "__main__":
    main()
