"""Modules of a user's project do not shadow libraries, even if they have the same names."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import tenant_text
from servers import Server, program, running, wait_until
from tenantry.observability.control_socket import read_workers

pytestmark = pytest.mark.live

MODULES = (
    "app.py", "better_exceptions.py", "click.py", "colorama.py", "config.py", "core/__init__.py",
    "flask.py", "gevent.py", "gunicorn/__init__.py", "json.py", "resource.py", "rich.py",
    "setproctitle.py", "simplejson.py", "sitecustomize.py", "sqlalchemy/__init__.py",
    "usercustomize.py",
)  # fmt: skip
"""Python files of a project that have the same names as libraries.

Some of these libraries are optional dependencies of other libraries. Each file writes a marker
if Tenantry runs the file.
"""

MARK = "import pathlib\npathlib.Path(r'{folder}', __name__).write_text(__file__)\n"

ORDERS = """
from flask import Blueprint
import prices
orders_bp = Blueprint("orders", __name__)
@orders_bp.route("/orders/")
def orders():
    return prices.NAME
"""


class Project:
    """A project folder with the tenants acme and globex, and with modules named like libraries.

    globex uses an endpoint of the project's folder `own`. The code of acme comes with Tenantry.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "instance"
        self.marks = folder / "marks"
        self.marks.mkdir()
        for module in MODULES:
            path = folder / module
            path.parent.mkdir(exist_ok=True)
            path.write_text(MARK.format(folder=self.marks))
        self.write("own/prices.py", 'NAME = "orders"\n')
        self.write("own/shop/__init__.py", "")
        self.write("own/shop/orders/__init__.py", "")
        self.write("own/shop/orders/blueprint.py", ORDERS)
        self.write("tenants/acme.py", tenant_text("acme", APP_DIR="."))
        self.write("tenants/globex.py", tenant_text("globex", BLUEPRINTS=["shop.orders"]))

    def write(self, name: str, text: str) -> None:
        """Write a file of the project."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a `tenantry` command in the folder, in a separate process."""
        environ = {key: value for key, value in os.environ.items() if key[:9] != "TENANTRY_"}
        environ["TENANTRY_APP_DIR"] = "own"
        return subprocess.run(
            [program("tenantry"), *words],
            cwd=self.folder, env=environ, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def marked(self) -> list[str]:
        """Return the project's modules that have run."""
        return sorted(path.name for path in self.marks.iterdir())


@pytest.fixture(name="project")
def _project(tmp_path: Path) -> Project:
    """Return a project folder, whose folder `own` is the host's `APP_DIR`."""
    return Project(tmp_path)


@pytest.fixture(name="server")
def _server(project: Project) -> Iterator[Server]:
    """Serve the project with one worker, as `tenantry serve` does."""
    command = ["tenantry", "serve", "--bind", "{bind}", "--workers", "1"]
    with running(command, project.folder, TENANTRY_APP_DIR="own") as server:
        wait_until(lambda: len(read_workers(project.data)) == 1)
        yield server


@pytest.mark.parametrize(
    "words",
    [
        ("check",),
        ("list",),
        ("show", "globex"),
        ("routes", "globex"),
        ("new", "initech", "--endpoint", "shop.orders"),
        ("get", "/globex/orders/"),
        ("run", "globex", "--", "routes"),
        ("db", "upgrade", "--all"),
        ("plan", "--save", "snapshot.json"),
        ("audit",),
    ],
)
def test_a_command_runs_nothing_of_the_project(project: Project, words: tuple[str, ...]) -> None:
    """A `tenantry` command imports nothing from the project folder except endpoints."""
    result = project.run(*words)

    assert (0, []) == (result.returncode, project.marked()), result


def test_a_host_runs_nothing_of_the_project(project: Project, server: Server) -> None:
    """Workers, and commands about a running host, import only endpoints from the project folder."""
    answer = server.get("/globex/orders/")
    codes = [project.run(*words).returncode for words in (("list", "--wait"), ("plan",))]
    restart = project.run("restart")

    assert (200, b"orders") == (answer[0].status, answer[1])
    assert ([0, 0], 0) == (codes, restart.returncode), restart
    assert 200 == server.get("/globex/orders/")[0].status
    assert [] == project.marked()


def test_a_replaced_master_runs_nothing_of_the_project(project: Project, server: Server) -> None:
    """A master that SIGUSR2 starts imports only endpoints from the project folder."""
    os.kill(server.process.pid, signal.SIGUSR2)
    wait_until(lambda: len({worker.master for worker in read_workers(project.data)}) == 2)
    os.kill(server.process.pid, signal.SIGTERM)
    server.process.wait()

    assert 200 == server.get("/globex/orders/")[0].status
    assert [] == project.marked()


@pytest.mark.parametrize(
    "command",
    [
        ["gunicorn", "-c", "python:tenantry.server.gunicorn_conf", "--bind", "{bind}"],
        ["waitress-serve", "--listen={bind}", "tenantry.wsgi:application"],
    ],
)
def test_another_server_runs_nothing_of_the_project(project: Project, command: list[str]) -> None:
    """Under plain `gunicorn` or waitress, the host imports only endpoints from the project."""
    with running(command, project.folder, TENANTRY_APP_DIR="own") as server:
        # The tenant answers 503 until its app is built.
        wait_until(lambda: server.get("/globex/orders/")[0].status == 200)
        answer = server.get("/globex/orders/")

    assert (200, b"orders") == (answer[0].status, answer[1])
    assert [] == project.marked()


def test_a_tenant_file_cannot_import_from_the_project(project: Project) -> None:
    """A tenant file cannot import modules of the project folder."""
    project.write("tenants/acme.py", "import config\n" + tenant_text("acme"))

    result = project.run("check", "acme")

    assert (1, []) == (result.returncode, project.marked())
    assert "No module named 'config'" in result.stdout
