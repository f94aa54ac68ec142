"""Libraries with global state, such as Celery, work for several tenants without a changed line."""

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, current_app, shared_task
from flask import Flask
from marshmallow import Schema, class_registry, fields
from marshmallow.exceptions import RegistryError
from werkzeug.test import Client

import leaks
from conftest import KEY
from tenantry.app.factory import close_app, create_app

CELERY = """
from celery import Celery, Task, current_app as current_celery, shared_task

def celery_init_app(app):  # as in Flask's documentation
    class FlaskTask(Task):
        def __call__(self, *args, **kwargs):
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    return celery_app

@shared_task(ignore_result=False)
def add(a, b):
    return a + b

shop_bp.record_once(lambda state: celery_init_app(state.app))

@shop_bp.get("/task")
def task():
    names = [name for name in current_celery.tasks if not name.startswith("celery.")]
    return {"broker": add.app.conf.broker_url, "name": add.name, "tasks": names}
"""

SCHEMAS = """
from marshmallow import Schema, fields

class Author(Schema):
    name = fields.Str()
    books = fields.List(fields.Nested("Book", exclude=("author",)))

class Book(Schema):
    title = fields.Str()
    author = fields.Nested("corp.shop.blueprint.Author", exclude=("books",))

@shop_bp.get("/author")
def author():
    nested = Author().fields["books"].inner.schema
    return nested.fields["title"] and type(nested).__module__
"""

Build = Callable[..., Flask]


@pytest.fixture(name="build")
def _build(corp: Path, data_dir: Path) -> Iterator[Build]:
    """Return a function that builds a tenant with the endpoint `corp.shop`."""
    apps: list[Flask] = []

    def build(name: str, code: str) -> Flask:
        if not (corp / "corp/shop").exists():
            leaks.write_endpoint(corp, "shop", blueprint=code)
        values: dict[str, Any] = {"APP_NAME": name, "SECRET_KEY": f"{name}-{KEY}"}
        values |= {"BLUEPRINTS": ["corp.shop"], "CELERY": {"broker_url": f"memory://{name}"}}
        apps.append(create_app(values, data_dir=data_dir))
        return apps[-1]

    yield build
    for app in apps:
        close_app(app)


# -- Celery -------------------------------------------------------------------------------------


def test_shared_tasks_go_to_the_broker_of_their_tenant(build: Build) -> None:
    """The Celery pattern of Flask's documentation works unchanged: each tenant has its broker."""
    apps = [build(name, CELERY) for name in ("acme", "globex")]

    assert [
        {
            "broker": f"memory://{name}",
            "name": f"corp@{name}.shop.blueprint.add",
            "tasks": [f"corp@{name}.shop.blueprint.add"],
        }
        for name in ("acme", "globex")
    ] == [Client(app).get("/task").json for app in apps]


def test_a_worker_finds_the_tasks_of_its_tenant(build: Build) -> None:
    """Outside of requests, a tenant's Celery app has the tenant's tasks, and Celery's own."""
    acme, _ = build("acme", CELERY), build("globex", CELERY)
    celery = acme.extensions["celery"]
    celery.finalize()
    add = celery.tasks["corp@acme.shop.blueprint.add"]

    assert (3, True, False) == (
        add(1, 2),
        "celery.chord" in celery.tasks,
        "corp@globex.shop.blueprint.add" in celery.tasks,
    )


def test_a_tenants_celery_app_is_not_the_default_of_the_process(build: Build) -> None:
    """Neither `Celery(…)` nor `set_default` of a tenant changes the app of other code."""
    own = Celery("own", set_as_current=False)
    before = current_app._get_current_object()
    acme = build("acme", CELERY)

    assert acme.extensions["celery"] is not current_app._get_current_object()
    assert before is current_app._get_current_object()
    own.close()


def test_tasks_of_libraries_belong_to_all_tenants(build: Build) -> None:
    """A shared task that a library defines is registered for each tenant."""

    @shared_task(name="library.ping")
    def ping() -> None: ...

    tasks = [Client(build(name, CELERY)).get("/task").json for name in ("acme", "globex")]

    assert ["library.ping", "library.ping"] == [
        name for one in tasks if one for name in one["tasks"] if "@" not in name
    ]


def test_a_closed_app_leaves_no_task_behind(build: Build) -> None:
    """A closed app can be freed although Celery's state is global."""
    app = build("acme", CELERY)
    Client(app).get("/task").close()
    gone = weakref.ref(app.extensions["celery"])
    close_app(app)
    app.extensions.clear()
    del app
    gc.collect()

    assert gone() is None


# -- marshmallow --------------------------------------------------------------------------------


def test_schemas_are_found_by_name_in_their_own_tenant(build: Build) -> None:
    """`Nested("Book")` means the tenant's class, although each tenant has a class `Book`."""
    apps = [build(name, SCHEMAS) for name in ("acme", "globex", "acme")]

    assert [f"corp@{name}.shop.blueprint" for name in ("acme", "globex", "acme")] == [
        Client(app).get("/author").text for app in apps
    ]


def test_schemas_of_a_tenant_are_not_found_by_other_code(build: Build) -> None:
    """Other code of the process finds its own schema classes only."""

    class Publisher(Schema):
        name = fields.Str()

    build("acme", SCHEMAS)

    assert Publisher is class_registry.get_class("Publisher")
    with pytest.raises(RegistryError):
        class_registry.get_class("Book")
