"""Writes an endpoint with database tables for tests: `corp.shop`, at `/shop`."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tenantry.settings import HostSettings

WriteShop = Callable[..., str]

_FILES = {
    "__init__.py": "",
    "blueprint.py": """\
from flask import Blueprint
from flask_restful import Api
from .resources import Shop
shop_bp = Blueprint("shop", __name__)
Api(shop_bp).add_resource(Shop, "/shop")
""",
    "resources.py": """\
from flask_restful import Resource
from sqlalchemy import text
from tenantry.database.session import db
class Shop(Resource):
    def get(self):
        return db.session.execute(text("SELECT count(*) FROM goods")).scalar_one()
""",
    "models.py": "",
}


def environment(settings: HostSettings) -> dict[str, str]:
    """Return the environment for a command that uses the test's folders and endpoints."""
    paths = [str(settings.data_dir.parent / "code"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "TENANTRY_TENANTS_DIR": str(settings.tenants_dir),
        "TENANTRY_DATA_DIR": str(settings.data_dir),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def first(revision: str = "shop_1", table: str = "goods") -> str:
    """Return a migration that creates a table."""
    return f"""\
import sqlalchemy as sa
from alembic import op
revision = {revision!r}
down_revision = None
branch_labels = ("shop",)
def upgrade():
    op.create_table({table!r}, sa.Column("id", sa.Integer, primary_key=True))
def downgrade():
    op.drop_table({table!r})
"""


def second(body: str = "", revision: str = "shop_2", after: str = "shop_1") -> str:
    """Return a migration that creates another table and then runs `body`.

    The code in `body` can use `name`, the name of the database.
    """
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"""\
import os, sys, time
import sqlalchemy as sa
from alembic import op
revision: str = {revision!r}
down_revision: str | None = {after!r}
def upgrade():
    op.create_table("prices", sa.Column("id", sa.Integer, primary_key=True))
    name = os.path.basename(op.get_bind().engine.url.database)
{lines}
def downgrade():
    op.drop_table("prices")
"""


@contextmanager
def writing_shops(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WriteShop]:
    """Yield a function that writes the endpoint with the given migrations and returns its name.

    Calling the function again replaces the migrations.
    """
    folder.mkdir()  # create the folder first: the import system caches a missing folder
    monkeypatch.syspath_prepend(folder)

    def write(*revisions: str, name: str = "shop") -> str:
        package = folder / "corp" / name
        migrations = package / "migrations"
        migrations.mkdir(parents=True, exist_ok=True)
        (folder / "corp" / "__init__.py").touch()
        for file, text in _FILES.items():
            (package / file).write_text(text.replace("shop", name).replace("Shop", name.title()))
        for path in migrations.glob("*.py"):
            path.unlink()
        for number, text in enumerate(revisions, 1):
            (migrations / f"{number:04}.py").write_text(text, encoding="utf-8")
        importlib.invalidate_caches()
        return f"corp.{name}"

    yield write
    for module in list(sys.modules):
        if module.partition(".")[0] == "corp":
            del sys.modules[module]


@pytest.fixture(name="write_shop")
def write_shop_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WriteShop]:
    """Return the function that `writing_shops` yields."""
    with writing_shops(tmp_path / "code", monkeypatch) as write:
        yield write
