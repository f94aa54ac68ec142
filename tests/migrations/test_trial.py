"""`tenantry check` and `restart` try migrations on copies of databases."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from commands import Tenantry
from postgres import Postgres
from shops import WriteShop, first, second, write_shop_fixture
from tenantry.cli.restart import _find_lost_tenants
from tenantry.host import Host
from tenantry.migrations import trial
from tenantry.migrations.fleet_run import FleetLimits, upgrade
from tenantry.migrations.trial import find_migration_problems, find_untried
from tenantry.observability.control_socket import WorkerStatus
from tenantry.settings import HostSettings
from tenantry.tenants.catalogue import scan_tenants
from tenantry.tenants.model import Tenant
from tenantry.tenants.validation import parse_tenant

pytestmark = pytest.mark.live

__all__ = ["write_shop_fixture"]

WriteTenant = Callable[..., Path]
MakeTenant = Callable[..., Tenant]

LONG = "a" * 64

SAME_KEY = """\
for name in "ab":
    op.create_table(name, sa.Column("x", sa.Integer), sa.UniqueConstraint("x", name="u"))
"""
SAME_TYPE = """\
for name in "ab":
    op.create_table(name, sa.Column("x", sa.Enum("y", name="e")))
"""
SAME_INDEX_LATER = """\
op.create_index("i", "goods", ["id"])
op.drop_index("i", "goods")
op.create_index("i", "prices", ["id"])
"""
BATCH = """\
name = "t" * 60
op.create_table(name, sa.Column("id", sa.Integer, primary_key=True))
with op.batch_alter_table(name) as batch:
    batch.alter_column("id", new_column_name="number")
"""


@pytest.fixture(name="tenant")
def _tenant(data_dir: Path) -> MakeTenant:
    """Return a function that makes a tenant with the endpoint `corp.shop`."""

    def make(name: str = "acme", url: str = "") -> Tenant:
        values = {"SECRET_KEY": f"{name}-" * 12, "BLUEPRINTS": ["landing", "corp.shop"]}
        return parse_tenant(
            name, values | ({"DATABASE_URI": url} if url else {}), data_dir=data_dir
        )

    return make


def texts(tenants: list[Tenant], data_dir: Path, *, is_foreseeing: bool = True) -> list[str]:
    """Return the text of each problem."""
    found = find_migration_problems(tenants, data_dir, is_foreseeing=is_foreseeing)
    return [f"{tenant.name} {problem.key}: {problem.text}" for tenant, problem in found]


def test_a_migration_that_fails_on_the_tenants_rows_is_foreseen(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path
) -> None:
    """A pending migration runs on a copy of each database, and the databases do not change."""
    write_shop(first())
    tenants = [tenant("acme"), tenant("globex"), tenant("initech")]
    upgrade(tenants[:2], data_dir, FleetLimits(jobs=1))
    file = data_dir / "acme/acme.sqlite3"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("INSERT INTO goods VALUES (7)")
        connection.commit()
    before = file.read_bytes()
    write_shop(first(), second('assert not op.get_bind().scalar(sa.text("SELECT id FROM goods"))'))

    found = texts(tenants, data_dir)

    assert 1 == len(found), found
    assert found[0].startswith("acme BLUEPRINTS: its migration fails: AssertionError")
    assert before == file.read_bytes()
    assert not (data_dir / "initech").exists()


def test_check_and_restart_report_a_failing_migration(
    write_shop: WriteShop, write_tenant: WriteTenant, settings: HostSettings, tenantry: Tenantry
) -> None:
    """If a migration fails, `tenantry check` exits with 1, and `restart` keeps the host running."""
    write_tenant("acme", BLUEPRINTS=["landing", "corp.shop"])
    write_shop(first())
    host = Host(settings)
    host.load()
    worker = WorkerStatus(1, 1, is_ready=True, mounts=tuple(host.report.listing()["mounts"]))
    host.close()
    good = tenantry("check"), _find_lost_tenants(settings, [worker], scan_tenants(settings))
    write_shop(first(), second("1 / 0"))

    checked = tenantry("check")
    lost = _find_lost_tenants(settings, [worker], scan_tenants(settings))

    assert (0, []) == (good[0].code, good[1])
    assert (1, True) == (checked.code, "ZeroDivisionError: division by zero" in checked.out)
    assert [True] == [line.startswith("acme would fail: ") for line in lost]


def test_a_large_database_is_not_copied(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operators read that the pending migrations of a large database are not tried."""
    write_shop(first())
    acme, globex = tenant("acme"), tenant("globex")
    upgrade([acme], data_dir, FleetLimits(jobs=1))
    monkeypatch.setattr(trial, "COPY_LIMIT_BYTES", 1 << 10)
    before = list(find_untried([acme, globex], data_dir))
    write_shop(first(), second("1 / 0"))

    [(found, note)] = find_untried([acme, globex], data_dir)

    assert ([], acme, []) == (before, found, texts([acme], data_dir, is_foreseeing=False))
    assert "tenantry db upgrade --tenant acme" in note.text


def test_a_failed_upgrade_of_a_server_is_reported(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, postgres_server: Postgres
) -> None:
    """`tenantry check` reports why the last upgrade of a PostgreSQL database failed."""
    write_shop(first(), second("1 / 0"))
    acme = tenant("acme", postgres_server.new_database())
    before = texts([acme], data_dir)
    upgrade([acme], data_dir, FleetLimits(jobs=1))
    failed = texts([acme], data_dir, is_foreseeing=False)
    write_shop(first(), second())
    upgrade([acme], data_dir, FleetLimits(jobs=1))

    assert ([], []) == (before, texts([acme], data_dir))
    assert [True] == ["last migration failed: ZeroDivisionError" in text for text in failed]


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        (f'op.create_table("{LONG}", sa.Column("id", sa.Integer))', "has 64 bytes"),
        ('op.create_table("é" * 32, sa.Column("id", sa.Integer))', "has 64 bytes"),
        (f'op.add_column("goods", sa.Column("{LONG}", sa.Integer))', "has 64 bytes"),
        (f'op.create_index("{LONG}", "goods", ["id"])', "exceeds maximum length of 63"),
        (f'op.rename_table("goods", "{LONG}")', "has 64 bytes"),
        (f'op.execute("CREATE TABLE {LONG} (x TEXT)")', "has 64 bytes"),
        (
            'op.add_column("goods", sa.Column("new", sa.Boolean, server_default=sa.text("0")))',
            "the default 0 of the boolean column new is a number",
        ),
        (SAME_KEY, "tables 'a' and 'b' both have a table, key or index 'u'"),
        (SAME_TYPE, "two tables create the type 'e'"),
        ('op.create_table("a", sa.Column("x", sa.Enum("y")))', "Enum type requires a name"),
    ],
)
def test_what_postgresql_refuses_is_foreseen_on_sqlite(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, body: str, refusal: str
) -> None:
    """A check of migrations on SQLite also reports what PostgreSQL would refuse."""
    write_shop(first(), second(body))

    found = texts([tenant()], data_dir)

    assert [True] == [refusal in text for text in found], found
    assert "acme BLUEPRINTS: PostgreSQL would refuse its migrations: " in found[0]


@pytest.mark.parametrize(
    "body",
    [
        f'op.execute("INSERT INTO prices VALUES (1) -- {LONG}")',
        f"""op.execute("CREATE TABLE x AS SELECT '{LONG}' AS y")""",
        'op.add_column("goods", sa.Column("new", sa.Boolean, server_default=sa.true()))',
        SAME_INDEX_LATER,
        BATCH,
    ],
)
def test_what_postgresql_accepts_is_no_problem(
    write_shop: WriteShop, tenant: MakeTenant, data_dir: Path, body: str
) -> None:
    """What PostgreSQL accepts, such as long comments, is not reported for migrations on SQLite."""
    write_shop(first(), second(body))

    assert [] == texts([tenant()], data_dir)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize(
    ("revision", "expected"),
    [
        ("shop_" + "1" * 35, "has 40 characters; PostgreSQL stores at most 32"),
        ("9f1c2d3e4a5b", "does not begin with the endpoint's name"),
        ("shopping_1", "does not begin with the endpoint's name"),
    ],
)
def test_a_bad_revision_id_is_caught_by_check(
    *,
    write_shop: WriteShop,
    tenant: MakeTenant,
    data_dir: Path,
    postgres_url: str,
    kind: str,
    revision: str,
    expected: str,
) -> None:
    """`tenantry check` reports a revision ID that is too long or lacks the endpoint's name."""
    write_shop(first(revision))

    found = texts([tenant(url=postgres_url if kind == "postgresql" else "")], data_dir)

    assert [True] == [expected in text for text in found], found
    assert found[0].startswith("acme BLUEPRINTS[1]: endpoint 'corp.shop': the revision")
