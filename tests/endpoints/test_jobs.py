"""Background jobs run as EXTENSIONS.md says: with Celery, RQ, Huey and APScheduler."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import redis_server
from conftest import tenant_text
from servers import wait_until

pytestmark = pytest.mark.live

GUIDE = Path(__file__).parents[2] / "core/tenantry/endpoints/EXTENSIONS.md"

CELERY = ("-m", "celery", "-A", "acme_worker", "worker", "-Q", "acme", "-P", "solo")

TASKS = """\
import json
from pathlib import Path
from celery import shared_task
from flask import current_app
from huey import SqliteHuey
import tenantry

huey = SqliteHuey(__name__, filename="huey.db")

def note(a, b):
    path = Path(current_app.instance_path, "result.json")
    path.with_suffix(".new").write_text(json.dumps([__name__, a + b]))
    path.with_suffix(".new").rename(path)

@shared_task
def add(a, b):
    note(a, b)

@huey.task()
def add_with_huey(a, b):
    with tenantry.tenant("acme"):
        note(a, b)
"""

BLUEPRINT = """\
from celery import Celery, Task
from flask import Blueprint
from redis import Redis
from rq import Queue
from .tasks import add, add_with_huey, note

shop_bp = Blueprint("shop", __name__)

@shop_bp.record_once
def celery_init_app(state):
    app = state.app
    class FlaskTask(Task):
        def __call__(self, *args, **kwargs):
            with app.app_context():
                return self.run(*args, **kwargs)
    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app

@shop_bp.cli.command("celery")
def enqueue_celery():
    add.delay(1, 2)

@shop_bp.cli.command("rq")
def enqueue_rq():
    from flask import current_app
    redis = Redis.from_url(current_app.config["REDIS_URL"])
    Queue("acme", connection=redis).enqueue(note, 1, 2)

@shop_bp.cli.command("huey")
def enqueue_huey():
    add_with_huey(1, 2)
"""


def _recipe(heading: str) -> str:
    """Return the program in a section of the guide."""
    section = GUIDE.read_text(encoding="utf-8").split(f"### {heading}\n", 1)[1]
    return section.split("```python\n", 1)[1].split("```", 1)[0]


@pytest.fixture(name="project")
def _project(tmp_path: Path) -> Iterator[Path]:
    """Return a folder with the endpoint `shop` and the tenant acme, whose broker is Redis."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "tenants").mkdir()
    for name, text in {"__init__": "", "tasks": TASKS, "blueprint": BLUEPRINT}.items():
        (tmp_path / f"shop/{name}.py").write_text(text)
    with redis_server.running() as redis:
        celery = {"broker_url": redis.url, "task_default_queue": "acme"}
        text = tenant_text("acme", BLUEPRINTS=["shop"], CELERY=celery, REDIS_URL=redis.url)
        (tmp_path / "tenants/acme.py").write_text(text)
        yield tmp_path


@contextmanager
def _running(project: Path, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run Python in the project's folder until the end of the block."""
    with (project / "output.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=project,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # the process has ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize(
    ("heading", "file", "command"),
    [
        ("Celery", "acme_worker.py", CELERY),
        ("RQ", "acme_rq.py", ("acme_rq.py",)),
        ("Huey", "acme_huey.py", ("acme_huey.py",)),
    ],
)
def test_a_job_of_a_request_runs_in_its_tenants_worker(
    project: Path, heading: str, file: str, command: tuple[str, ...]
) -> None:
    """A job that the tenant's code enqueues runs with the tenant's code in the tenant's folder."""
    (project / file).write_text(_recipe(heading))
    enqueue = [sys.executable, "-m", "tenantry", "run", "acme", "--", "shop", heading.lower()]
    subprocess.run(enqueue, cwd=project, check=True, capture_output=True)
    result = project / "instance/acme/result.json"
    with _running(project, *command) as worker:
        wait_until(lambda: result.exists() or worker.poll() is not None)

    assert result.exists(), (project / "output.log").read_text()
    assert ["shop@acme.tasks", 3] == json.loads(result.read_text())


def test_a_scheduled_job_runs_in_the_context_of_its_tenant(project: Path) -> None:
    """A job of APScheduler enters the tenant's app context."""
    program = _recipe("APScheduler").replace('"cron", hour=3', '"date"')
    (project / "acme_jobs.py").write_text(program.replace("app.logger.info", "print"))
    log = project / "output.log"
    with _running(project, "-u", "acme_jobs.py") as worker:
        wait_until(lambda: "cleaning up" in log.read_text() or worker.poll() is not None)

    assert "cleaning up" in log.read_text()
