"""Fleet runs over real databases: carry on past failures, resume, take back, do not collide."""

import contextlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, NullPool, Table, create_engine, event, inspect

from postgres import Postgres
from servers import wait_until
from shops import WriteShop, first, second, write_shop_fixture
from tenantry.cli import main
from tenantry.cli.db import progress
from tenantry.errors import TenantryError
from tenantry.migrations import steps as migration_steps
from tenantry.migrations.fleet_run import FleetLimits, downgrade, upgrade
from tenantry.migrations.journal import Journal, Step, journal_file
from tenantry.migrations.status import Outcome, survey
from tenantry.migrations.steps import Request
from tenantry.tenants.model import Tenant, parse_tenant

pytestmark = pytest.mark.live

__all__ = ["write_shop_fixture"]

ONE = FleetLimits(jobs=1)

MakeTenant = Callable[..., Tenant]


@pytest.fixture(name="tenant")
def _tenant(data_dir: Path) -> MakeTenant:
    """Return a function that makes a tenant of the shop: `tenant("acme", url)`."""

    def make(name: str, url: str = "", endpoint: str = "corp.shop") -> Tenant:
        values = {"SECRET_KEY": f"{name}-" * 12, "BLUEPRINTS": [endpoint]}
        values |= {"DATABASE_URI": url} if url else {}
        return parse_tenant(name, values, data_dir=data_dir)

    return make


@pytest.fixture(name="new_url", params=["sqlite", "postgresql"])
def _new_url(request: pytest.FixtureRequest, postgres_server: Postgres) -> Callable[[], str]:
    """Return a function that makes a database: PostgreSQL's, or the tenant's default one."""
    return postgres_server.new_database if request.param == "postgresql" else lambda: ""


def states(outcomes: tuple[Outcome, ...]) -> dict[str, str]:
    """Return each tenant's state."""
    return {one.tenant: one.state for one in outcomes}


def tables(tenant: Tenant) -> set[str]:
    """Return the tables of a tenant's database."""
    engine = create_engine(tenant.database_uri.get_secret_value(), poolclass=NullPool)
    with engine.connect() as connection:
        return {*inspect(connection).get_table_names()}


def rows(tenant: Tenant) -> set[str]:
    """Return what a tenant's database is at."""
    engine = create_engine(tenant.database_uri.get_secret_value(), poolclass=NullPool)
    with engine.connect() as connection:
        return {*connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars()}


def test_a_servers_catalogues_are_not_searched_for_alembics_table(
    postgres_server: Postgres,
) -> None:
    """It is found by its name, there or not; any other table as ever."""
    url = postgres_server.new_database()
    request = Request("acme", url, ["corp.shop"], lock_file="", lock_wait_s=0.0)
    statements: list[str] = []
    found = []
    with migration_steps._connected(request) as connection:
        event.listen(connection, "before_cursor_execute", lambda *it: statements.append(it[2]))
        for name in ("alembic_version", "goods"):
            Table(name, MetaData(), Column("id", Integer)).create(connection, checkfirst=True)
            found.append([inspect(connection).has_table(one) for one in (name, "other")])
            if name == "alembic_version":
                searched = [one for one in statements if "pg_class" in one]
                statements.clear()

    assert [[True, False]] * 2 == found
    assert (1, True) == (len(searched), any("pg_class" in one for one in statements))


def test_a_run_carries_on_past_every_kind_of_failure(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path
) -> None:
    """What raises, ends its process or hangs costs its own tenant; a second run does the rest."""
    names = ["acme", "ends", "hangs", "initech", "raises", "zeta"]
    body = """\
if name.startswith("raises"): raise ValueError("two\\nlines")
if name.startswith("ends"): os._exit(3)
if name.startswith("hangs"): time.sleep(1000)
"""
    write_shop(first(), second(body))
    fleet = [tenant(name) for name in names]
    told: list[str] = []

    report = upgrade(
        fleet, data_dir, FleetLimits(1, timeout_s=3), lambda one: told.append(one.tenant)
    )
    write_shop(first(), second())
    again = upgrade(fleet, data_dir, ONE)

    reasons = {one.tenant: one.reason for one in report.outcomes if one.state == "failed"}
    assert {
        "ends": "its migration ended its process (exit code 3); the database was left as it was.",
        "hangs": "its migration did not finish in 3 s; the database was left as it was.",
        "raises": "ValueError: two lines; the database was left as it was.",
    } == reasons
    assert names == sorted(told)
    assert [one.state for one in again.outcomes] == [
        "at head", "upgraded", "upgraded", "at head", "upgraded", "at head"
    ]  # fmt: skip
    assert (report.run, {"done"}) == (again.run, {step.state for step in _steps(data_dir, 1)})


def test_a_lost_database_and_a_folder_that_is_none_cost_their_own_tenants(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path
) -> None:
    """No empty database is made where one is gone; a run goes on past what it cannot make."""
    write_shop(first())
    (data_dir / "acme").mkdir(parents=True)
    (data_dir / "acme/acme.sqlite3.made").touch()
    (data_dir / "globex").touch()
    fleet = [tenant(name) for name in ("acme", "globex", "initech")]

    report = upgrade(fleet, data_dir, ONE)

    assert {"acme": "unreachable", "globex": "failed", "initech": "upgraded"} == states(
        report.outcomes
    )
    assert not (data_dir / "acme/acme.sqlite3").exists()


def _steps(data_dir: Path, run: int) -> list[Step]:
    with Journal(data_dir) as journal:
        return [*journal.steps(run)]


def test_a_failed_migration_leaves_the_database_as_it_was(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, new_url: Callable[[], str]
) -> None:
    """Tables that were made before the failure, by any revision of the run, are gone again."""
    acme = tenant("acme", new_url())
    write_shop(first(), second("op.execute('INSERT INTO goods VALUES (1)'); 1 / 0"))

    report = upgrade([acme], data_dir, ONE)

    assert ["failed"] == [one.state for one in report.outcomes]
    assert "ZeroDivisionError" in report.outcomes[0].reason
    assert "the database was left as it was." in report.outcomes[0].reason
    assert set() == tables(acme)


BLOCK = "with op.get_context().autocommit_block(): op.execute('SELECT 1')\n"
COMMIT = "op.execute('COMMIT')\n"

REFUSED = """\
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
def test_a_migration_that_commits_half_way_says_what_to_do(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, body: str,
    new_url: Callable[[], str],
) -> None:  # fmt: skip
    """What was committed stays, where that has left the database is told, and how to go on."""
    acme = tenant("acme", new_url())
    write_shop(first(), second(body))

    from_nothing = upgrade([acme], data_dir, ONE).outcomes[0]
    write_shop(first(), second(body).replace('"prices"', '"more"'))
    from_the_first = upgrade([acme], data_dir, ONE).outcomes[0]

    assert {"goods", "prices", "more"} < tables(acme)
    for outcome in (from_nothing, from_the_first):
        assert ({"shop_1"}, {"shop_1"}) == (rows(acme), outcome.after)
        assert "what was committed before that stays" in outcome.reason
        assert "the database says that it is at shop_1: " in outcome.reason
        assert "tenantry db upgrade --tenant acme" in outcome.reason


def test_a_commit_that_is_refused_leaves_the_database_as_it_was(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, new_url: Callable[[], str]
) -> None:
    """What fails at the very end takes everything back, and that is told."""
    acme = tenant("acme", new_url())
    write_shop(first(), second(REFUSED))

    reason = upgrade([acme], data_dir, ONE).outcomes[0].reason

    assert set() == tables(acme)
    assert reason.startswith(("ForeignKeyViolation: ", "OperationalError: database is locked"))
    assert reason.endswith("; the database was left as it was.")


def test_a_rebuilt_table_of_sqlite_keeps_the_rows_that_refer_to_it(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path
) -> None:
    """Foreign keys delete nothing meanwhile; rows that refer to nothing are refused."""
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

    assert ["upgraded", "failed"] == [good.outcomes[0].state, bad.outcomes[0].state]
    assert "1 rows of tags refer to rows that are not there" in bad.outcomes[0].reason


def test_at_head_nothing_runs(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fleet at head is looked at; no process starts, and no run is written."""
    fleet = [tenant("acme"), tenant("globex"), tenant("initech", endpoint="landing")]
    write_shop(first())
    upgrade(fleet, data_dir, ONE)
    monkeypatch.setattr("tenantry.migrations.children.python_executable", lambda: "/nowhere")

    report = upgrade(fleet, data_dir, ONE)

    expected = {"acme": "at head", "globex": "at head", "initech": "no tables"}
    assert (None, expected) == (report.run, states(report.outcomes))
    assert [1] == _runs(data_dir)


def _runs(data_dir: Path) -> list[int]:
    with Journal(data_dir) as journal:
        return journal.runs()


def test_only_what_a_run_applied_is_taken_back(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path
) -> None:
    """Each database goes to where it was before a run; the run before that only if it is named."""
    acme, globex = tenant("acme"), tenant("globex")
    write_shop(first())
    upgrade([acme], data_dir, ONE)
    write_shop(first(), second())
    upgrade([acme, globex], data_dir, ONE)

    early = downgrade([acme], data_dir, 1, ONE)
    back = downgrade([acme, globex], data_dir, None, ONE)
    with pytest.raises(TenantryError, match="run 2 is taken back already; name --run 1"):
        downgrade([acme, globex], data_dir, None, ONE)
    earlier = downgrade([acme, globex], data_dir, 1, ONE)

    assert "it is at shop_2, not at shop_1, where the run left it" in early.outcomes[0].reason
    assert (2, {"acme": "taken back", "globex": "taken back"}) == (back.run, states(back.outcomes))
    assert (1, {"acme": "taken back"}) == (earlier.run, states(earlier.outcomes))
    assert ({"alembic_version"},) * 2 == (tables(acme), tables(globex))
    with pytest.raises(TenantryError, match="run 2 is taken back already; nothing is left of"):
        downgrade([acme, globex], data_dir, None, ONE)


def test_a_tenant_with_another_database_is_not_taken_back(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, tmp_path: Path
) -> None:
    """A name is no database: what a run did to one is not taken back from another."""
    write_shop(first())
    acme = tenant("acme")
    upgrade([acme], data_dir, ONE)
    stamp(tmp_path / "b/b.sqlite3", "shop_1")

    refused = downgrade([tenant("acme", f"sqlite:///{tmp_path}/b/b.sqlite3")], data_dir, 1, ONE)
    back = downgrade([acme], data_dir, None, ONE)

    assert {"acme": "failed"} == states(refused.outcomes)
    assert (
        f"its database is sqlite {tmp_path}/b/b.sqlite3, and run 1 changed sqlite "
        "acme/acme.sqlite3; let DATABASE_URI name that one to take it back there."
    ) == refused.outcomes[0].reason
    assert {"acme": "taken back"} == states(back.outcomes)


def test_a_fleet_whose_data_folder_was_moved_is_taken_back(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, tmp_path: Path
) -> None:
    """Its databases and its journal are the same ones."""
    write_shop(first())
    upgrade([tenant("acme")], data_dir, ONE)
    moved = data_dir.rename(tmp_path / "moved")
    values = {"SECRET_KEY": "acme" * 12, "BLUEPRINTS": ["corp.shop"]}

    back = downgrade([parse_tenant("acme", values, data_dir=moved)], moved, None, ONE)

    assert {"acme": "taken back"} == states(back.outcomes)


def test_a_journal_that_fails_in_the_middle_costs_no_more_than_it_must(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done is told as done and known to the next run; what was not begun is not touched."""
    monkeypatch.setattr("tenantry.migrations.journal.WAIT_S", 0.01)
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

    reasons = {one.tenant: one.reason for one in report.outcomes}
    held = f"cannot use the journal {journal_file(data_dir)}: database is locked; another process "
    assert ["upgraded", "failed", "upgraded"] == [one.state for one in report.outcomes]
    assert [True, True, False] == [reasons[one.name].startswith(held) for one in fleet]
    assert ["running", "pending", "done"] == left
    assert ["at head", "upgraded", "at head"] == [one.state for one in again.outcomes]
    assert [1] == _runs(data_dir)
    assert {"done"} == {step.state for step in _steps(data_dir, 1)}


def test_a_fleet_that_seems_to_be_all_behind_is_looked_at_by_who_migrates_it(
    write_shop: WriteShop,
    tenant: MakeTenant,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that are not behind all the same are found, left alone, and no part of the run."""
    monkeypatch.setattr("tenantry.migrations.status.SAMPLE", 1)
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
    } == states(report.outcomes)
    assert {"acme": "done", "ahead": "failed", "down": "failed"} == {
        step.tenant: step.state for step in _steps(data_dir, 1)
    }


def test_what_an_endpoint_left_that_is_no_more_is_no_hindrance(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path
) -> None:
    """Another one's tables are made beside it and taken back; its own row stays."""
    write_shop(first())
    acme = tenant("acme")
    stamp(data_dir / "acme/acme.sqlite3", "old_7")

    up = upgrade([acme], data_dir, ONE).outcomes[0].state
    there = rows(acme)
    back = downgrade([acme], data_dir, None, ONE).outcomes[0].state

    assert ("upgraded", {"old_7", "shop_1"}) == (up, there)
    assert ("taken back", {"old_7"}) == (back, rows(acme))


def stamp(file: Path, revision: str) -> None:
    """Make a SQLite database that says it is at a revision."""
    file.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
        connection.commit()


def test_an_unknown_run_is_named(data_dir: Path) -> None:
    """To take back what was never run is an error that lists the runs that there are."""
    with pytest.raises(TenantryError, match="there is no journal"):
        downgrade([], data_dir)
    with Journal(data_dir) as journal:
        journal.open_run({}, {}, {})

    with pytest.raises(TenantryError, match="no run 7 to take back; runs: 1"):
        downgrade([], data_dir, 7)


def test_a_fleet_is_surveyed(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, postgres_server: Postgres
) -> None:
    """Each tenant's place is told, whatever another's database does."""
    ahead = tenant("ahead")
    write_shop(first(), second(), second(revision="shop_3", after="shop_2").replace("prices", "x"))
    upgrade([ahead], data_dir, ONE)
    write_shop(first(), second())
    down = tenant("down", postgres_server.url("nowhere"))
    fleet = [ahead, tenant("behind"), down, tenant("none", endpoint="landing")]

    found = survey(fleet, data_dir)
    made = [name for name in ("behind", "none") if (data_dir / name).exists()]
    refused = upgrade(fleet[:1], data_dir, ONE).outcomes[0]

    assert ["ahead", "behind", "unreachable", "no tables"] == [one.state for one, _ in found]
    assert [] == made
    assert "it is at shop_3, which no endpoint here knows" in refused.reason
    assert 'database "nowhere" does not exist' in found[2][0].reason


# -- two at once --------------------------------------------------------------------------------

RUN = """\
import sys
from pathlib import Path
from tenantry.migrations.fleet_run import FleetLimits, upgrade
from tenantry.tenants.model import parse_tenant
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
    """Run an upgrade in another process, until the end of the block at the latest."""
    named = [f"{one.name}={one.database_uri.get_secret_value()}" for one in fleet]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", RUN, str(data_dir), str(jobs), *named]
    with subprocess.Popen(command, env=environ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_second_of_two_runs_waits_and_finds_nothing_to_do(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, new_url: Callable[[], str]
) -> None:
    """While one run is in the middle of a database, another says who holds it, or waits."""
    acme = tenant("acme", new_url())
    begun, go = data_dir / "begun", data_dir / "go"
    wait = f"""\
open({str(begun)!r}, "w").close()
while not os.path.exists({str(go)!r}): time.sleep(0.01)
"""
    write_shop(first(), second(wait))
    data_dir.mkdir()
    results: list[Outcome] = []

    with upgrading(data_dir, [acme]) as other:
        wait_until(begun.exists)
        held = upgrade([acme], data_dir, FleetLimits(1, lock_wait_s=0.1)).outcomes[0]
        second_run = threading.Thread(
            target=lambda: results.extend(upgrade([acme], data_dir, ONE).outcomes)
        )
        second_run.start()
        go.touch()
        second_run.join()
        code = other.wait()

    assert (0, "failed", "at head") == (code, held.state, results[0].state)
    assert "migrates this database and has not ended in 0.1 s" in held.reason
    assert "process " in held.reason
    assert [{"shop_2"}, "done"] == [rows(acme), _steps(data_dir, 1)[0].state]


def test_a_killed_run_is_finished_by_the_next(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, new_url: Callable[[], str]
) -> None:
    """After kill -9 in the middle of one database, the rest is done, once, and one run did it."""
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
        report.run, [one.state for one in report.outcomes]
    )  # fmt: skip
    assert 4 == len(log.read_text().splitlines())  # the second database twice, the others once
    back = downgrade(fleet, data_dir, None, ONE)
    assert {"a1": "taken back", "b2": "taken back", "c3": "taken back"} == states(back.outcomes)
    assert [{"alembic_version"}] * 3 == [tables(one) for one in fleet]


# -- the command --------------------------------------------------------------------------------


@pytest.fixture(name="tenantry")
def _tenantry(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a command in process: exit code, stdout, stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tenantry", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.mark.usefixtures("data_dir")
def test_the_fleet_is_upgraded_and_shown(
    write_shop: WriteShop,
    write_tenant: Callable[..., Path],
    tenantry: Callable[..., tuple[int, str, str]],
) -> None:
    """`upgrade --all` names what it could not do, `status` shows it, `downgrade` ends it."""
    write_shop(first(), second("if name.startswith('globex'): raise ValueError('no')"))
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=["corp.shop"])
    write_tenant("initech")
    write_tenant("broken", "SECRET_KEY = 1 +")

    code, out, err = tenantry("db", "upgrade", "--all", "--jobs", "1")
    status_code, status, _ = tenantry("db", "status", "--all", "--json")
    _, back, _ = tenantry("db", "downgrade", "--all")

    failed = "globex\tfailed\tnothing\tnothing\tValueError: no; the database was left as it was."
    assert (1, "acme\tupgraded\tnothing\tshop_2\t\n") == (code, out)
    assert failed in err
    assert "4 tenants (run 1): 2 failed, 1 no tables, 1 upgraded." in err
    found = {row["tenant"]: (row["state"], row["reason"][:17]) for row in json.loads(status)}
    assert (1, ("at head", ""), ("behind", "run 1: ValueError"), ("no tables", "")) == (
        status_code, found["acme"], found["globex"], found["initech"]
    )  # fmt: skip
    assert "failed" == found["broken"][0]
    assert "acme\ttaken back\tshop_2\tnothing\t" in back


class Terminal(io.StringIO):
    """What a terminal would be shown."""

    def isatty(self) -> bool:
        """Return True."""
        return True


def test_a_terminal_is_shown_how_far_a_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar counts every database; only what somebody has to look after gets a line."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())

    with progress(3, is_json=False, worth=("upgraded", "failed")) as tell:
        tell(Outcome("acme", "upgraded"))
        tell(Outcome("globex", "failed", reason="no"))

    shown = terminal.getvalue()
    assert [True, True, False] == ["2/3" in shown, "globex: failed: no" in shown, "acme" in shown]


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["upgrade"], "name tenants with --tenant NAME, or take every one with --all"),
        (["status", "--all", "--tenant", "acme"], "name tenants with --tenant NAME, or"),
        (["upgrade", "--tenant", "nobody"], "no tenant named 'nobody'; tenants: acme."),
    ],
)
def test_misuse_is_2(
    words: list[str],
    text: str,
    write_tenant: Callable[..., Path],
    tenantry: Callable[..., tuple[int, str, str]],
) -> None:
    """Neither, both or unknown tenants are refused before anything is touched."""
    write_tenant("acme")

    code, _, err = tenantry("db", *words)

    assert (2, True) == (code, text in err), err
