"""The specs and loaders of private modules: where a module's code is, and how to run it."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
from collections.abc import Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from tenantry.private_code.names import plain_name
from tenantry.private_code.search import find_module
from tenantry.private_code.snapshot import read_code

if TYPE_CHECKING:
    from tenantry.private_code.modules import PrivateModules


def find_private_spec(
    modules: "PrivateModules", fullname: str, path: Sequence[str] | None
) -> ModuleSpec | None:
    """Return the spec of a private module, or None if no such module exists.

    Args:
        modules: the build that imports the module.
        fullname: the private name of the module.
        path: the folders of the module's package; None for a top-level module.
    """
    plain = plain_name(fullname)
    if not modules.is_private(plain):
        if plain not in modules.parents:
            return None
        spec = ModuleSpec(fullname, _ParentLoader(plain), is_package=True)
        spec.submodule_search_locations = list(modules.sources.folders_of(plain, modules.app_dir))
        return spec
    if path is None:
        folders = [str(modules.app_dir)] if modules.is_in_app_dir(plain) else None
        found = find_module(plain, folders)
    else:
        found = modules.sources.find(plain, path)
    if found is None:
        return None
    if modules.is_shared:
        return _shared_spec(modules, fullname, found)
    return _private_spec(modules, fullname, found)


def _private_spec(modules: "PrivateModules", fullname: str, found: ModuleSpec) -> ModuleSpec:
    if isinstance(found.loader, importlib.machinery.SourceFileLoader) and found.origin:
        is_module = found.submodule_search_locations is None
        if is_module and modules.sources.is_shared(found.origin):
            return ModuleSpec(fullname, _SharedLoader(modules, found.origin), origin=found.origin)
        return _spec(fullname, found, _PrivateLoader(fullname, found.origin, modules))
    if found.loader is None or found.origin is None:
        return _namespace_spec(fullname, found)
    other: Any = type(found.loader)  # the module is an extension module, or a `.pyc` file
    return _spec(fullname, found, other(fullname, found.origin))


def _shared_spec(modules: "PrivateModules", fullname: str, found: ModuleSpec) -> ModuleSpec:
    """Return the spec of a shared module, which may import only shared modules and libraries."""
    if found.submodule_search_locations is not None:
        # A package can be private although some of its modules are shared.
        return _namespace_spec(fullname, found)
    if found.origin is None or not modules.sources.is_shared(found.origin):
        plain = plain_name(fullname)
        raise ImportError(
            f"{plain} is imported by a shared module, but is not shared itself; begin it with "
            "`__shared__ = True`, or remove that line from the module that imports it.",
            name=plain,
        )
    return _spec(fullname, found, _PrivateLoader(fullname, found.origin, modules))


def _spec(fullname: str, found: ModuleSpec, loader: importlib.abc.Loader) -> ModuleSpec:
    """Return the spec of a file under another name. The strings belong to all tenants."""
    spec = ModuleSpec(fullname, loader, origin=found.origin)
    spec.has_location = True
    spec.cached = found.cached
    if found.submodule_search_locations is not None:
        spec.submodule_search_locations = list(found.submodule_search_locations)
    return spec


def _namespace_spec(fullname: str, found: ModuleSpec) -> ModuleSpec:
    spec = ModuleSpec(fullname, _NamespaceLoader(), is_package=True)
    spec.submodule_search_locations = list(found.submodule_search_locations or ())
    return spec


class _PrivateLoader(importlib.machinery.SourceFileLoader):
    """Runs the code of a private module."""

    def __init__(self, fullname: str, path: str, modules: "PrivateModules") -> None:
        super().__init__(fullname, path)
        self._modules = modules

    def get_code(self, fullname: str) -> CodeType:
        """Return the compiled code, which all tenants share."""
        return self._modules.sources.code(self.get_filename(fullname))

    def get_data(self, path: str) -> bytes:
        """Return the content of a file: the code that runs, or any other file on disk."""
        return read_code(path) if path == self.path else super().get_data(path)


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

    def __init__(self, modules: "PrivateModules", path: str) -> None:
        self._modules = modules
        self._path = path

    def exec_module(self, module: ModuleType) -> None:
        """Replace the module with the shared module, which is imported if necessary."""
        plain = plain_name(module.__name__)
        self._modules.put(plain, self._modules.shared_module(plain, self._path))
