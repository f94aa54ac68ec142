"""Defines an import hook that gives each app a private copy of an endpoint's package.

For the tenant acme, the copy of the package `a.b` is the package `a/b@acme-1`, which is compiled
from the same files. Inside the copy, an import such as `from a.b.resources import …` refers to the
copy. The modules `models` and `migrations` are not copied, because all apps share them.
"""

import ast
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType

SHARED_MODULES = ("models", "migrations")
"""Names of the modules that all apps share. Modules that all apps share must not have state."""


def private_name(package: str, owner: str) -> str:
    """Return the name of the private copy of a package."""
    return f"{package}@{owner}".replace(".", "/")


def plain_name(private: str) -> str:
    """Return the name of the original package. The name of any other package is unchanged."""
    return private.partition("@")[0].replace("/", ".")


def folders_of(package: str) -> list[str]:
    """Return the folders of a package, or no folders if the package does not exist.

    A tenant file can name any package, but the code of that package must not run in a serving
    process. Therefore, this function does not call `importlib.util.find_spec`, which would import
    the parent packages.
    """
    top, *rest = package.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # the module has no spec, such as `__main__`
        return []
    path = top
    for part in rest:
        folders = None if spec is None else spec.submodule_search_locations
        if folders is None:
            return []
        path = f"{path}.{part}"
        spec = importlib.machinery.PathFinder.find_spec(path, list(folders))
    return [] if spec is None else list(spec.submodule_search_locations or ())


class _PrivateFinder(importlib.abc.MetaPathFinder):
    """Finds private packages and their modules by name."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a private or shared module, or None for any other name."""
        private, _, inner = fullname.partition(".")
        if "@" not in private:
            return None
        package = plain_name(private)
        if not inner:
            return _package_spec(package, private)
        if inner.partition(".")[0] in SHARED_MODULES:
            return importlib.machinery.ModuleSpec(fullname, _SharedModule(f"{package}.{inner}"))
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _PrivateModule(fullname, spec.loader.path)
        return spec


def _package_spec(package: str, private: str) -> importlib.machinery.ModuleSpec | None:
    folders = folders_of(package)
    if not folders:
        return None
    # The `__init__.py` of an endpoint must be empty. Because of this, the private copy can be a
    # namespace package, which needs no loader.
    spec = importlib.machinery.ModuleSpec(private, None, is_package=True)
    spec.submodule_search_locations = folders
    return spec


class _SharedModule(importlib.abc.Loader):
    """Loads a shared module under a private name."""

    def __init__(self, shared: str) -> None:
        self._shared = shared

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return a placeholder that `exec_module` replaces."""
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Import the shared module, and make it available under the private name."""
        sys.modules[module.__name__] = importlib.import_module(self._shared)


class _PrivateModule(importlib.machinery.SourceFileLoader):
    """Loads a private copy of a module."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the module, with imports that refer to the private copy."""
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        private, _, inner = fullname.partition(".")
        parent = inner if self.is_package(fullname) else inner.rpartition(".")[0]
        try:
            tree = _PrivateImports(private, parent).visit(tree)
        except SyntaxError as error:
            error.filename = path
            raise
        return compile(tree, path, "exec", dont_inherit=True)


class _PrivateImports(ast.NodeTransformer):
    """Makes imports of the endpoint's package refer to the private copy.

    Args:
        private: the name of the private copy.
        parent: the sub-package to which relative imports refer, or "".
    """

    def __init__(self, private: str, parent: str) -> None:
        self._private = private
        self._package = plain_name(private)
        self._parent = f"{self._package}.{parent}".rstrip(".")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        """Rewrite `from … import` of the endpoint's package."""
        name = "." * node.level + (node.module or "")
        module = importlib.util.resolve_name(name, self._parent)
        if self._is_own(module):
            module = self._private + module.removeprefix(self._package)
        elif any(self._is_own(f"{module}.{alias.name}") for alias in node.names):
            raise _unsupported(node)
        node.module, node.level = module, 0
        return node

    def visit_Import(self, node: ast.Import) -> ast.Import:
        """Reject `import` of the endpoint's package, because it would bind the original package."""
        if any(self._is_own(alias.name) for alias in node.names):
            raise _unsupported(node)
        return node

    def _is_own(self, module: str) -> bool:
        return module == self._package or module.startswith(f"{self._package}.")


def _unsupported(node: ast.Import | ast.ImportFrom) -> SyntaxError:
    text = "write `from . import …` to import a module of the same endpoint"
    return SyntaxError(text, ("", node.lineno, node.col_offset + 1, ast.unparse(node)))


# The import hook is global, but finds only names from `private_name`.
sys.meta_path.insert(0, _PrivateFinder())
