"""Measures what the copy of the modules of each tenant costs: memory, and instructions of a build.

    python tests/bench/copies.py [memory] [build]

- `memory` measures the resident memory of a worker per tenant that has answered a request: at most
  40 KiB with the endpoint `landing`, 250 KiB with `images`, and 1 MiB with each of two apps of 15
  modules and 10 mapped tables. In one app, 4 tables have a relationship to their parent. In the
  other app, the tables form a chain with 18 relationships, which go in both directions.
- `build` counts the instructions with which the host builds and checks a tenant's app with a view,
  compared with a plain Flask app that has the same routes and answers one request. The host may
  take at most 3 times as many. valgrind counts only the thread that builds, so that the figure does
  not depend on other load.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from flask import Flask
from flask_restful import Api
from loads import Bounds, Connection, serving, usage

from tenantry.endpoints.landing.resources import LandingPage
from tenantry.host import create_host
from tenantry.observability.scoreboard import Scoreboard
from tenantry.settings import HostSettings

WARM = 30
"""Tenants that answer before the measurement, so that libraries are imported and all database
connections of the process are open."""

BUILDS = (20, 60)
TABLES = 10
PARENTS = 4
"""Tables with a relationship in the app with few relationships."""

MAX_RATIO = 3
SECRET_KEY = "k" * 40

MODELS = """
from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column, relationship
from ..tables import Base


class {name}Model(Base):
    __tablename__ = "{table}"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("{parent}.id"))
    name: Mapped[str]
    text: Mapped[str | None]
    amount: Mapped[int] = mapped_column(default=0)
    {relationship}

    def total(self) -> int:
        return 2 * self.amount
"""

PARENT = 'parent = relationship("{parent}Model"{both})'
CHILDREN = 'children = relationship("{child}Model", back_populates="parent")'

MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "{app}_1"
down_revision = None
branch_labels = ("{app}",)


def upgrade():
    for number in range({tables}):
        op.create_table(
            f"thing{{number}}s",
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("parent_id", sa.Integer, sa.ForeignKey(f"thing{{max(number - 1, 0)}}s.id")),
            sa.Column("name", sa.String, nullable=False),
            sa.Column("text", sa.String),
            sa.Column("amount", sa.Integer, nullable=False),
        )


def downgrade():
    pass
"""

RESOURCES = """
from flask import request
from flask_restful import Resource
from sqlalchemy import select
from tenantry import db
{imports}


def resource(model):
    class Rows(Resource):
        def get(self):
            rows = db.session.scalars(select(model).limit(int(request.args.get("limit", 10))))
            return {{"rows": [row.name for row in rows]}}
    Rows.__name__ = model.__name__
    return Rows


RESOURCES = {{model.__tablename__: resource(model) for model in ({names})}}
"""

BLUEPRINT = """
from flask import Blueprint
from flask_restful import Api
from .resources import RESOURCES

{app}_bp = Blueprint("{app}", __name__)
{app}_api = Api({app}_bp)
for table, rows in RESOURCES.items():
    {app}_api.add_resource(rows, f"/{{table}}/", endpoint=table)


@{app}_bp.get("/")
def front():
    return RESOURCES["thing1s"]().get()
"""


def main() -> None:
    """Run the chosen parts, or the builds of one side."""
    if sys.argv[1:2] in (["plain"], ["host"]):
        run(sys.argv[1], int(sys.argv[2]))
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=[[], "memory", "build"])
    parts = parser.parse_args().parts or ["memory", "build"]
    bounds = Bounds()
    if "memory" in parts:
        for what, count, endpoint, path, bound_kib in (
            ("with landing", 1000, "landing", "/", 40),
            ("with images", 300, "images", "/images/", 250),
            ("of 15 modules with 10 mapped tables, 4 relationships", 100, "few", "/", 1024),
            ("of 15 modules with 10 mapped tables, 18 relationships", 100, "both", "/", 1024),
        ):
            kib = memory_kib(count, endpoint, path)
            bounds.check(f"memory of an awake tenant {what}", kib, bound_kib, " KiB")
    if "build" in parts:
        plain, host = count_build("plain"), count_build("host")
        print(f"  instructions of a build: plain app {plain:,.0f}, host {host:,.0f}")
        bounds.check("instructions of a build, host ÷ plain app", host / plain, MAX_RATIO)
    bounds.end()


# -- memory -------------------------------------------------------------------------------------


def memory_kib(count: int, endpoint: str, path: str) -> float:
    """Return the memory of a tenant that has answered a request, in KiB."""
    with tempfile.TemporaryDirectory() as name:
        site = Path(name)
        for app in ("few", "both"):
            write_real_app(site, app)
        (site / "tenants").mkdir()
        for number in range(WARM + count):
            text = f"SECRET_KEY = {f't{number}' * 16!r}\nBLUEPRINTS = [{endpoint!r}]\n"
            (site / f"tenants/t{number}.py").write_text(text)
        with serving(site, 1, TENANTRY_MAX_ACTIVE="10000") as server:
            server.wait_for("/-/readyz", 200, every_s=0.2)
            (worker,) = server.workers()
            connection = Connection(server.port)
            before = 0
            for number in range(WARM + count):
                if number == WARM:
                    time.sleep(3)  # until the worker is idle
                    before = usage(worker).rss_kib
                status, _ = connection.get(f"/t{number}{path}")
                if status not in (200, 201):
                    raise SystemExit(f"/t{number}{path} answered {status}")
            connection.close()
            time.sleep(3)
            return (usage(worker).rss_kib - before) / count


def write_real_app(site: Path, app: str) -> None:
    """Write an endpoint of 15 modules with 10 mapped tables."""
    names = [f"Thing{number}" for number in range(TABLES)]
    package = site / app
    (package / "things").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "things/__init__.py").touch()
    (package / "tables.py").write_text(
        "from sqlalchemy.orm import DeclarativeBase\n\nclass Base(DeclarativeBase):\n    pass\n"
    )
    for number, name in enumerate(names):
        parent = names[max(number - 1, 0)]
        found = relationships(names, number, is_both=app == "both")
        values = {"name": name, "table": f"{name.lower()}s", "parent": f"{parent.lower()}s"}
        text = MODELS.format(**values, relationship="\n    ".join(found))
        (package / f"things/{name.lower()}.py").write_text(text)
    (package / "migrations").mkdir()
    (package / "migrations/0001.py").write_text(MIGRATION.format(app=app, tables=TABLES))
    imports = "".join(f"from .things.{name.lower()} import {name}Model\n" for name in names)
    models = ", ".join(f"{name}Model" for name in names)
    (package / "resources.py").write_text(RESOURCES.format(imports=imports, names=models))
    (package / "blueprint.py").write_text(BLUEPRINT.format(app=app))


def relationships(names: list[str], number: int, *, is_both: bool) -> list[str]:
    """Return the relationships of one class, which form a chain through all tables."""
    found = []
    if number and (is_both or number <= PARENTS):
        both = ', back_populates="children"' if is_both else ""
        found.append(PARENT.format(parent=names[number - 1], both=both))
    if is_both and number + 1 < len(names):
        found.append(CHILDREN.format(child=names[number + 1]))
    return found


# -- builds -------------------------------------------------------------------------------------


def count_build(side: str) -> float:
    """Return the instructions of one build of a side."""
    few, many = (_instructions(side, number) for number in BUILDS)
    return (many - few) / (BUILDS[1] - BUILDS[0])


def _instructions(side: str, number: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--separate-threads=yes"]
        command += [f"--callgrind-out-file={folder}/counts"]
        command += [sys.executable, __file__, side, str(number)]
        subprocess.run(command, capture_output=True, check=True)
        counts = Path(folder, "counts-01").read_text()  # thread 1 is the main thread
    found = re.search(r"^(?:summary|totals): (\d+)", counts, re.MULTILINE)
    if found is None:
        raise SystemExit("valgrind has counted nothing")
    return int(found[1])


def run(side: str, number: int) -> None:
    """Build one side several times, and end the process without clean-up."""
    with tempfile.TemporaryDirectory() as folder:
        build = host_build(Path(folder)) if side == "host" else plain_build
        for _ in range(number):
            build()
        os._exit(0)


def plain_build() -> None:
    """Build a plain Flask app with the landing endpoint, and send it a request."""
    app = Flask("plain")
    app.secret_key = SECRET_KEY
    page = type("LandingPage", (LandingPage,), {})  # Flask-RESTful keeps the endpoint on the class
    Api(app).add_resource(page, "/")
    app.test_client().options("/")


def host_build(folder: Path) -> Callable[[], None]:
    """Return a function that builds and checks a tenant's app, as the host does."""
    tenants_dir = folder / "tenants"
    tenants_dir.mkdir()
    (tenants_dir / "acme.py").write_text(f"SECRET_KEY = {SECRET_KEY!r}\nBLUEPRINTS = ['landing']")
    os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT), 2)
    settings = HostSettings(tenants_dir=tenants_dir, data_dir=folder / "instance")
    host = create_host(settings, is_serving=True)
    host.start("gunicorn", row=Scoreboard().claim_row(), threads=8)
    (mount,) = host.router.mounts
    tenant = mount.tenant
    if tenant is None:
        raise SystemExit("the tenant was rejected")

    def build() -> None:
        host.build(tenant).retire()

    return build


if __name__ == "__main__":
    main()
