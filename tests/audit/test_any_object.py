"""The audit reads any object without running its code, and reports nothing that libraries own."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import leaks
from tenantry.audit import process_snapshot
from tenantry.audit.finding import Finding
from tenantry.cli.audit import audit_folder
from tenantry.settings import HostSettings

WriteTenant = Callable[..., Path]
FindProblems = Callable[..., dict[str, Finding]]

# An audit looks at every object of the process, which takes seconds in a process full of tests.
pytestmark = pytest.mark.live

MAX_S = 60
"""The audit of an endpoint with a huge container takes less processor time, in seconds."""


@pytest.fixture(name="library")
def _library(corp: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder for libraries, on the import path."""
    folder = corp / "libraries"
    folder.mkdir()
    folders = (*process_snapshot.library_folders(), f"{folder}/")
    monkeypatch.setattr(process_snapshot, "library_folders", lambda: folders)
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("planted_library", None)


@pytest.fixture(name="find_problems")
def _find_problems(
    corp: Path, write_tenant: WriteTenant, settings: HostSettings, monkeypatch: pytest.MonkeyPatch
) -> FindProblems:
    """Return a function that audits two tenants with one endpoint, and returns the problems."""
    monkeypatch.chdir(corp)
    (corp / "own").mkdir()
    monkeypatch.setenv("TENANTRY_APP_DIR", str(corp / "own"))

    def run(name: str, **files: str) -> dict[str, Finding]:
        endpoint = leaks.write_endpoint(corp, name, **files)
        for tenant in ("acme", "globex"):
            write_tenant(tenant, BLUEPRINTS=[endpoint])
        return {finding.id: finding for finding in audit_folder(settings)[0] if finding.is_problem}

    return run


HOSTILE = """
import weakref

from werkzeug.local import LocalProxy


def woken(*_, **__):
    raise RuntimeError("the audit has run my code")


class Meta(type):
    __getattribute__ = __eq__ = __hash__ = __repr__ = __bool__ = woken
    __instancecheck__ = __subclasscheck__ = __prepare__ = woken


class Hostile:
    __class__ = __dict__ = property(woken)
    __eq__ = __hash__ = __len__ = __bool__ = __repr__ = __str__ = __iter__ = __call__ = woken
    __getattribute__ = __getattr__ = __getitem__ = __fspath__ = woken


class Target:
    pass


Bad = type.__new__(Meta, "Bad", (), {"__qualname__": "Bad", "items": property(woken)})
hostile = Hostile()
target = Target()
held = {
    "hostile": [object.__new__(Hostile)],
    "class": Bad,
    "instance": object.__new__(Bad),
    "proxy": LocalProxy(woken),
    "weak": weakref.proxy(target),
    "keys": type("Keys", (), {1: hostile, (2,): hostile}),
    1: hostile,
}


def spoil(state):
    state.app.extensions["hostile"] = hostile
    state.app.hostile = Bad
    state.app.config.update({
        "UPLOAD_FOLDER": hostile, "JWT_SECRET_KEY": hostile, "CACHE_REDIS_HOST": hostile,
        "DATABASE_URL": {"x": hostile}, 1: hostile, "REDIS_URL": LocalProxy(woken),
    })


hostile_bp.record_once(spoil)
"""


def test_no_object_stops_the_audit(find_problems: FindProblems) -> None:
    """The audit runs no method of an object, a class or a metaclass, whatever it holds."""
    assert {} == find_problems("hostile", blueprint=HOSTILE)


def test_a_huge_container_is_examined_in_bounded_time(find_problems: FindProblems) -> None:
    """The audit of a list with 200,000 items takes seconds of processor time, not minutes."""
    text = "\n\nnumbers = [(number,) for number in range(100_000)]\ntable = [numbers] * 200_000\n"
    started_at = time.process_time()

    assert {} == find_problems("huge", resources=text)
    assert MAX_S > time.process_time() - started_at


LIBRARY = """\
from __future__ import annotations

import logging

import click
from flask import Blueprint

log = logging.getLogger("planted_library")
log.addHandler(logging.NullHandler())
log.addHandler(logging.StreamHandler())

OPTIONS = {"debug": [False]}
known = {}


@click.group()
def commands():
    pass


@commands.command()
@click.option("--name")
def create(name):
    pass


class Extension:
    defaults = []

    def init_app(self, app):
        self.options = OPTIONS
        app.cli.add_command(commands, "planted")
        app.extensions["planted"] = [self, self.defaults]


def counter(name):
    return known.setdefault(name, [name])


current = None
apps = []


def register(app):
    apps.append(app)


def use(app):
    global current
    current = app
"""

USING_LIBRARY = """
import __future__
import logging

import planted_library

feature = __future__.annotations

logging.getLogger(__name__).addHandler(logging.NullHandler())
extension = planted_library.Extension()
library_bp.record_once(lambda state: extension.init_app(state.app))
library_bp.record_once(lambda state: planted_library.register(state.app))
"""


def test_what_a_library_owns_is_not_a_finding(library: Path, find_problems: FindProblems) -> None:
    """The audit reports no object that a library creates when it is imported."""
    (library / "planted_library.py").write_text(LIBRARY)

    assert {} == find_problems("library", blueprint=USING_LIBRARY)


def test_what_tenants_keep_in_a_library_is_a_finding(
    library: Path, find_problems: FindProblems
) -> None:
    """The audit reports an object that a tenant creates in a library and another tenant uses."""
    (library / "planted_library.py").write_text(LIBRARY)
    text = "\nfrom planted_library import counter\n\nseen = counter('orders')  # leak\n"

    assert ["shared:counting.resources.seen"] == [*find_problems("counting", resources=text)]


def test_the_app_of_one_tenant_in_a_library_is_a_finding(
    library: Path, find_problems: FindProblems
) -> None:
    """The audit reports a global variable of a library that holds only one of two apps."""
    (library / "planted_library.py").write_text(LIBRARY)
    text = USING_LIBRARY + "library_bp.record_once(lambda state: planted_library.use(state.app))\n"

    found = find_problems("library", blueprint=text)

    assert {"library:planted_library.current": ("acme", "globex")} == {
        id_: finding.tenants for id_, finding in found.items()
    }
