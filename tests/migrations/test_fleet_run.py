"""A migration run over all tenants' databases continues past failures and can be resumed."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, inspect

from postgres import Postgres
from servers import wait_until
from shops import WriteShop, first, second, write_shop_fixture
from tenantry.errors import TenantryError
from tenantry.migrations.fleet_run import FleetLimits, downgrade, upgrade
from tenantry.migrations.journal import Journal, MigrationStep, journal_file
from tenantry.migrations.status import MigrationStatus, fleet_status
from tenantry.tenants.model import Tenant
from tenantry.tenants.validation import parse_tenant

pytestmark = pytest.mark.live

__all__ = ["write_shop_fixture"]

ONE = FleetLimits(jobs=1)

MakeTenant = Callable[..., Tenant]


@pytest.fixture(name="tenant")
def _tenant(data_dir: Path) -> MakeTenant:
    """Return a function that makes a tenant with the endpoint `corp.shop`."""

    def make(name: str, url: str = "", endpoint: str = "corp.shop") -> Tenant:
        values = {"SECRET_KEY": f"{name}-" * 12, "BLUEPRINTS": [endpoint]}
        values |= {"DATABASE_URI": url} if url else {}
        return parse_tenant(name, values, data_dir=data_dir)

    return make


@pytest.fixture(name="new_url", params=["sqlite", "postgresql"])
def _new_url(request: pytest.FixtureRequest, postgres_server: Postgres) -> Callable[[], str]:
    """Return a function that returns the URL of a new PostgreSQL database, or "" for SQLite."""
    return postgres_server.new_database if request.param == "postgresql" else lambda: ""


def states(outcomes: tuple[MigrationStatus, ...]) -> dict[str, str]:
    """Return each tenant's state."""
    return {status.tenant: status.state for status in outcomes}


def tables(tenant: Tenant) -> set[str]:
    """Return the tables of a tenant's database."""
    engine = create_engine(tenant.database_uri.get_secret_value(), poolclass=NullPool)
    with engine.connect() as connection:
        return {*inspect(connection).get_table_names()}


def revisions(tenant: Tenant) -> set[str]:
    """Return the revisions of a tenant's database."""
    engine = create_engine(tenant.database_uri.get_secret_value(), poolclass=NullPool)
    with engine.connect() as connection:
        return {*connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars()}


def test_a_run_continues_past_every_kind_of_failure(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path
) -> None:
    """If a migration raises, exits or hangs, the other databases are still migrated."""
    names = ["acme", "ends", "hangs", "initech", "raises", "zeta"]
    body = """\
if name.startswith("raises"): raise ValueError("two\\nlines")
if name.startswith("ends"): os._exit(3)
if name.startswith("hangs"): time.sleep(1000)
"""
    write_shop(first(), second(body))
    fleet = [tenant(name) for name in names]
    names_seen: list[str] = []

    report = upgrade(
        fleet,
        data_dir,
        FleetLimits(1, timeout_s=3),
        lambda status: names_seen.append(status.tenant),
    )
    write_shop(first(), second())
    again = upgrade(fleet, data_dir, ONE)

    reasons = {
        status.tenant: status.reason for status in report.results if status.state == "failed"
    }
    assert {
        "ends": "its migration ended its process (exit code 3); the database was left as it was.",
        "hangs": "its migration did not finish in 3 s; the database was left as it was.",
        "raises": "ValueError: two lines; the database was left as it was.",
    } == reasons
    assert names == sorted(names_seen)
    assert [status.state for status in again.results] == [
        "at head", "upgraded", "upgraded", "at head", "upgraded", "at head"
    ]  # fmt: skip
    assert (report.run, {"done"}) == (again.run, {step.state for step in _steps(data_dir, 1)})


def test_a_lost_database_and_a_blocked_folder_fail_alone(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path
) -> None:
    """If a SQLite file is missing, it is not created, and other databases are still migrated."""
    write_shop(first())
    (data_dir / "acme").mkdir(parents=True)
    (data_dir / "acme/acme.sqlite3.made").touch()
    (data_dir / "globex").touch()
    fleet = [tenant(name) for name in ("acme", "globex", "initech")]

    report = upgrade(fleet, data_dir, ONE)

    assert {"acme": "unreachable", "globex": "failed", "initech": "upgraded"} == states(
        report.results
    )
    assert not (data_dir / "acme/acme.sqlite3").exists()


def _steps(data_dir: Path, run: int) -> list[MigrationStep]:
    with Journal(data_dir) as journal:
        return [*journal.steps(run)]


def test_a_failed_migration_leaves_the_database_as_it_was(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, new_url: Callable[[], str]
) -> None:
    """If a migration fails, the database rolls back all revisions that this run applied to it."""
    acme = tenant("acme", new_url())
    write_shop(first(), second("op.execute('INSERT INTO goods VALUES (1)'); 1 / 0"))

    report = upgrade([acme], data_dir, ONE)

    assert ["failed"] == [status.state for status in report.results]
    assert "ZeroDivisionError" in report.results[0].reason
    assert "the database was left as it was." in report.results[0].reason
    assert set() == tables(acme)


BLOCK = "with op.get_context().autocommit_block(): op.execute('SELECT 1')\n"
COMMIT = "op.execute('COMMIT')\n"

REJECTED_COMMIT = """\
import sqlite3
if op.get_bind().dialect.name == "sqlite":  # a reader keeps it from committing
    op.execute("PRAGMA busy_timeout = 1")
    sys.reader = sqlite3.connect(op.get_bind().engine.url.database, isolation_level=None)
    sys.reader.execute("BEGIN")
    sys.reader.execute("SELECT count(*) FROM sqlite_master").fetchall()
else:
    op.execute("CREATE TABLE tags (goods INTEGER REFERENCES goods DEFERRABLE INITIALLY DEFERRED)")
    op.execute("INSERT INTO tags VALUES (7)")
"""


@pytest.mark.parametrize("body", [f"{BLOCK}1 / 0", f"{BLOCK}os._exit(3)", f"{COMMIT}os._exit(3)"])
def test_a_migration_that_commits_before_it_fails_says_what_to_do(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, body: str,
    new_url: Callable[[], str],
) -> None:  # fmt: skip
    """If a migration commits before it fails, the error says what remains and how to continue."""
    acme = tenant("acme", new_url())
    write_shop(first(), second(body))

    without_tables = upgrade([acme], data_dir, ONE).results[0]
    write_shop(first(), second(body).replace('"prices"', '"more"'))
    with_first_table = upgrade([acme], data_dir, ONE).results[0]

    assert {"goods", "prices", "more"} < tables(acme)
    for result in (without_tables, with_first_table):
        assert ({"shop_1"}, {"shop_1"}) == (revisions(acme), result.after)
        assert "its earlier commits remain" in result.reason
        assert "the database is at shop_1: " in result.reason
        assert "tenantry db upgrade --tenant acme" in result.reason


def test_a_rejected_commit_leaves_the_database_as_it_was(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, new_url: Callable[[], str]
) -> None:
    """If the database rejects the final COMMIT, the whole migration is rolled back."""
    acme = tenant("acme", new_url())
    write_shop(first(), second(REJECTED_COMMIT))

    reason = upgrade([acme], data_dir, ONE).results[0].reason

    assert set() == tables(acme)
    assert reason.startswith(("ForeignKeyViolation: ", "OperationalError: database is locked"))
    assert reason.endswith("; the database was left as it was.")


def test_a_rebuilt_table_of_sqlite_keeps_the_rows_that_refer_to_it(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path
) -> None:
    """Rebuilding a SQLite table deletes no rows in tables that refer to it.

    `ON DELETE CASCADE` is disabled while a migration rebuilds a table. If references are broken at
    the end, the migration fails.
    """
    acme = tenant("acme")
    refer = """\
op.execute("CREATE TABLE tags (id INTEGER, goods INTEGER REFERENCES goods ON DELETE CASCADE)")
op.execute("INSERT INTO goods VALUES (1)")
op.execute("INSERT INTO tags VALUES (1, 1)")
with op.batch_alter_table("goods", recreate="always") as goods:
    goods.add_column(sa.Column("x", sa.Text))
"""
    write_shop(first(), second(refer))
    good = upgrade([acme], data_dir, ONE)
    write_shop(first(), second(refer), second("op.execute('DELETE FROM goods')", "shop_3", "shop_2")
               .replace('"prices"', '"prices_3"'))  # fmt: skip

    bad = upgrade([acme], data_dir, ONE)

    assert ["upgraded", "failed"] == [good.results[0].state, bad.results[0].state]
    assert "1 rows of tags refer to rows that do not exist" in bad.results[0].reason


def test_a_fleet_at_head_starts_no_run(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If all databases are up to date, an upgrade starts no process and records no run."""
    fleet = [tenant("acme"), tenant("globex"), tenant("initech", endpoint="landing")]
    write_shop(first())
    upgrade(fleet, data_dir, ONE)
    monkeypatch.setattr("tenantry.python_process.python_executable", lambda: "/nowhere")

    report = upgrade(fleet, data_dir, ONE)

    expected = {"acme": "at head", "globex": "at head", "initech": "no tables"}
    assert (None, expected) == (report.run, states(report.results))
    assert [1] == _runs(data_dir)


def _runs(data_dir: Path) -> list[int]:
    with Journal(data_dir) as journal:
        return journal.runs()


def test_only_what_a_run_applied_is_downgraded(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path
) -> None:
    """A downgrade reverts the latest migration run, or the run that the command line names."""
    acme, globex = tenant("acme"), tenant("globex")
    write_shop(first())
    upgrade([acme], data_dir, ONE)
    write_shop(first(), second())
    upgrade([acme, globex], data_dir, ONE)

    early = downgrade([acme], data_dir, 1, ONE)
    back = downgrade([acme, globex], data_dir, None, ONE)
    with pytest.raises(
        TenantryError, match="run 2 is downgraded already; to undo run 1, use --run 1"
    ):
        downgrade([acme, globex], data_dir, None, ONE)
    earlier = downgrade([acme, globex], data_dir, 1, ONE)

    assert "the database is at shop_2, but the run left it at shop_1" in early.results[0].reason
    assert (2, {"acme": "downgraded", "globex": "downgraded"}) == (back.run, states(back.results))
    assert (1, {"acme": "downgraded"}) == (earlier.run, states(earlier.results))
    assert ({"alembic_version"},) * 2 == (tables(acme), tables(globex))
    with pytest.raises(
        TenantryError, match="run 2 is downgraded already, and so are all earlier runs"
    ):
        downgrade([acme, globex], data_dir, None, ONE)


def test_a_tenant_with_another_database_is_not_downgraded(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, tmp_path: Path
) -> None:
    """A downgrade does not revert a run's changes if the tenant now uses another database."""
    write_shop(first())
    acme = tenant("acme")
    upgrade([acme], data_dir, ONE)
    stamp(tmp_path / "b/b.sqlite3", "shop_1")

    refused = downgrade([tenant("acme", f"sqlite:///{tmp_path}/b/b.sqlite3")], data_dir, 1, ONE)
    back = downgrade([acme], data_dir, None, ONE)

    assert {"acme": "failed"} == states(refused.results)
    assert (
        f"its database is sqlite {tmp_path}/b/b.sqlite3, but run 1 changed sqlite "
        "acme/acme.sqlite3; to downgrade that one, name it in 'DATABASE_URI'."
    ) == refused.results[0].reason
    assert {"acme": "downgraded"} == states(back.results)


def test_a_fleet_can_be_downgraded_after_its_data_folder_moved(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, tmp_path: Path
) -> None:
    """A migration run can be downgraded even if the data folder was moved after the run."""
    write_shop(first())
    upgrade([tenant("acme")], data_dir, ONE)
    moved = data_dir.rename(tmp_path / "moved")
    values = {"SECRET_KEY": "acme" * 12, "BLUEPRINTS": ["corp.shop"]}

    back = downgrade([parse_tenant("acme", values, data_dir=moved)], moved, None, ONE)

    assert {"acme": "downgraded"} == states(back.results)


def test_a_locked_journal_stops_only_migrations_that_have_not_started(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the journal of migrations is locked, no further migration starts."""
    monkeypatch.setattr("tenantry.migrations.journal.LOCK_TIMEOUT_S", 0.01)
    hold = f"""\
if name.startswith("acme"):
    import sqlite3
    sys.holder = sqlite3.connect({str(journal_file(data_dir))!r}, isolation_level=None)
    sys.holder.execute("BEGIN IMMEDIATE")
"""
    write_shop(first(), second(hold))
    fleet = [tenant(name) for name in ("acme", "globex", "initech")]

    report = upgrade(fleet, data_dir, ONE)
    left = [step.state for step in _steps(data_dir, 1)]
    again = upgrade(fleet, data_dir, ONE)

    reasons = {status.tenant: status.reason for status in report.results}
    held = f"cannot use the journal {journal_file(data_dir)}: database is locked; another process "
    assert ["upgraded", "failed", "upgraded"] == [status.state for status in report.results]
    assert [True, True, False] == [reasons[one.name].startswith(held) for one in fleet]
    assert ["running", "pending", "done"] == left
    assert ["at head", "upgraded", "at head"] == [status.state for status in again.results]
    assert [1] == _runs(data_dir)
    assert {"done"} == {step.state for step in _steps(data_dir, 1)}


def test_tenants_that_are_wrongly_assumed_to_be_behind_are_not_migrated(
    write_shop: WriteShop,
    tenant: MakeTenant,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A database that turns out to be up to date is not migrated."""
    monkeypatch.setattr("tenantry.migrations.status.SAMPLE_SIZE", 1)
    write_shop(first())
    down = tenant("down", f"sqlite:///{data_dir}/nowhere/down.sqlite3")
    fleet = [
        tenant("acme"),
        tenant("ahead"),
        down,
        tenant("globex"),
        tenant("landing", "", "landing"),
    ]
    for name, revision in (("ahead", "shop_9"), ("globex", "shop_1")):
        stamp(data_dir / name / f"{name}.sqlite3", revision)

    report = upgrade(fleet, data_dir, ONE)

    assert {
        "acme": "upgraded",
        "ahead": "ahead",
        "down": "unreachable",
        "globex": "at head",
        "landing": "no tables",
    } == states(report.results)
    assert {"acme": "done", "ahead": "failed", "down": "failed"} == {
        step.tenant: step.state for step in _steps(data_dir, 1)
    }


def test_revisions_of_a_former_endpoint_do_not_prevent_an_upgrade(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path
) -> None:
    """A revision of an endpoint that the tenant no longer uses does not prevent an upgrade."""
    write_shop(first())
    acme = tenant("acme")
    stamp(data_dir / "acme/acme.sqlite3", "old_7")

    up = upgrade([acme], data_dir, ONE).results[0].state
    upgraded = revisions(acme)
    back = downgrade([acme], data_dir, None, ONE).results[0].state

    assert ("upgraded", {"old_7", "shop_1"}) == (up, upgraded)
    assert ("downgraded", {"old_7"}) == (back, revisions(acme))


def stamp(file: Path, revision: str) -> None:
    """Create a SQLite database at a revision, without that revision's tables."""
    file.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
        connection.commit()


def test_an_unknown_run_is_named(data_dir: Path) -> None:
    """The error for a downgrade of an unknown run lists the runs."""
    with pytest.raises(TenantryError, match="no run to downgrade"):
        downgrade([], data_dir)
    with Journal(data_dir) as journal:
        journal.open_run({}, {}, {})

    with pytest.raises(TenantryError, match="no run 7 to downgrade; runs: 1"):
        downgrade([], data_dir, 7)


def test_the_status_of_a_fleet_is_read(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, postgres_server: Postgres
) -> None:
    """Every tenant has a migration status, even if some databases cannot be reached."""
    ahead = tenant("ahead")
    write_shop(first(), second(), second(revision="shop_3", after="shop_2").replace("prices", "x"))
    upgrade([ahead], data_dir, ONE)
    write_shop(first(), second())
    down = tenant("down", postgres_server.url("nowhere"))
    fleet = [ahead, tenant("behind"), down, tenant("none", endpoint="landing")]

    found = fleet_status(fleet, data_dir)
    made = [name for name in ("behind", "none") if (data_dir / name).exists()]
    refused = upgrade(fleet[:1], data_dir, ONE).results[0]

    assert ["ahead", "behind", "unreachable", "no tables"] == [status.state for status in found]
    assert [] == made
    assert "the database is at shop_3, which no endpoint here has" in refused.reason
    assert 'database "nowhere" does not exist' in found[2].reason


# -- two runs at once ---------------------------------------------------------------------------

RUN = """\
import sys
from pathlib import Path
from tenantry.migrations.fleet_run import FleetLimits, upgrade
from tenantry.tenants.validation import parse_tenant
data_dir, jobs, *named = sys.argv[1:]
fleet = [
    parse_tenant(name, {"SECRET_KEY": name * 40, "BLUEPRINTS": ["corp.shop"], "DATABASE_URI": url},
                 data_dir=Path(data_dir))
    for name, url in (one.split("=", 1) for one in named)
]
upgrade(fleet, Path(data_dir), FleetLimits(int(jobs)))
"""


@contextlib.contextmanager
def upgrading(
    data_dir: Path, fleet: list[Tenant], jobs: int = 1
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run an upgrade in another process. At the end of the block, kill that process."""
    named = [f"{one.name}={one.database_uri.get_secret_value()}" for one in fleet]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", RUN, str(data_dir), str(jobs), *named]
    with subprocess.Popen(command, env=environ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_second_run_waits_and_finds_nothing_to_do(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, new_url: Callable[[], str]
) -> None:
    """While one migration run migrates a database, a second run waits for the first run."""
    acme = tenant("acme", new_url())
    started, go = data_dir / "started", data_dir / "go"
    wait = f"""\
open({str(started)!r}, "w").close()
while not os.path.exists({str(go)!r}): time.sleep(0.01)
"""
    write_shop(first(), second(wait))
    data_dir.mkdir()
    results: list[MigrationStatus] = []

    with upgrading(data_dir, [acme]) as other:
        wait_until(started.exists)
        held = upgrade([acme], data_dir, FleetLimits(1, lock_timeout_s=0.1)).results[0]
        second_run = threading.Thread(
            target=lambda: results.extend(upgrade([acme], data_dir, ONE).results)
        )
        second_run.start()
        go.touch()
        second_run.join()
        code = other.wait()

    assert (0, "failed", "at head") == (code, held.state, results[0].state)
    assert "locks this database and did not finish in 0.1 s" in held.reason
    assert "process " in held.reason
    assert [{"shop_2"}, "done"] == [revisions(acme), _steps(data_dir, 1)[0].state]


def test_the_next_run_finishes_a_killed_one(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, new_url: Callable[[], str]
) -> None:
    """After a migration run is killed, the next run migrates the remaining databases."""
    fleet = [tenant(name, new_url()) for name in ("a1", "b2", "c3")]
    log, stop = data_dir / "log", data_dir / "stop"
    body = f"""\
with open({str(log)!r}, "a") as log: log.write(name + chr(10))
while os.path.exists({str(stop)!r}) and len(open({str(log)!r}).readlines()) == 2: time.sleep(0.01)
"""
    write_shop(first(), second(body))
    data_dir.mkdir()
    stop.touch()
    with upgrading(data_dir, fleet) as process:
        wait_until(lambda: log.exists() and len(log.read_text().splitlines()) == 2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    stop.unlink()
    killed = [step.state for step in _steps(data_dir, 1)]

    report = upgrade(fleet, data_dir, ONE)

    assert ["done", "running", "pending"] == killed
    assert (1, ["at head", "upgraded", "upgraded"]) == (
        report.run, [status.state for status in report.results]
    )  # fmt: skip
    # The second database is read twice, and the other databases once.
    assert 4 == len(log.read_text().splitlines())
    back = downgrade(fleet, data_dir, None, ONE)
    assert {"a1": "downgraded", "b2": "downgraded", "c3": "downgraded"} == states(back.results)
    assert [{"alembic_version"}] * 3 == [tables(one) for one in fleet]
