"""Resolves the plain name of a tenant's module when a library imports the module by name.

An import statement in a tenant's code finds private modules without this module
(`private_code.modules`). This module adds the same to `importlib.import_module` and to Werkzeug's
`import_string`, which Flask uses for `from_object("shop.settings")`. The tenant is the tenant of
the current build, app context or request. In a thread without these, a plain name means a library.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from types import ModuleType
from typing import Any

import flask.config
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
def using(modules: PrivateModules) -> Iterator[None]:
    """Let plain names mean the modules of one build during the `with` block."""
    token = _current.set(modules)
    try:
        yield
    finally:
        _current.reset(token)


@cache
def resolve_plain_names() -> None:
    """Let the functions of `importlib` and Werkzeug resolve plain names, once in each process."""
    import_module, import_string = importlib.import_module, werkzeug.utils.import_string

    @wraps(import_module)
    def import_module_of_tenant(name: str, package: str | None = None) -> ModuleType:
        return import_module(_resolved(name), package)

    @wraps(import_string)
    def import_string_of_tenant(import_name: str, silent: bool = False) -> Any:
        return import_string(_resolved(import_name.replace(":", ".")), silent)

    importlib.import_module = import_module_of_tenant
    werkzeug.utils.import_string = flask.config.import_string = import_string_of_tenant  # type: ignore[attr-defined]


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
    modules = current_modules()
    if modules is None or name.startswith(".") or not modules.is_private(name):
        return name
    return private_name(name, modules.owner)
