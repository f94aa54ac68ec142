"""The private modules of one build, and the import hook that finds them.

The code of a private module has its own `__import__`, which finds the plain names of private
modules among the modules of the same build. `sys.modules` holds the modules of each tenant's latest
build under their private names, for code that looks up a module by name: pickles, dataclasses with
postponed annotations, SQLAlchemy, Celery, `importlib.resources`.
"""

import builtins
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import CodeType, ModuleType
from typing import Any
from weakref import ref

from tenantry.private_code.names import owner_of, plain_name, private_name, shared_owner
from tenantry.private_code.search import OWN, find_module, folders_of, is_in_folder
from tenantry.private_code.sources import Sources

Spec = importlib.machinery.ModuleSpec


class PrivateModules:
    """The modules of one build of a tenant, from `building` to `unload`.

    Each build has its own modules, even while an earlier build of the tenant still serves.

    Args:
        owner: the name of the tenant.
        sources: the compiled code; None for code that only this build uses.
        packages: the plain names of packages that are private wherever they are found.
        app_dir: the folder whose modules are all private; None for no folder.
    """

    is_shared = False
    """Whether all tenants share the modules."""

    def __init__(
        self,
        owner: str,
        sources: Sources | None,
        packages: Iterable[str] = (),
        app_dir: str | None = None,
    ) -> None:
        self.owner = owner
        self.sources = sources or Sources()
        self._owns_sources = sources is None
        self.app_dir = app_dir
        self.packages: frozenset[str] = frozenset()
        """The plain names of packages that are private wherever they are found."""
        self._parents: frozenset[str] = frozenset()
        self.add_packages(packages)
        self._is_in_app_dir: dict[str, bool] = {}
        # Held while modules of the build are imported. Reentrant, because modules import modules.
        self._lock = threading.RLock()
        self._loaded: set[str] = set()
        self.modules: dict[str, ModuleType] = {}
        """The imported modules by plain name."""
        self.builtins: Mapping[str, Any] = {**vars(builtins), "__import__": self._import}
        """The built-in names of the modules. The identity of this dict tells which build a function
        belongs to."""
        self.signals: set[Any] = set()
        """The signals to which the code has connected receivers."""
        self._previous: ref[PrivateModules] | None = None

    def add_packages(self, packages: Iterable[str]) -> None:
        """Make more packages private."""
        self.packages |= frozenset(packages)
        self._parents = frozenset(
            package[:end]
            for package in self.packages
            for end, character in enumerate(package)
            if character == "."
        )

    # -- lifetime -------------------------------------------------------------------------------

    @contextmanager
    def building(self) -> Iterator[None]:
        """Become the latest build of the tenant, whose modules are in `sys.modules`.

        Another build of the tenant waits until the end of the `with` block, because libraries look
        up modules in `sys.modules` while a module is imported.

        Raises:
            TimeoutError: another build of the tenant has not ended within `BUILD_WAIT_S`.
        """
        with _LOCK:
            lock = _building.setdefault(self.owner, threading.Lock())
        if not lock.acquire(timeout=BUILD_WAIT_S):
            raise TimeoutError("another build of this tenant has not ended; see its log lines")
        try:
            with _LOCK:
                previous = _latest.get(self.owner)
                self._previous = None if previous is None else ref(previous)
                _remove(self.owner)
                _latest[self.owner] = self
            yield
        finally:
            lock.release()

    def unload(self) -> None:
        """Remove the modules. Idempotent.

        If the build is the latest, the build before it becomes the latest again, unless that build
        is unloaded.
        """
        with _LOCK:
            if _latest.get(self.owner) is self:
                _remove(self.owner)
                del _latest[self.owner]
                previous = None if self._previous is None else self._previous()
                if previous is not None and previous.modules:
                    _latest[self.owner] = previous
                    sys.modules.update(previous.by_private_name())
            self.modules.clear()
            self._loaded.clear()
        if self._owns_sources:
            self.sources.close()

    @property
    def is_latest(self) -> bool:
        """Whether no later build of the tenant has begun."""
        return _latest.get(self.owner) is self

    def by_private_name(self) -> dict[str, ModuleType]:
        """Return the imported modules by private name."""
        return {private_name(plain, self.owner): one for plain, one in self.modules.items()}

    # -- imports --------------------------------------------------------------------------------

    def is_private(self, plain: str) -> bool:
        """Whether the plain name means a private module in the tenant's code."""
        return self._is_in_packages(plain) or (
            self.app_dir is not None and self._has_top(plain.partition(".")[0])
        )

    def _is_in_packages(self, plain: str) -> bool:
        return any(plain == one or plain.startswith(f"{one}.") for one in self.packages)

    def _has_top(self, top: str) -> bool:
        assert self.app_dir is not None  # noqa: S101 - the caller has checked
        found = self._is_in_app_dir.get(top)
        if found is None:
            found = self._is_in_app_dir[top] = is_in_folder(top, self.app_dir)
        return found

    def load(self, plain: str) -> ModuleType:
        """Return a private module, which is imported if necessary. Thread-safe.

        Raises:
            ImportError: no such module exists.
            BaseException: the exception that the module raised.
        """
        if plain in self._loaded:
            return self.modules[plain]
        with self._lock:
            # A module that is being imported has an incomplete namespace, as in a circular import.
            module = self.modules.get(plain)
            return self._load(plain) if module is None else module

    def _load(self, plain: str) -> ModuleType:
        parent_name, _, child = plain.rpartition(".")
        parent = self.load(parent_name) if parent_name else None
        if plain in self.modules:  # the parent has imported it
            return self.modules[plain]
        path = None if parent is None else list(getattr(parent, "__path__", ()))
        spec = self.find(private_name(plain, self.owner), path)
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(f"No module named {plain!r}", name=plain)
        module = importlib.util.module_from_spec(spec)
        module.__dict__["__builtins__"] = self.builtins
        self.put(plain, module)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            self.modules.pop(plain, None)
            if self.is_latest:
                sys.modules.pop(module.__name__, None)
            raise
        if self.is_latest:  # a module may replace itself
            self.modules[plain] = sys.modules.get(module.__name__, self.modules[plain])
        self._loaded.add(plain)
        if parent is not None:
            setattr(parent, child, self.modules[plain])
        return self.modules[plain]

    def put(self, plain: str, module: ModuleType) -> None:
        """Add a module, also to `sys.modules` if the build is the tenant's latest."""
        self.modules[plain] = module
        if self.is_latest:
            sys.modules[private_name(plain, self.owner)] = module

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002 - as `__import__`
        locals: Mapping[str, Any] | None = None,  # noqa: A002 - as `__import__`
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Import a module like `__import__`, for the code of a private module."""
        if level:
            package = str((globals or {}).get("__package__") or "")
            plain = plain_name(importlib.util.resolve_name("." * level + name, package))
        else:
            plain = name
        # The endpoints that come with Tenantry find nothing in `APP_DIR`.
        caller = plain_name(str((globals or {}).get("__name__", "")))
        is_private = self._is_in_packages if caller.startswith(f"{OWN}.") else self.is_private
        if not is_private(plain):
            return self._import_other(plain, globals, locals, fromlist or ())
        module = self.load(plain)
        if not fromlist:
            return self.load(plain.partition(".")[0])
        for item in _submodules(module, fromlist):
            self._load_submodule(f"{plain}.{item}")
        return module

    def _load_submodule(self, plain: str) -> None:
        try:
            self.load(plain)
        except ModuleNotFoundError as error:
            if error.name != plain:
                raise

    def _import_other(
        self, name: str, globals_: Any, locals_: Any, fromlist: Sequence[str]
    ) -> ModuleType:
        """Import a module of the process, which can contain private packages."""
        module = builtins.__import__(name, globals_, locals_, fromlist)
        if not self._parents:
            return module
        if not fromlist:
            top = name.partition(".")[0]
            return self.load(top) if top in self._parents else module
        if name in self._parents and any(self.is_private(f"{name}.{one}") for one in fromlist):
            parent = self.load(name)
            for one in fromlist:
                if self.is_private(f"{name}.{one}"):
                    self._load_submodule(f"{name}.{one}")
            return parent
        return module

    # -- what the finder asks -------------------------------------------------------------------

    def find(self, fullname: str, path: Sequence[str] | None) -> Spec | None:
        """Return the spec of a private module, or None if no such module exists."""
        plain = plain_name(fullname)
        if plain in self._parents and not self.is_private(plain):
            spec = Spec(fullname, _ParentLoader(plain), is_package=True)
            spec.submodule_search_locations = folders_of(plain, self.app_dir)
            return spec
        if path is None:
            folders = [self.app_dir] if self.app_dir is not None and self.is_private(plain) else []
            found = find_module(plain, folders or None)
        else:
            found = find_module(plain, list(path))
        if found is None or not self.is_private(plain):
            return None
        return self._private_spec(fullname, found)

    def _private_spec(self, fullname: str, found: Spec) -> Spec:
        locations = found.submodule_search_locations
        folders = None if locations is None else list(locations)
        if isinstance(found.loader, importlib.machinery.SourceFileLoader) and found.origin:
            loader: importlib.abc.Loader = _PrivateLoader(fullname, found.origin, self)
            if folders is None and self.sources.is_shared(found.origin):
                return Spec(fullname, _SharedLoader(self, found.origin), origin=found.origin)
            return importlib.util.spec_from_file_location(  # type: ignore[return-value]
                fullname, found.origin, loader=loader, submodule_search_locations=folders
            )
        if found.loader is None or found.origin is None:  # a namespace package
            spec = Spec(fullname, _NamespaceLoader(), is_package=True)
            spec.submodule_search_locations = folders
            return spec
        other: Any = type(found.loader)  # the module is an extension module, or a `.pyc` file
        return importlib.util.spec_from_file_location(  # type: ignore[return-value]
            fullname, found.origin, loader=other(fullname, found.origin)
        )


class _SharedModules(PrivateModules):
    """The shared modules of one folder.

    Shared modules may import only shared modules and libraries.
    """

    is_shared = True

    def _private_spec(self, fullname: str, found: Spec) -> Spec:
        if found.submodule_search_locations is not None:
            # A package can be private although some of its modules are shared.
            spec = Spec(fullname, _NamespaceLoader(), is_package=True)
            spec.submodule_search_locations = list(found.submodule_search_locations)
            return spec
        if found.origin is None or not self.sources.is_shared(found.origin):
            plain = plain_name(fullname)
            raise ImportError(
                f"{plain} is imported by a shared module, but is not shared itself; begin it with "
                "`__shared__ = True`, or remove that line from the module that imports it.",
                name=plain,
            )
        loader = _PrivateLoader(fullname, found.origin, self)
        return importlib.util.spec_from_file_location(  # type: ignore[return-value]
            fullname, found.origin, loader=loader
        )


class _PrivateLoader(importlib.machinery.SourceFileLoader):
    """Runs the code of a private module."""

    def __init__(self, fullname: str, path: str, modules: PrivateModules) -> None:
        super().__init__(fullname, path)
        self._modules = modules

    def get_code(self, fullname: str) -> CodeType:
        """Return the compiled code, which all tenants share."""
        return self._modules.sources.code(self.get_filename(fullname))


class _NamespaceLoader(importlib.abc.Loader):
    """Loads a package without code."""

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing."""


class _ParentLoader(_NamespaceLoader):
    """Loads the private name of a package of the process that contains private modules."""

    def __init__(self, plain: str) -> None:
        self._plain = plain

    def exec_module(self, module: ModuleType) -> None:
        """Import the process's package, and let the package have all its names."""
        module.__dict__["__getattr__"] = partial(getattr, importlib.import_module(self._plain))


class _SharedLoader(importlib.abc.Loader):
    """Replaces a private module with a shared module."""

    def __init__(self, modules: PrivateModules, path: str) -> None:
        self._modules = modules
        self._path = path

    def exec_module(self, module: ModuleType) -> None:
        """Replace the module with the shared module, which is imported if necessary."""
        plain = plain_name(module.__name__)
        self._modules.put(plain, _shared_module(self._modules, plain, self._path))


class _LoadedModule(importlib.abc.Loader):
    """Gives Python's import system a private module that is already imported."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: Spec) -> ModuleType:
        """Return the module."""
        del spec
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the spec, which the import system has replaced."""
        module.__spec__ = self._spec


class _Finder(importlib.abc.MetaPathFinder):
    """Finds private modules by their private names, for code outside of the build."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> Spec | None:
        """Return the spec of a private module, or None for any other name."""
        del path, target
        owner = owner_of(fullname)
        modules = _latest.get(owner) if owner else None
        if modules is None:
            return None
        plain = plain_name(fullname)
        try:
            return Spec(fullname, _LoadedModule(modules.load(plain)))
        except ModuleNotFoundError as error:
            if error.name != plain:
                raise
            return None


BUILD_WAIT_S = 30.0
"""Seconds that a build waits for another build of the same tenant. A build takes 10 to 125 ms, and
with a database migration up to some seconds."""

_LOCK = threading.Lock()
"""Protects `_latest`, and the private names in `sys.modules`."""

_latest: dict[str, PrivateModules] = {}
"""The latest build of each owner."""

_building: dict[str, threading.Lock] = {}
"""The lock of each owner that has been built: held during the imports of a build."""


def are_private_builtins(names: Mapping[str, Any]) -> bool:
    """Whether a dictionary contains the built-in names of private modules."""
    return isinstance(getattr(names.get("__import__"), "__self__", None), PrivateModules)


def build_defining(function: Any) -> PrivateModules | None:
    """Return the build whose code has defined a function, or None for any other function."""
    names = getattr(function, "__globals__", {}).get("__builtins__")
    if type(names) is not dict or not are_private_builtins(names):
        return None
    modules: PrivateModules = names["__import__"].__self__
    return modules


def latest(owner: str) -> PrivateModules | None:
    """Return the modules of the latest build of a tenant."""
    return _latest.get(owner)


def _remove(owner: str) -> None:
    for name in [one for one in list(sys.modules) if owner_of(one) == owner]:
        sys.modules.pop(name, None)


def _shared_module(modules: PrivateModules, plain: str, path: str) -> ModuleType:
    shared = modules.sources.shared
    if path not in shared:
        folder = path.removesuffix(".py").removesuffix(plain.replace(".", "/"))
        owner = shared_owner(folder)
        with _LOCK:
            found = _latest.get(owner)
            if found is None or found.sources is not modules.sources:
                _remove(owner)
                found = _latest[owner] = _SharedModules(owner, modules.sources, (), modules.app_dir)
                modules.sources.on_close.append(found.unload)
            found.add_packages(modules.packages)
        shared[path] = found.load(plain)
    return shared[path]


def _submodules(module: ModuleType, fromlist: Sequence[str]) -> list[str]:
    """Return the names in `from … import` that may be modules."""
    if not hasattr(module, "__path__"):
        return []
    names = list(fromlist)
    if "*" in names:
        names = [*(one for one in names if one != "*"), *getattr(module, "__all__", ())]
    return [one for one in names if not hasattr(module, one)]


# The import hook is global, but finds only private names.
sys.meta_path.insert(0, _Finder())
