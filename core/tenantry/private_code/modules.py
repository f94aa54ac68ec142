"""The private modules of one build of a tenant.

The code of a private module has its own `__import__`, which finds the plain names of private
modules among the modules of the same build. Code outside of the build finds the modules by their
private names (`latest_builds`).
"""

import builtins
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from weakref import ref

from tenantry.private_code.latest_builds import becoming_latest, forget, latest, latest_or_replaced
from tenantry.private_code.names import plain_name, private_name, shared_owner
from tenantry.private_code.search import OWN, is_in_folder, is_newer_than_snapshot
from tenantry.private_code.sources import Sources
from tenantry.private_code.specs import find_private_spec


class PrivateModules:
    """The modules of one build of a tenant, from `building` to `unload`.

    Each build has its own modules, even while an earlier build of the tenant still serves.

    Args:
        owner: the name of the tenant.
        sources: the compiled code; None for code that only this build uses.
        packages: the plain names of packages that are private wherever they are found.
        app_dir: the folder whose modules are all private; None for no folder.
        is_shared: whether these are the shared modules of a folder, which all tenants use.
    """

    def __init__(
        self,
        owner: str,
        sources: Sources | None,
        packages: Iterable[str] = (),
        app_dir: str | None = None,
        *,
        is_shared: bool = False,
    ) -> None:
        self.owner = owner
        self.sources = sources or Sources()
        self._owns_sources = sources is None
        self.app_dir = app_dir
        self.is_shared = is_shared
        self.packages: frozenset[str] = frozenset()
        """The plain names of packages that are private wherever they are found."""
        self.parents: frozenset[str] = frozenset()
        """The plain names of the packages that contain `packages`."""
        self.add_packages(packages)
        self._is_in_app_dir: dict[str, bool] = {}
        # Held while modules of the build are imported. Reentrant, because modules import modules.
        self._lock = threading.RLock()
        self._loaded: set[str] = set()
        self.importing: list[str] = []
        """The plain names of the modules whose code runs now, the innermost last."""
        self.modules: dict[str, ModuleType] = {}
        """The imported modules by plain name."""
        self.builtins: Mapping[str, Any] = {**vars(builtins), "__import__": self._import}
        """The built-in names of the modules. The identity of this dict tells which build a function
        belongs to."""
        self.signals: set[Any] = set()
        """The signals to which the code has connected receivers."""
        self.library_state: dict[str, Any] = {}
        """What libraries keep for the code of the build, such as tasks and schema classes."""
        self.after_import: Callable[[], None] = lambda: None
        """A function that is called when the code has imported a library."""
        self._previous: ref[PrivateModules] | None = None

    def add_packages(self, packages: Iterable[str]) -> None:
        """Make more packages private."""
        self.packages |= frozenset(packages)
        self.parents = frozenset(
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
            TimeoutError: another build of the tenant has not ended within `BUILD_WAIT_S` of its
                beginning.
        """
        with becoming_latest(self) as self._previous:
            yield

    def unload(self) -> None:
        """Remove the modules. Idempotent.

        If the build is the latest, the build before it becomes the latest again, unless that build
        is unloaded.
        """
        forget(self, None if self._previous is None else self._previous())
        self._loaded.clear()
        self.library_state.clear()
        if self._owns_sources:
            self.sources.close()

    @property
    def is_latest(self) -> bool:
        """Whether no later build of the tenant has begun."""
        return latest(self.owner) is self

    def by_private_name(self) -> dict[str, ModuleType]:
        """Return the imported modules by private name."""
        return {private_name(plain, self.owner): one for plain, one in self.modules.items()}

    # -- imports --------------------------------------------------------------------------------

    def is_private(self, plain: str) -> bool:
        """Whether the plain name means a private module in the tenant's code."""
        return self._is_in_packages(plain) or self.is_in_app_dir(plain.partition(".")[0])

    def _is_in_packages(self, plain: str) -> bool:
        return any(plain == one or plain.startswith(f"{one}.") for one in self.packages)

    def is_in_app_dir(self, top: str) -> bool:
        """Whether a top-level name means a module in `APP_DIR`."""
        found = self._is_in_app_dir.get(top)
        if found is None:
            found = self.app_dir is not None and is_in_folder(top, self.app_dir)
            self._is_in_app_dir[top] = found
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
        spec = find_private_spec(self, private_name(plain, self.owner), path)
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(self._describe_missing(plain, path), name=plain)
        module = importlib.util.module_from_spec(spec)
        module.__dict__["__builtins__"] = self.builtins
        self.put(plain, module)
        self.importing.append(plain)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            self.modules.pop(plain, None)
            if self.is_latest:
                sys.modules.pop(module.__name__, None)
            raise
        finally:
            self.importing.remove(plain)
        if self.is_latest:  # a module may replace itself
            self.modules[plain] = sys.modules.get(module.__name__, self.modules[plain])
        self._loaded.add(plain)
        if parent is not None:
            setattr(parent, child, self.modules[plain])
        return self.modules[plain]

    def _describe_missing(self, plain: str, path: Sequence[str] | None) -> str:
        text = f"No module named {plain!r}"
        folders = path or ([] if self.app_dir is None else [self.app_dir])
        if is_newer_than_snapshot(plain.rpartition(".")[2], folders):
            text += "; it is newer than the code that this host serves; run: tenantry restart"
        return text

    def put(self, plain: str, module: ModuleType) -> None:
        """Add a module, also to `sys.modules` if the build is the tenant's latest."""
        self.modules[plain] = module
        if self.is_latest:
            sys.modules[private_name(plain, self.owner)] = module

    def shared_module(self, plain: str, path: str) -> ModuleType:
        """Return the shared module of a file, which is imported if necessary."""
        shared = self.sources.shared
        if path not in shared:
            folder = path.removesuffix(".py").removesuffix(plain.replace(".", "/"))
            new = PrivateModules(
                shared_owner(folder), self.sources, (), self.app_dir, is_shared=True
            )
            modules = latest_or_replaced(new)
            if modules is new:
                self.sources.on_close.append(new.unload)
            modules.add_packages(self.packages)
            shared[path] = modules.load(plain)
        return shared[path]

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
        self.after_import()
        if not self.parents:
            return module
        if not fromlist:
            top = name.partition(".")[0]
            return self.load(top) if top in self.parents else module
        if name in self.parents and any(self.is_private(f"{name}.{one}") for one in fromlist):
            parent = self.load(name)
            for one in fromlist:
                if self.is_private(f"{name}.{one}"):
                    self._load_submodule(f"{name}.{one}")
            return parent
        return module


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


def _submodules(module: ModuleType, fromlist: Sequence[str]) -> list[str]:
    """Return the names in `from … import` that may be modules."""
    if not hasattr(module, "__path__"):
        return []
    names = list(fromlist)
    if "*" in names:
        names = [*(one for one in names if one != "*"), *getattr(module, "__all__", ())]
    return [one for one in names if not hasattr(module, one)]
