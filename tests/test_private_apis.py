"""This list contains all private APIs of libraries that Tenantry uses.

A private API can change in any release, so each library in the list has an upper bound in
`pyproject.toml`. The tests of the worker check gunicorn's private APIs.
"""

import json.encoder
import logging
import re
import tomllib
from collections.abc import Callable
from importlib import _bootstrap
from pathlib import Path

import pytest
from alembic.runtime.migration import HeadMaintainer, MigrationStep
from alembic.util import pyfiles
from blinker import Signal
from celery import _state
from marshmallow import class_registry
from packaging.requirements import Requirement
from sqlalchemy.dialects import plugins
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm.clsregistry import _class_resolver
from sqlalchemy.pool import NullPool, Pool
from werkzeug.routing import Map, Rule
from werkzeug.sansio.multipart import MultipartDecoder
from werkzeug.wrappers import Response

from tenantry.tenants.model import Tenant

ROOT = Path(__file__).parent.parent


def _bound_rule() -> Rule:
    """Return a rule that Werkzeug has compiled."""
    rule = Rule("/<name>")
    Map([rule])
    return rule


def _pool() -> Pool:
    return NullPool(lambda: pytest.fail("nothing connects"))


PRIVATE: dict[str, tuple[str, str, Callable[[], object]]] = {
    "pyfiles.load_module_py": (
        "alembic", "migrations.app_environment replaces it, for the imports in env.py",
        lambda: pyfiles.load_module_py,
    ),
    "Rule._compile_builder": (
        "werkzeug", "app.lazy_rule replaces it, to compile URL builders on first use",
        lambda: Rule._compile_builder,
    ),
    "Rule._build": (
        "werkzeug", "app.lazy_rule sets it to the compiled builder", lambda: _bound_rule()._build,
    ),
    "Rule._build_unknown": (
        "werkzeug", "app.lazy_rule sets it to the compiled builder",
        lambda: _bound_rule()._build_unknown,
    ),
    "Signal._disconnect": (
        "blinker", "library_locks replaces it, because it iterates over a shared dictionary",
        lambda: Signal._disconnect,
    ),
    "MultipartDecoder._parse_headers": (
        "werkzeug", "images.uploads also accepts names in Latin-1",
        lambda: MultipartDecoder._parse_headers,
    ),
    "Response._wrap_range_response": (
        "werkzeug", "http.conditions sends one range of a file",
        lambda: Response._wrap_range_response,
    ),
    "Pool._do_get": (
        "sqlalchemy", "database.pool takes connections from the process's budget",
        lambda: Pool._do_get,
    ),
    "Pool._do_return_conn": (
        "sqlalchemy", "database.pool returns connections to the process's budget",
        lambda: Pool._do_return_conn,
    ),
    **{
        f"Pool.{name}": (
            "sqlalchemy", "database.pool copies the option when SQLAlchemy recreates the pool",
            lambda name=name: hasattr(_pool(), name),
        )
        for name in ("_recycle", "_pre_ping", "_orig_logging_name", "_reset_on_return", "_dialect")
    },
    "dialects.plugins": (
        "sqlalchemy", "database.engine_plugin registers the plugin of Flask-SQLAlchemy's engine",
        lambda: plugins.register,
    ),
    "_class_resolver._access_cls": (
        "sqlalchemy", "endpoints.mapped_classes resolves plain paths of mapped classes in it",
        lambda: _class_resolver._access_cls,
    ),
    "DBAPIError.statement": (
        "sqlalchemy", "migrations.guard takes an error without a statement for a rejected COMMIT",
        lambda: DBAPIError(None, None, Exception("commit")).statement is None,
    ),
    "HeadMaintainer.update_to_step": (
        "alembic", "migrations.migrate runs revisions without searching for alembic_version",
        lambda: HeadMaintainer.update_to_step,
    ),
    "MigrationStep.upgrade_from_script": (
        "alembic", "migrations.migrate runs revisions without an env.py",
        lambda: MigrationStep.upgrade_from_script,
    ),
    "BaseModel.__pydantic_fields_set__": (
        "pydantic", "tenants.validation shares it between tenants, which halves their memory",
        lambda: Tenant.__pydantic_fields_set__,
    ),
    **{
        f"_state.{name}": (
            "celery", "endpoints.library_state gives each tenant its own part",
            lambda name=name: hasattr(_state, name),
        )
        for name in ("_tls", "_apps", "_on_app_finalizers")
    },
    "class_registry._registry": (
        "marshmallow", "endpoints.library_state gives each tenant its own part",
        lambda: type(class_registry._registry) is dict or class_registry._registry.setdefault,
    ),
    "_bootstrap._gcd_import": (
        "", "endpoints.plain_names replaces it, because libraries hold import_module itself",
        lambda: _bootstrap._gcd_import,
    ),
    "logging._lock": (
        "", "endpoints.loading removes the loggers of an unloaded endpoint under it",
        lambda: logging._lock,
    ),
    "Logger.manager.loggerDict": (
        "", "app.log_handlers and audit look at every logger",
        lambda: logging.Logger.manager.loggerDict,
    ),
    "ModuleSpec._initializing": (
        "", "audit.libraries skips modules that are being imported",
        lambda: hasattr(logging.__spec__, "_initializing"),
    ),
    "json.encoder.encode_basestring_ascii": (
        "", "the access log and problem responses quote text with it",
        lambda: json.encoder.encode_basestring_ascii("\u00e9") == '"\\u00e9"',
    ),
}  # fmt: skip
"""Maps each private API to its library (empty for the standard library), to its use, and to a check
that finds the API."""


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_api_is_still_there(name: str) -> None:
    """Every private API in the list exists in the installed version of its library."""
    library, reason, look_up = PRIVATE[name]
    try:
        found = look_up()
    except AttributeError:
        found = False

    assert found is not False, (
        f"{name} of {library or 'Python'} is gone. {reason}. Find another way, or lower the upper "
        "bound in pyproject.toml."
    )


def test_each_library_with_a_private_api_has_an_upper_bound() -> None:
    """Each library whose private APIs are used has an upper bound in `pyproject.toml`."""
    project = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["test"]
    bounded = {
        requirement.name
        for requirement in map(Requirement, requirements)
        if any(one.operator in ("<", "<=") for one in requirement.specifier)
    }

    assert {library for library, _, _ in PRIVATE.values() if library} <= bounded


def test_no_private_name_is_used_beside_the_list() -> None:
    """The list `PRIVATE` contains every private API that the code uses."""
    documented = {"_current_frames"}  # Python documents this function of `sys`
    listed = {name.rpartition(".")[2] for name in PRIVATE} | documented
    own = {"_opened"}  # the code reads this attribute from an object of the same class
    used = set()
    for path in (ROOT / "core").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if "noqa: SLF001" in line:
                code = line.partition("#")[0]
                used |= set(re.findall(r"\.(_[a-z]\w*)", code))

    assert used <= listed | own
