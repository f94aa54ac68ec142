"""Loads the application that `APP` names, as a Flask object of the current build."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

from flask import Flask

from tenantry.endpoints.app_reference import AppReference, find_app
from tenantry.endpoints.loading import describe_failure
from tenantry.errors import ApplicationError
from tenantry.private_code.copying import CodeCopyError
from tenantry.private_code.modules import PrivateModules
from tenantry.private_code.snapshot import used_snapshot

_OBJECTS = ("application", "app")
"""The names of Flask objects that gunicorn and Flask look for in a module."""

_FACTORIES = ("create_app", "make_app")
"""The names of factories that Flask looks for in a module."""

_WSGI_PARAMETERS = 2
"""`environ` and `start_response`."""

_FOR_WSGI = (
    "other WSGI applications need ISOLATION = 'process', which comes with a later version of "
    "Tenantry"
)


def load_app(reference: AppReference, modules: PrivateModules, config: object) -> Flask:
    """Return the Flask object that a reference names, or that its factory returns.

    Args:
        reference: the parsed value of `APP`.
        modules: the private modules of the build.
        config: what a factory with one required parameter receives.

    Raises:
        ApplicationError: there is no such module or name, its code raises an exception, or the
            result is not a Flask object.
    """
    find_app(reference, modules.app_dir)
    modules.add_packages([reference.top])  # an installed application is private, too
    with _errors_of(reference, "fails to import"):
        module = modules.load(reference.module)
    found = _named(reference, module)
    if isinstance(found, Flask) and not reference.is_call:
        return found
    if not reference.is_call:
        reference = _with_argument(reference, found, config)
    with _errors_of(reference, "fails to build"):
        app = found(*reference.args, **reference.kwargs)
    if isinstance(app, Flask):
        return app
    if app is None:
        raise _error(reference, "returns None; end the function with: return app")
    if inspect.iscoroutine(app):
        app.close()
        raise _error(reference, "is an async function; write a function that is not async")
    raise _error(reference, f"returns an object {_not_flask(app)}")


def _named(reference: AppReference, module: ModuleType) -> Any:
    """Return what a reference names in its module."""
    if reference.name:
        found = getattr(module, reference.name, None)
        if found is None:
            raise _error(reference, f"has no {reference.name!r}; {_choices(reference, module)}")
        return found
    objects = {name: one for name, one in vars(module).items() if isinstance(one, Flask)}
    for name in _OBJECTS:
        if name in objects:
            return objects[name]
    if len({id(one) for one in objects.values()}) == 1:
        return next(iter(objects.values()))
    for name in _FACTORIES:
        if not objects and callable(found := getattr(module, name, None)):
            return found
    raise _error(reference, f"has no 'app' or 'create_app'; {_choices(reference, module)}")


def _choices(reference: AppReference, module: ModuleType) -> str:
    names = [name for name, one in vars(module).items() if isinstance(one, Flask)]
    names += [name for name in _FACTORIES if callable(getattr(module, name, None))]
    if names:
        return "write " + " or ".join(f"'{reference.module}:{name}'" for name in names)
    return "name the module that contains the Flask object or its factory"


def _with_argument(reference: AppReference, factory: Any, config: object) -> AppReference:
    """Return a call of a factory with its one required parameter, if it has one.

    Raises:
        ApplicationError: the object is not a factory.
    """
    if not _is_function(factory):
        raise _error(reference, f"is an object {_not_flask(factory)}")
    required = _required_parameters(factory)
    if len(required) > 1:
        names = ", ".join(one.name for one in required)
        text = f"requires {len(required)} parameters ({names}), but a factory receives at most one"
        call = f"{reference.module}:{reference.name or factory.__name__}(…)"
        hint = f"; {_FOR_WSGI}" * (len(required) == _WSGI_PARAMETERS)
        raise _error(reference, f"{text}; write the arguments: {call!r}{hint}")
    if not required:
        return reference
    if required[0].kind is inspect.Parameter.KEYWORD_ONLY:
        return replace(reference, kwargs={required[0].name: config})
    return replace(reference, args=(config,))


def _required_parameters(factory: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a function in C can have no signature
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one for one in parameters if one.default is one.empty and one.kind not in optional]


def _not_flask(found: object) -> str:
    hint = f"; {_FOR_WSGI}" if callable(found) else "; name a Flask object, or its factory"
    return f"of type {type(found).__name__}, not a Flask object{hint}"


def _is_function(found: object) -> bool:
    """Whether an object is a function or a class, rather than an object that can be called."""
    plain: Callable[..., Any] | object = inspect.unwrap(found) if callable(found) else found
    return inspect.isroutine(plain) or inspect.isclass(plain) or type(plain) is functools.partial


@contextmanager
def _errors_of(reference: AppReference, what: str) -> Iterator[None]:
    """Make any exception of the application's code an error about `APP`."""
    try:
        yield
    except CodeCopyError as error:
        raise ApplicationError(f"application {reference.text!r}: {error}") from error
    except BaseException as error:
        # A process with a snapshot never reads the fixed file.
        remedy = "fix it" + (", then run: tenantry restart" if used_snapshot() else "")
        raise _error(reference, f"{what}: {describe_failure(error, ())}; {remedy}") from error


def _error(reference: AppReference, text: str) -> ApplicationError:
    return ApplicationError(f"application {reference.text!r} {text}.")
