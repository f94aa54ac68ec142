"""Compares the time to migrate many PostgreSQL databases with that of Alembic's own commands.

    python tests/bench/fleet.py [DATABASES]

The benchmark compares a fleet upgrade, and an upgrade with nothing to apply, with a serial loop
over `alembic.command.upgrade`. Half of the serial loop runs before the fleet upgrade and half
after, and the time is scaled to the number of databases. The upgrade may take at most 0.5 times the
time of the serial loop, and the empty upgrade at most 0.05 times. Afterwards, a fleet run is killed
with `kill -9` in the middle, and a second run finishes the upgrade. According to the journal and
the databases, each database must be migrated exactly once. 1,000 databases take some minutes and 10
GB of disk.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]  # make the modules of `tests/` importable

import psycopg  # noqa: E402
from alembic import command  # noqa: E402
from alembic.config import Config  # noqa: E402
from loads import Bounds  # noqa: E402

from postgres import Postgres, running  # noqa: E402
from tenantry.migrations.fleet_run import downgrade, upgrade  # noqa: E402
from tenantry.migrations.journal import Journal  # noqa: E402
from tenantry.tenants.model import Tenant  # noqa: E402
from tenantry.tenants.validation import parse_tenant  # noqa: E402

DATABASES = 1_000
SERIAL = 100
"""Number of databases in each half of the serial loop, before and after the fleet upgrade."""

REVISION = """\
import sqlalchemy as sa
from alembic import op
revision = "shop_1"
down_revision = None
branch_labels = ("shop",)
def upgrade():
    op.create_table("goods", sa.Column("id", sa.BigInteger, primary_key=True),
                    sa.Column("name", sa.String(200), nullable=False),
                    sa.Column("sha256", sa.String(64), nullable=False, index=True),
                    sa.Column("created", sa.DateTime(timezone=True), nullable=False, index=True))
    op.create_table("applied", sa.Column("id", sa.Integer, sa.Identity(), primary_key=True))
    op.execute("INSERT INTO applied DEFAULT VALUES")
def downgrade():
    op.drop_table("applied")
    op.drop_table("goods")
"""

ENV = """\
from alembic import context
from sqlalchemy import engine_from_config, pool
section = context.config.get_section(context.config.config_ini_section, {})
engine = engine_from_config(section, prefix="sqlalchemy.", poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()
"""

RUN = """\
import pickle, sys
from pathlib import Path
from tenantry.migrations.fleet_run import upgrade
upgrade(pickle.loads(sys.stdin.buffer.read()), Path(sys.argv[1]))
"""


def main() -> None:
    """Create databases, migrate the databases serially and as a fleet, and kill a fleet run."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else DATABASES
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as name, running() as server:
        folder = Path(name)
        write_code(folder)
        fleet = [tenant(folder, server, f"t{number}") for number in range(count)]
        serial = [f"s{number}" for number in range(2 * min(SERIAL, count))]
        make_databases(server, [*(one.name for one in fleet), *serial])
        compare(bounds, folder, server, fleet, serial)
        kill_in_the_middle(bounds, folder, server, fleet)
    bounds.end()


def write_code(folder: Path) -> None:
    """Write the endpoint, and the environment that Alembic's commands need."""
    migrations = folder / "corp" / "shop" / "migrations"
    migrations.mkdir(parents=True)
    for file in ("../../__init__.py", "../__init__.py", "../blueprint.py"):
        (migrations / file).touch()
    (migrations / "0001.py").write_text(REVISION)
    (folder / "alembic" / "versions").mkdir(parents=True)
    (folder / "alembic" / "env.py").write_text(ENV)
    (folder / "alembic" / "versions" / "0001.py").write_text(REVISION)
    sys.path.insert(0, str(folder))


def tenant(folder: Path, server: Postgres, name: str) -> Tenant:
    """Return a tenant with a database of the same name."""
    values = {
        "SECRET_KEY": f"{name}-" * 12,
        "BLUEPRINTS": ["corp.shop"],
        "DATABASE_URI": server.url(name),
    }
    return parse_tenant(name, values, data_dir=folder / "data")


def make_databases(server: Postgres, names: list[str]) -> None:
    """Create databases of 7 MB each, copied as files to keep the write-ahead log small."""
    began = time.monotonic()
    with server.connect() as connection:
        for name in names:
            connection.execute(f'CREATE DATABASE "{name}" STRATEGY file_copy')
    print(f"{len(names)} databases made in {time.monotonic() - began:.0f} s", flush=True)


def compare(
    bounds: Bounds, folder: Path, server: Postgres, fleet: list[Tenant], serial: list[str]
) -> None:
    """Upgrade the fleet twice, between the two halves of the serial loop."""
    half = len(serial) // 2
    first_s = loop(folder, server, serial[:half])
    fleet_s, states = timed(fleet, folder)
    nothing_s, again = timed(fleet, folder)
    loop_s = (first_s + loop(folder, server, serial[half:])) * len(fleet) / len(serial)
    print(f"serial loop {loop_s:.1f} s, fleet {fleet_s:.1f} s, nothing to apply {nothing_s:.1f} s")
    if (states, again) != ({"upgraded": len(fleet)}, {"at head": len(fleet)}):
        raise SystemExit(f"the fleet is {states}, then {again}")
    bounds.check("fleet upgrade ÷ serial loop", fleet_s / loop_s, 0.5)
    bounds.check("nothing to apply ÷ serial loop", nothing_s / loop_s, 0.05)


def loop(folder: Path, server: Postgres, names: Iterable[str]) -> float:
    """Return the seconds of Alembic's upgrade command for all databases in sequence."""
    began = time.monotonic()
    for name in names:
        config = Config()
        config.set_main_option("script_location", str(folder / "alembic"))
        config.set_main_option("path_separator", "os")
        config.set_main_option("sqlalchemy.url", server.url(name))
        command.upgrade(config, "heads")
    return time.monotonic() - began


def timed(fleet: list[Tenant], folder: Path) -> tuple[float, dict[str, int]]:
    """Return the seconds of a fleet upgrade, and the number of tenants in each final state."""
    began = time.monotonic()
    report = upgrade(fleet, folder / "data")
    return time.monotonic() - began, dict(Counter(one.state for one in report.results))


def kill_in_the_middle(bounds: Bounds, folder: Path, server: Postgres, fleet: list[Tenant]) -> None:
    """Downgrade all databases, kill an upgrade at half, and let a second upgrade finish."""
    began = time.monotonic()
    downgrade(fleet, folder / "data")
    print(
        f"all downgraded in {time.monotonic() - began:.1f} s; kill -9 in the middle …", flush=True
    )
    run = start_and_kill(folder, fleet)
    killed, at_head = journaled(folder, run), sum(applied(server, one.name) == 1 for one in fleet)
    print(f"killed: journal {killed}, databases at head {at_head}")
    _, states = timed(fleet, folder)
    print(f"second run: {states}")
    wrong = sum(applied(server, one.name) != 1 for one in fleet)
    left = len(fleet) - at_head
    bounds.check("databases not migrated exactly once", wrong, 0)
    bounds.check("second run: migrated beyond what was left", abs(states["upgraded"] - left), 0)
    not_done = len(fleet) - journaled(folder, run).get("done", 0)
    bounds.check("steps of the run that the journal does not show as done", not_done, 0)


def start_and_kill(folder: Path, fleet: list[Tenant]) -> int:
    """Return the ID of a run that was killed when half of the fleet was done."""
    import pickle  # noqa: PLC0415 - for our own process

    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    program = [sys.executable, "-c", RUN, str(folder / "data")]
    with subprocess.Popen(program, stdin=subprocess.PIPE, env=environ) as process:
        if process.stdin is not None:
            process.stdin.write(pickle.dumps(fleet))
            process.stdin.close()
        with Journal(folder / "data") as journal:
            while True:
                run = journal.runs()[0]
                done = sum(step.state == "done" for step in journal.steps(run))
                if done >= len(fleet) // 2 or process.poll() is not None:
                    break
                time.sleep(0.05)
        process.kill()
    return run


def journaled(folder: Path, run: int) -> dict[str, int]:
    """Return the number of a run's steps in each state."""
    with Journal(folder / "data") as journal:
        return dict(Counter(step.state for step in journal.steps(run)))


def applied(server: Postgres, name: str) -> int:
    """Return how often the migration was applied to a database."""
    with server.connect(name) as connection:
        try:
            rows = connection.execute("SELECT count(*) FROM applied").fetchone()
        except psycopg.errors.UndefinedTable:
            return 0
    return 0 if rows is None else int(str(rows[0]))


if __name__ == "__main__":
    main()
