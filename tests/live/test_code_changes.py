"""A running host serves new code only after a restart, in all of its workers."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import tenant_text
from servers import Server, program, running, wait_until
from tenantry.observability.control_socket import read_workers

pytestmark = pytest.mark.live

BLUEPRINT = """
from flask import Blueprint, render_template_string
from pathlib import Path
from .models import VALUE

shop_bp = Blueprint("shop", __name__)

@shop_bp.get("/")
def show():
    from .late import VALUE as LATE
    page = (Path(__file__).parent / "templates/page.html").read_text()
    return render_template_string(page, values=f"{VALUE} {LATE}")
"""

APPLICATION = """
from flask import Flask, render_template
from .models import VALUE

def create_app():
    app = Flask(__name__)

    @app.get("/")
    def show():
        from .late import VALUE as LATE
        return render_template("page.html", values=f"{VALUE} {LATE}")

    return app
"""


class Project:
    """A project with an endpoint or an application, and the tenants acme and globex."""

    def __init__(self, folder: Path, **keys: object) -> None:
        self.folder = folder
        self.data = folder / "instance"
        for name in ("tenants", "shop/templates"):
            (folder / name).mkdir(parents=True)
        for name in ("acme", "globex"):
            (folder / f"tenants/{name}.py").write_text(tenant_text(name, **keys))
        (folder / "shop/__init__.py").write_text(APPLICATION if "APP" in keys else "")
        (folder / "shop/blueprint.py").write_text(BLUEPRINT)
        self.write("old")

    def write(self, value: str) -> None:
        """Change the code and the template."""
        for module in ("models", "late"):
            (self.folder / f"shop/{module}.py").write_text(f"VALUE = {value!r}\n")
        (self.folder / "shop/templates/page.html").write_text(f"{value}: {{{{ values }}}}")

    def restart(self) -> subprocess.CompletedProcess[str]:
        """Run `tenantry restart` in the project."""
        words = [program("tenantry"), "restart"]
        return subprocess.run(words, cwd=self.folder, capture_output=True, text=True, check=False)

    def generations(self) -> list[str]:
        """Return the generations of code that the hosts keep."""
        return sorted(path.name for path in self.data.glob(".code/*/*"))


@pytest.fixture(name="project")
def _project(tmp_path: Path) -> Project:
    """Return a project whose code and template say `old`."""
    return Project(tmp_path, BLUEPRINTS=["shop"])


@contextmanager
def serving(project: Project, *options: str) -> Iterator[Server]:
    """Serve the project with two workers, until every tenant file has been read."""
    command = ["tenantry", "serve", "--bind", "{bind}", "--workers", "2", *options]
    with running(command, project.folder, ready_path="/-/readyz") as server:
        wait_until(lambda: [one.is_ready for one in read_workers(project.data)] == [True, True])
        yield server


def kill_workers(project: Project, server: Server) -> None:
    """Kill both workers, and wait for their replacements."""
    killed = {one.pid for one in read_workers(project.data)}
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len({one.pid for one in read_workers(project.data)} - killed) == 2)
    wait_until(lambda: server.get("/-/readyz")[0].status == 200)


def shown(server: Server, tenant: str) -> set[str]:
    """Return what a tenant shows on ten new connections."""
    return {server.get(f"/{tenant}/")[1].decode() for _ in range(10)}


@pytest.mark.parametrize("keys", [{"BLUEPRINTS": ["shop"]}, {"APP": "shop:create_app"}], ids=list)
def test_new_code_takes_effect_with_a_restart(tmp_path: Path, keys: dict[str, object]) -> None:
    """Until the restart, a replaced worker and a late tenant serve the old code."""
    project = Project(tmp_path, **keys)
    with serving(project) as server:
        before = shown(server, "acme")
        project.write("new")
        late = shown(server, "globex")
        kill_workers(project, server)
        replaced = shown(server, "acme") | shown(server, "globex")

        restart = project.restart()

        assert (0, {"new: new new"}) == (restart.returncode, shown(server, "acme")), restart
        assert {"new: new new"} == shown(server, "globex")
        wait_until(lambda: project.generations() == ["2"])
    assert ({"old: old old"}, {"new: old old"}, {"new: old old"}) == (before, late, replaced)
    assert [] == list((project.data / ".code").iterdir())


def test_a_restart_that_refuses_changes_nothing(project: Project) -> None:
    """If the new code is broken, replaced workers still serve the old code."""
    with serving(project) as server:
        shown(server, "acme")
        (project.folder / "shop/models.py").write_text("VALUE = = 1\n")

        restart = project.restart()

        kill_workers(project, server)
        assert (1, ["1"]) == (restart.returncode, project.generations())
        assert {"old: old old"} == shown(server, "acme")


def test_a_hang_up_signal_loads_new_code(project: Project) -> None:
    """After SIGHUP, all workers serve the new code."""
    with serving(project) as server:
        old = {one.pid for one in read_workers(project.data)}
        project.write("new")

        os.kill(server.process.pid, signal.SIGHUP)

        wait_until(lambda: not old & {one.pid for one in read_workers(project.data)})
        assert {"new: new new"} == shown(server, "globex")


def test_a_second_master_loads_new_code(project: Project) -> None:
    """After SIGUSR2, the new master serves the new code, and the old master the old code."""
    with serving(project) as server:
        project.write("new")
        os.kill(server.process.pid, signal.SIGUSR2)
        wait_until(lambda: len({worker.master for worker in read_workers(project.data)}) == 2)
        both = shown(server, "acme")

        os.kill(server.process.pid, signal.SIGTERM)
        server.process.wait()

        assert {"new: new new"} == shown(server, "acme")
        assert both <= {"new: old old", "new: new new"}


def test_reload_loads_new_code_at_once(project: Project) -> None:
    """With `serve --reload`, a change of code replaces the workers."""
    with serving(project, "--reload") as server:
        shown(server, "acme")

        def is_new() -> bool:
            project.write("new")  # gunicorn notices no change in the first second after the import
            return shown(server, "acme") == {"new: new new"}

        wait_until(is_new)
        assert not (project.data / ".code").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["waitress-serve", "--listen={bind}", "tenantry.wsgi:application"],
        [
            *("uwsgi", "--http", "{bind}", "--module", "tenantry.wsgi:application"),
            *(
                "--master",
                "--processes",
                "2",
                "--threads",
                "2",
                "--enable-threads",
                "--die-on-term",
            ),
        ],
    ],
    ids=["waitress", "uwsgi"],
)
def test_other_servers_serve_the_code_of_their_start(project: Project, command: list[str]) -> None:
    """A tenant whose first request comes late gets the code of the start."""
    with running(command, project.folder) as server:
        wait_until(lambda: server.get("/acme/")[1] == b"old: old old")

        project.write("new")

        wait_until(lambda: server.get("/globex/")[0].status == 200)
        assert {"new: old old"} == shown(server, "globex") | shown(server, "acme")
