"""Lets libraries import a tenant's module by the name that the tenant's code uses.

An import statement in a tenant's code finds private modules without this module
(`private_code.modules`). This module adds the same to the functions with which libraries import
modules by name: `importlib.import_module`, which Celery, RQ, Jinja and `unittest.mock` use;
Werkzeug's `import_string`, which Flask uses for `from_object("shop.settings")`; and the importers
of `logging.config` and of Jinja's extensions. The tenant is the tenant of the current build, app
context or request. In a thread without these, a plain name means a library.
"""

import builtins
import importlib.util
import logging.config
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from importlib import _bootstrap
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import flask.config
import jinja2.utils
import werkzeug.utils
from flask import Flask, current_app, has_app_context

from tenantry.http.request_record import current_request
from tenantry.private_code.latest_builds import latest
from tenantry.private_code.modules import PrivateModules
from tenantry.private_code.names import private_name

MODULES = "tenantry.modules"
"""Key in `app.extensions` of the private modules of a tenant's app."""

_current: ContextVar[PrivateModules | None] = ContextVar("private_modules", default=None)


@contextmanager
def using(modules: PrivateModules | None) -> Iterator[None]:
    """Let plain names mean the modules of one build during the `with` block."""
    token = _current.set(modules)
    try:
        yield
    finally:
        _current.reset(token)


@cache
def resolve_plain_names() -> None:
    """Let functions that import modules by name resolve plain names, once in each process."""
    # `importlib.import_module` calls this function. Libraries may hold `import_module` itself.
    gcd_import = _bootstrap._gcd_import  # type: ignore[attr-defined]  # noqa: SLF001
    find_spec, import_string = importlib.util.find_spec, werkzeug.utils.import_string

    @wraps(gcd_import)
    def gcd_import_of_tenant(name: str, package: str | None = None, level: int = 0) -> ModuleType:
        modules = None if level else _build_with(name)
        module: ModuleType = modules.load(name) if modules else gcd_import(name, package, level)
        return module

    @wraps(find_spec)
    def find_spec_of_tenant(name: str, package: str | None = None) -> ModuleSpec | None:
        return find_spec(_resolved(name), package)

    @wraps(import_string)
    def import_string_of_tenant(import_name: str, silent: bool = False) -> Any:
        return import_string(_resolved(import_name.replace(":", ".")), silent)

    _bootstrap._gcd_import = gcd_import_of_tenant  # type: ignore[attr-defined]  # noqa: SLF001
    importlib.util.find_spec = find_spec_of_tenant
    werkzeug.utils.import_string = flask.config.import_string = import_string_of_tenant  # type: ignore[attr-defined]
    # These modules call `__import__` with names that a configuration contains.
    logging.config.BaseConfigurator.importer = staticmethod(_import)
    for module in (logging.config, jinja2.utils):
        vars(module)["__import__"] = _import


def _import(name: str, *args: Any, **options: Any) -> ModuleType:
    """Import a module like `__import__`, in the current tenant's code or in the process."""
    modules = current_modules()
    find = builtins.__import__ if modules is None else modules.builtins["__import__"]
    module: ModuleType = find(name, *args, **options)
    return module


def current_modules() -> PrivateModules | None:
    """Return the modules of the current build, app context or request, or None."""
    modules = _current.get()
    if modules is None and has_app_context():
        modules = modules_of(current_app)
    if modules is None:
        request = current_request.get()
        modules = None if request is None else latest(request.tenant)
    return modules


def modules_of(app: Flask) -> PrivateModules | None:
    """Return the private modules of a tenant's app, or None for any other app."""
    modules: PrivateModules | None = app.extensions.get(MODULES)
    return modules


def _resolved(name: str) -> str:
    """Return the private name of a module of the current tenant, or the name itself."""
    modules = _build_with(name)
    return private_name(name, modules.owner) if modules else name


def _build_with(name: str) -> PrivateModules | None:
    """Return the current build if the plain name means one of its modules."""
    modules = current_modules()
    if modules is None or name.startswith(".") or "@" in name or not modules.is_private(name):
        return None
    return modules
