"""Loads endpoints for an app.

A Flask-RESTful `Api` keeps only the app of its last registration, and sets attributes on `Resource`
classes. Therefore, the objects in `blueprint.py` and `resources.py` must exist once for each app.
The module `private_modules` gives each app its own copy of an endpoint's modules.
"""

import importlib
import itertools
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flask import Blueprint

from tenantry.endpoints.finding import find_endpoint, package_of
from tenantry.endpoints.private_modules import plain_name, private_name
from tenantry.endpoints.signal_receivers import disconnect_receivers
from tenantry.errors import EndpointError, TenantryError
from tenantry.observability.redaction import one_line_in_scope

LOADED_ENDPOINTS = "tenantry"
"""Key in `app.extensions` of the app's `LoadedEndpoint` objects."""

_serial = itertools.count(1)  # numbers the private packages; `next()` is atomic


@dataclass(frozen=True)
class LoadedEndpoint:
    """An app's private copy of an endpoint. Call `unload()` to remove the copy."""

    blueprint: Blueprint
    package: str
    """Name of the private copy in `sys.modules`."""

    def unload(self) -> None:
        """Remove the private modules, and their signal receivers and loggers."""
        _unload(self.package)


def load_endpoint(name: str, tenant: str) -> LoadedEndpoint:
    """Load a private copy of an endpoint for one app.

    Args:
        name: the name of the endpoint in `BLUEPRINTS`.
        tenant: the name of the tenant, which appears in stack traces.

    Raises:
        EndpointError: the endpoint does not exist, cannot be imported, or has no `<name>_bp`.
    """
    package = find_endpoint(name)
    variable = f"{package.rpartition('.')[2]}_bp"
    private = private_name(package, f"{tenant}-{next(_serial)}")
    try:
        module = importlib.import_module(f"{private}.blueprint")
    except BaseException as error:
        _unload(private)
        raise EndpointError(name, _failure(name, "fails to import", error)) from error
    blueprint = getattr(module, variable, None)
    if not isinstance(blueprint, Blueprint):
        _unload(private)
        raise EndpointError(
            name,
            f"endpoint {name!r}: its blueprint.py has no Blueprint {variable!r}; write "
            f"{variable} = Blueprint({variable.removesuffix('_bp')!r}, __name__).",
        )
    return LoadedEndpoint(blueprint, private)


@contextmanager
def registration_errors(name: str) -> Iterator[None]:
    """Make any error in the `with` block name the endpoint that is being registered.

    Raises:
        EndpointError: the block raised an exception, which is the cause of this error.
    """
    try:
        yield
    except BaseException as error:
        raise EndpointError(name, _failure(name, "fails to register", error)) from error


def describe_failure(error: BaseException, endpoints: Sequence[str]) -> str:
    """Describe why a tenant cannot be built, on one line and without secrets.

    If an endpoint raised the error, the text names the line, as in `ValueError: no driver (endpoint
    'shop', blueprint.py:3)`. Tenantry's own errors are described without their type and line.
    """
    if isinstance(error, TenantryError):
        return one_line_in_scope(error)
    text = one_line_in_scope(error, with_type=True)
    for name in endpoints:
        if place := _location(error, package_of(name)):
            return f"{text} (endpoint {name!r}, {place})"
    return text


def _failure(name: str, what: str, error: BaseException) -> str:
    text = one_line_in_scope(error, with_type=True)
    place = _location(error, package_of(name))
    return f"endpoint {name!r} {what}: {text}{f' ({place})' if place else ''}; fix the endpoint."


def _location(error: BaseException, package: str) -> str:
    """Return the innermost line of the endpoint's code in a traceback, such as `resources.py:3`."""
    location = ""
    if isinstance(error, SyntaxError):
        # A SyntaxError names the line itself, because the traceback ends at the import.
        return location
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = plain_name(frame.f_globals.get("__name__", ""))
        if module == package or module.startswith(f"{package}."):
            location = f"{Path(frame.f_code.co_filename).name}:{line}"
    return location


def _unload(private: str) -> None:
    disconnect_receivers(private)
    # Loop over a copy of `sys.modules`, because other threads may import modules in the meantime.
    for name in list(sys.modules):
        if name.partition(".")[0] == private:
            sys.modules.pop(name, None)
    for handler in _remove_loggers(private):
        handler.close()


def _remove_loggers(private: str) -> list[logging.Handler]:
    """Remove the loggers of a private package, and return their handlers.

    The module `logging` has no public function that removes a logger. Other threads may iterate
    over the registry of loggers, so this function holds the private lock of `logging`.
    """
    with logging._lock:  # type: ignore[attr-defined]  # noqa: SLF001
        loggers = logging.Logger.manager.loggerDict
        names = [name for name in loggers if name.partition(".")[0] == private]
        removed = [loggers.pop(name) for name in names]
    return [handler for logger in removed for handler in getattr(logger, "handlers", ())]
