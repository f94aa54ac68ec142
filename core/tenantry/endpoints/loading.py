"""Endpoints, and loading one for one app.

An endpoint is a package: `blueprint.py` (module-level `<name>_bp`, maps resources to URLs),
`resources.py` (thin `Resource` classes), `models.py` (framework-free, shared by all apps) and
`migrations/` where it has tables.

What `blueprint.py` and `resources.py` define must exist once per app: a Flask-RESTful `Api` keeps
the app that it was registered on last and sets attributes on `Resource` classes. So each app gets
both modules executed afresh in a private package whose `models` is the shared module. An import
by the package's full name (`from tenantry.endpoints.landing.resources import …`) is turned to the
private package when the module is compiled.
"""

import ast
import difflib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import logging
import pkgutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

from flask import Blueprint

from tenantry.endpoints.signal_receivers import drop_receivers
from tenantry.errors import EndpointError
from tenantry.observability.redaction import redact_in_scope

SHARED_MODULES = ("models", "migrations")
"""The modules of an endpoint that all apps share: they keep no state."""

_OWN = __name__.rpartition(".")[0]
"""Short names in `BLUEPRINTS` mean packages in this one."""

_serial = itertools.count(1)  # numbers private packages; its next() is atomic


@dataclass(frozen=True)
class LoadedEndpoint:
    """An endpoint's own copy for one app, until `unload()`."""

    blueprint: Blueprint
    package: str
    """The private package's name in `sys.modules`."""

    def unload(self) -> None:
        """Let the private modules go, with what hears signals and logs for them. Idempotent."""
        _unload(self.package)


def available_endpoints() -> list[str]:
    """Return the short names of the endpoints that come with the host, sorted."""
    return sorted(
        module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.ispkg
    )


def find_endpoint(name: str) -> str:
    """Return the package that `name` means, without importing it or a package above it.

    Raises:
        EndpointError: there is none, or it has no `blueprint.py`; the text has the nearest names.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise EndpointError(name, f"no endpoint named {name!r}; {_hint(name)}")
    package = _package_of(name)
    folders = _folders_of(package)
    if not folders:
        raise EndpointError(name, f"no endpoint named {name!r}; {_hint(name)}")
    if not any(Path(folder, "blueprint.py").is_file() for folder in folders):
        raise EndpointError(
            name, f"endpoint {name!r} has no blueprint.py; see 'Add an endpoint' in the README."
        )
    return package


def load_endpoint(name: str, tenant: str) -> LoadedEndpoint:
    """Execute the endpoint's modules for one app and return its blueprint.

    Args:
        name: as it stands in `BLUEPRINTS`.
        tenant: part of the private package's name, for stack traces.

    Raises:
        EndpointError: it does not exist, fails to import (whatever it raises), or has no
            `<name>_bp`; the cause is chained.
    """
    package = find_endpoint(name)
    short = package.rpartition(".")[2]
    private = f"{package}@{tenant}-{next(_serial)}".replace(".", "/")
    try:
        module = importlib.import_module(f"{private}.blueprint")
    except BaseException as error:
        _unload(private)
        raise EndpointError(name, _failure(name, "fails to import", error)) from error
    blueprint = getattr(module, f"{short}_bp", None)
    if not isinstance(blueprint, Blueprint):
        _unload(private)
        raise EndpointError(
            name,
            f"endpoint {name!r}: its blueprint.py has no Blueprint {short + '_bp'!r}; "
            f"write {short}_bp = Blueprint({short!r}, __name__).",
        )
    return LoadedEndpoint(blueprint, private)


@contextmanager
def registering(name: str) -> Iterator[None]:
    """Name the endpoint in whatever its registration on an app raises.

    Raises:
        EndpointError: with the cause chained.
    """
    try:
        yield
    except BaseException as error:
        raise EndpointError(name, _failure(name, "fails to register", error)) from error


def _package_of(name: str) -> str:
    return name if "." in name else f"{_OWN}.{name}"


def _folders_of(package: str) -> list[str]:
    """Return the folders of a package; none if there is no such package.

    `importlib.util.find_spec` would import the packages above it, and a tenant file, which may
    name any package, must not run code in a process that serves.
    """
    top, *rest = package.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # `__main__` and its like are no packages
        return []
    path = top
    for part in rest:
        folders = None if spec is None else spec.submodule_search_locations
        if folders is None:
            return []
        path = f"{path}.{part}"
        spec = importlib.machinery.PathFinder.find_spec(path, list(folders))
    return [] if spec is None else list(spec.submodule_search_locations or ())


def _failure(name: str, what: str, error: BaseException) -> str:
    try:
        text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        text = redact_in_scope(text)
    except BaseException:  # noqa: BLE001 - the endpoint may have wronged its exception's text too
        text = type(error).__name__
    place = _place(error, _package_of(name))
    return f"endpoint {name!r} {what}: {text}{place}; mend the endpoint."


def _place(error: BaseException, package: str) -> str:
    """Return the last line of the endpoint that the error passed, like ` (resources.py:3)`."""
    place = ""
    if isinstance(error, SyntaxError):
        return place  # its text has the line that is wrong, not only the one that imports it
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = _package_behind(frame.f_globals.get("__name__", ""))
        if module == package or module.startswith(f"{package}."):
            place = f" ({Path(frame.f_code.co_filename).name}:{line})"
    return place


def _hint(name: str) -> str:
    there = available_endpoints()
    near = difflib.get_close_matches(name, there, n=1)
    question = f"did you mean {near[0]!r}? " if near else ""
    return f"{question}Endpoints: {', '.join(there)}."


def _unload(private: str) -> None:
    drop_receivers(private)
    for name in list(sys.modules):  # a copy, made at once: other threads import meanwhile
        if name.partition(".")[0] == private:
            sys.modules.pop(name, None)
    # `logging` keeps every logger for ever, by name. A private API, but the only way: its lock
    # guards this registry, which other threads walk.
    with logging._lock:  # type: ignore[attr-defined]  # noqa: SLF001
        loggers = logging.Logger.manager.loggerDict
        names = [name for name in loggers if name.partition(".")[0] == private]
        gone = [loggers.pop(name) for name in names]
    for handler in [handler for one in gone for handler in getattr(one, "handlers", ())]:
        handler.close()  # the file that it has open


class _PrivateFinder(importlib.abc.MetaPathFinder):
    """Finds private packages and their modules by name alone: `a/b@acme-1` is a copy of `a.b`."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a private copy or of a shared module; None for any other name."""
        private, _, inner = fullname.partition(".")
        if "@" not in private:
            return None
        package = _package_behind(private)
        if not inner:
            return _package_spec(package, private)
        if inner.partition(".")[0] in SHARED_MODULES:
            return importlib.machinery.ModuleSpec(fullname, _SharedModule(f"{package}.{inner}"))
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            path = sys.intern(spec.loader.path)  # one text for all copies
            spec.origin, spec.loader = path, _PrivateModule(fullname, path)
        return spec


def _package_behind(private: str) -> str:
    """Return the name of the package, or module, that a private name is a copy of."""
    return private.partition("@")[0].replace("/", ".")


def _package_spec(package: str, private: str) -> importlib.machinery.ModuleSpec | None:
    folders = _folders_of(package)
    if not folders:
        return None
    # No loader: __init__.py is empty by contract, so the copy is a namespace over the same folder.
    spec = importlib.machinery.ModuleSpec(private, None, is_package=True)
    spec.submodule_search_locations = folders
    return spec


class _SharedModule(importlib.abc.Loader):
    """Loads the shared module under a private name."""

    def __init__(self, shared: str) -> None:
        self._shared = shared

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return a stand-in; `exec_module` puts the shared module in its place."""
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Import the shared module and let the private name mean it."""
        sys.modules[module.__name__] = importlib.import_module(self._shared)


class _PrivateModule(importlib.machinery.SourceFileLoader):
    """Loads a private copy: from source, with imports by the package's full name made private."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the module's code; never from a `.pyc`, which knows nothing of the renaming."""
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        private, _, inner = fullname.partition(".")
        parent = inner if self.is_package(fullname) else inner.rpartition(".")[0]
        try:
            tree = _Renamed(private, parent).visit(tree)
        except SyntaxError as error:
            error.filename = path
            raise
        return compile(tree, path, "exec", dont_inherit=True)


class _Renamed(ast.NodeTransformer):
    """Makes a module's imports fit its private name: those of its own package are private too.

    Args:
        private: the name of the package's private copy.
        parent: what relative imports of the module are relative to, inside the package.
    """

    def __init__(self, private: str, parent: str) -> None:
        self._private = private
        self._package = _package_behind(private)
        self._parent = f"{self._package}.{parent}".rstrip(".")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        """Rename the module of one `from` import."""
        name = "." * node.level + (node.module or "")
        module = importlib.util.resolve_name(name, self._parent)
        if self._is_own(module):
            module = self._private + module.removeprefix(self._package)
        elif any(self._is_own(f"{module}.{alias.name}") for alias in node.names):
            raise _refusal(node)
        node.module, node.level = module, 0
        return node

    def visit_Import(self, node: ast.Import) -> ast.Import:
        """Refuse what cannot be renamed: it binds the first part of the dotted name."""
        if any(self._is_own(alias.name) for alias in node.names):
            raise _refusal(node)
        return node

    def _is_own(self, module: str) -> bool:
        return module == self._package or module.startswith(f"{self._package}.")


def _refusal(node: ast.Import | ast.ImportFrom) -> SyntaxError:
    text = "write `from . import …` to import a module of the same endpoint"
    return SyntaxError(text, ("", node.lineno, node.col_offset + 1, ast.unparse(node)))


# Process-wide, as every import hook is; it answers only for names that `load_endpoint` makes.
sys.meta_path.insert(0, _PrivateFinder())
