"""Loads the endpoints of an app.

A Flask-RESTful `Api` keeps only the app of its last registration, and sets attributes on `Resource`
classes. Therefore, each build of an app has its own copy of every module of its endpoints
(`private_code`).
"""

import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flask import Blueprint

from tenantry.endpoints.finding import find_endpoint, package_of
from tenantry.endpoints.signal_receivers import disconnect_receivers
from tenantry.errors import EndpointError, TenantryError
from tenantry.observability.redaction import one_line_in_scope
from tenantry.private_code.modules import PrivateModules
from tenantry.private_code.names import owner_of, plain_name, private_name
from tenantry.private_code.snapshot import used_snapshot

LOADED_ENDPOINTS = "tenantry"
"""Key in `app.extensions` of the app's `LoadedEndpoint` objects."""


@dataclass(frozen=True)
class LoadedEndpoint:
    """An app's private copy of an endpoint."""

    blueprint: Blueprint
    package: str
    """The private name of the endpoint's package."""


def load_endpoint(name: str, modules: PrivateModules) -> LoadedEndpoint:
    """Load a private copy of an endpoint for one app.

    Args:
        name: the name of the endpoint in `BLUEPRINTS`.
        modules: the private modules of the app's build.

    Raises:
        EndpointError: the endpoint does not exist, cannot be imported, or has no `<name>_bp`.
    """
    package = find_endpoint(name, modules.app_dir)
    modules.add_packages([package])
    variable = f"{package.rpartition('.')[2]}_bp"
    try:
        module = modules.load(f"{package}.blueprint")
    except BaseException as error:
        raise EndpointError(name, _failure(name, "fails to import", error)) from error
    blueprint = getattr(module, variable, None)
    if not isinstance(blueprint, Blueprint):
        raise EndpointError(
            name,
            f"endpoint {name!r}: its blueprint.py has no Blueprint {variable!r}; write "
            f"{variable} = Blueprint({variable.removesuffix('_bp')!r}, __name__).",
        )
    return LoadedEndpoint(blueprint, private_name(package, modules.owner))


def unload_endpoints(modules: PrivateModules) -> None:
    """Remove the private modules of a closed app, and their signal receivers and loggers."""
    disconnect_receivers(modules)
    is_latest = modules.is_latest
    modules.unload()
    if is_latest:  # otherwise, the tenant's next app would use the same loggers
        for handler in _remove_loggers(modules.owner):
            handler.close()


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
    'shop', blueprint.py:3)`. If other code of the tenant raised the error, the text names only the
    line. Tenantry's own errors are described without their type and line.
    """
    if isinstance(error, TenantryError):
        return one_line_in_scope(error)
    text = one_line_in_scope(error, with_type=True)
    for name in endpoints:
        if place := _location(error, package_of(name)):
            return f"{text} (endpoint {name!r}, {place})"
    place = _location(error)
    return f"{text} ({place})" if place else text


def _failure(name: str, what: str, error: BaseException) -> str:
    text = one_line_in_scope(error, with_type=True)
    place = _location(error, package_of(name))
    # A process with a snapshot never reads the fixed file.
    remedy = "fix the endpoint" + (", then run: tenantry restart" if used_snapshot() else "")
    return f"endpoint {name!r} {what}: {text}{f' ({place})' if place else ''}; {remedy}."


def _location(error: BaseException, package: str = "") -> str:
    """Return the innermost line of tenant code in a traceback, such as `resources.py:3`.

    Args:
        error: the exception.
        package: the package of the code; empty for all private modules.
    """
    location = ""
    if isinstance(error, SyntaxError):
        # A SyntaxError names the line itself, because the traceback ends at the import.
        return location
    for frame, line in traceback.walk_tb(error.__traceback__):
        name = frame.f_globals.get("__name__", "")
        module = plain_name(name)
        is_inside = module == package or module.startswith(f"{package}.")
        if is_inside if package else owner_of(name):
            location = f"{Path(frame.f_code.co_filename).name}:{line}"
    return location


def _remove_loggers(owner: str) -> list[logging.Handler]:
    """Remove the loggers of a tenant's private modules, and return their handlers.

    The module `logging` has no public function that removes a logger. Other threads may iterate
    over the registry of loggers, so this function holds the private lock of `logging`.
    """
    with logging._lock:  # type: ignore[attr-defined]  # noqa: SLF001
        loggers = logging.Logger.manager.loggerDict
        names = [name for name in loggers if owner_of(name) == owner]
        removed = [loggers.pop(name) for name in names]
    return [handler for logger in removed for handler in getattr(logger, "handlers", ())]
