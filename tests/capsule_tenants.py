"""Helps tests of backups create tenants that have files, and rows of every column type."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import NullPool, create_engine, make_url

from capsule_files import quiet
from conftest import tenant_text
from shops import WriteShop
from tenantry.capsules import Capsule, read_capsule, write_capsule
from tenantry.capsules.restore import restore_capsule
from tenantry.capsules.staging import RestoreStaging
from tenantry.cli import main
from tenantry.settings import HostSettings
from tenantry.tenants.catalogue import load_tenant

RunCommand = Callable[..., tuple[int, str, str]]

KINDS = """\
import sqlalchemy as sa
from alembic import op
revision = "shop_1"
down_revision = None
branch_labels = ("shop",)
def upgrade():
    op.create_table(
        "things",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("parent", sa.Integer, sa.ForeignKey("things.id")),
        sa.Column("key", sa.Uuid),
        sa.Column("name", sa.String(50)),
        sa.Column("is_on", sa.Boolean),
        sa.Column("price", sa.Numeric(12, 4)),
        sa.Column("weight", sa.Float),
        sa.Column("made", sa.DateTime),
        sa.Column("day", sa.Date),
        sa.Column("data", sa.LargeBinary),
        sa.Column("extra", sa.JSON),
    )
    op.create_table(
        "a_first",  # sorts before the table that it refers to
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("thing", sa.Integer, sa.ForeignKey("things.id"), nullable=False),
    )
    op.execute("INSERT INTO things (id, name) VALUES (77, 'by the migration')")
def downgrade():
    pass
"""

THINGS = (
    (
        "INSERT INTO things VALUES (1, 2, '0123456789abcdef0123456789abcdef', 'ä\n\t\\', {true}, "
        "12345.6789, 0.1, '2026-01-02 03:04:05.000006', '2026-01-02', {bytes}, "
        "'{{\"a\": [1.5, null]}}')"
    ),
    "INSERT INTO things VALUES (2, NULL, NULL, '', {false}, -0.5, 1e300, NULL, NULL, NULL, NULL)",
    "INSERT INTO a_first VALUES (1, 2)",
)


def backup(settings: HostSettings, name: str, path: Path) -> Capsule:
    """Write a tenant's backup file, and return the content that Tenantry reads back from it."""
    tenant, loaded = load_tenant(settings, name)
    write_capsule(tenant, loaded, settings.data_dir, path, quiet)
    return read_capsule(path, quiet)


def restore(capsule: Capsule, settings: HostSettings, name: str, url: str | None = None) -> None:
    """Restore a backup file, and write the tenant file."""
    database = None if url is None else make_url(url)
    with (
        RestoreStaging(settings.data_dir, name) as staging,
        restore_capsule(capsule, staging, database, quiet, with_templates=True) as pending,
        pending.commit(),
    ):
        keys = dict(capsule.config) | ({} if url is None else {"DATABASE_URI": url})
        path = settings.tenants_dir / f"{name}.py"
        path.write_text(tenant_text(name, **keys))


def rows(url: str, table: str) -> list[tuple[Any, ...]]:
    """Return a table's rows as the database driver returns them."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        found = connection.exec_driver_sql(f"SELECT * FROM {table} ORDER BY id")
        return [tuple(row) for row in found]


def url_of(settings: HostSettings, name: str) -> str:
    """Return the URL of a tenant's database."""
    return load_tenant(settings, name)[0].database_uri.get_secret_value()


@pytest.fixture(name="tenantry")
def tenantry_fixture(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> RunCommand:
    """Return a function that runs a `tenantry` command and returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tenantry", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capfd.readouterr()

    return run


@pytest.fixture(name="acme")
def acme_fixture(settings: HostSettings, write_tenant: Callable[..., Path]) -> Path:
    """Return the folder of a tenant that has a file but no database."""
    write_tenant("acme")
    folder = settings.data_dir / "acme"
    (folder / "static").mkdir(parents=True)
    (folder / "static/a.css").write_text("body {}")
    (folder / "operator_state.json").write_text("{}")
    return folder


@pytest.fixture(name="things")
def things_fixture(
    settings: HostSettings, write_shop: WriteShop, write_tenant: Callable[..., Path]
) -> Callable[..., None]:
    """Return a function that creates a tenant that has a table with a column of each type."""

    def write(name: str, **keys: object) -> None:
        write_tenant(name, BLUEPRINTS=[write_shop(KINDS)], **keys)
        url = url_of(settings, name)
        (settings.data_dir / name).mkdir(parents=True, exist_ok=True)
        with create_engine(url, poolclass=NullPool).begin() as connection:
            context = MigrationContext.configure(connection)
            revision: dict[str, Any] = {}
            exec(KINDS, revision)
            with Operations.context(context):
                revision["upgrade"]()
            context._ensure_version_table()
            connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('shop_1')")
        is_server_database = "DATABASE_URI" in keys
        words = {"true": "true", "false": "false", "bytes": r"'\x00ff'"}
        words = words if is_server_database else {"true": "1", "false": "0", "bytes": "x'00ff'"}
        with create_engine(url, poolclass=NullPool).begin() as connection:
            connection.exec_driver_sql("DELETE FROM things")
            for statement in (THINGS[1], THINGS[0], THINGS[2]):
                text = statement.format(**words)
                connection.exec_driver_sql(text.replace("%", "%%") if is_server_database else text)

    return write
