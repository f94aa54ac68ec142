"""What the names in a module's source mean, looked up in the module as it is now.

Calls nothing and reads no attribute of an instance, so nothing wakes and no code of a tenant runs.
"""

import ast
import importlib.util
import sys
import types
from collections.abc import Iterator

from tenantry.audit.object_graph import namespace_of
from tenantry.audit.shareable import class_namespace, module_of_class

_INSTANCE = "self"
_OWN_CLASS = ("cls", "type(self)", "self.__class__")

_C_MODULES = types.MappingProxyType({"posix": "os", "_signal": "signal", "_socket": "socket"})
"""What functions written in C call their module → what people call it."""


class Names:
    """The names of one module, while its tree is read: the reader says where it is in it.

    Args:
        module: its name in `sys.modules`; of a private one, any tenant's copy will do.
        tree: its source.
    """

    def __init__(self, module: str, tree: ast.Module) -> None:
        self.classes: list[str] = []
        """The classes around what is read now."""
        self.locals: list[frozenset[str]] = []
        """Names that the functions around it bind."""
        self.origins: dict[str, str] = {}
        """What `from X import Y as Z` binds: Z → X.Y."""
        self._own = namespace_of(sys.modules[module])
        self._imported: dict[str, object] = {}
        self._written: set[tuple[str, str]] = set()
        for node in ast.walk(tree):  # imports inside of functions too
            if isinstance(node, ast.Import):
                for one in node.names:
                    name = one.name if one.asname else one.name.partition(".")[0]
                    self._imported[one.asname or name] = sys.modules.get(name)
            elif isinstance(node, ast.ImportFrom):
                self._learn_from(node)
            elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
                self._written.add((ast.unparse(node.value), node.attr))

    def _learn_from(self, node: ast.ImportFrom) -> None:
        package = str(self._own.get("__package__") or "")
        try:
            name = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        except ImportError:  # it would fail when it runs
            return
        for one in node.names:
            found = sys.modules.get(f"{name}.{one.name}") or attribute(
                sys.modules.get(name), one.name
            )
            self._imported[one.asname or one.name] = found
            self.origins[one.asname or one.name] = f"{name}.{one.name}"

    def meant(self, node: ast.expr) -> object:
        """Return what a name or a dotted name is now; None where nobody can tell."""
        if isinstance(node, ast.Name):
            if self._is_local(node):
                return self._imported.get(node.id)
            return self._own.get(node.id, self._imported.get(node.id))
        if isinstance(node, ast.Attribute):
            return attribute(self.meant(node.value), node.attr)
        return None

    def dotted(self, node: ast.expr) -> str:
        """Return `sys.modules` for whatever this module calls it; empty where nobody can tell."""
        if isinstance(node, ast.Attribute):
            name = name_of_module(self.meant(node.value)) or self.dotted(node.value)
            return f"{name}.{node.attr}" if name else ""
        if isinstance(node, ast.Name) and not self._is_local(node):
            return self.origins.get(node.id, "")
        return ""

    def held(self, node: ast.expr) -> tuple[str, str, object]:
        """Return the module, the name in it, and what is there now, of what a name leads to.

        The class is the one that holds it: of `Page.items` the one that `Page` inherits it from.
        The module is empty where nobody can tell.
        """
        if isinstance(node, ast.Name):
            module, _, name = self.dotted(node).rpartition(".")
            found = attribute(sys.modules.get(module), name)
            return module, name, found if found is self.meant(node) else None
        if not isinstance(node, ast.Attribute):
            return "", "", None
        holder = self._class_of(node) or self.meant(node.value)
        if module := name_of_module(holder):
            return module, node.attr, attribute(holder, node.attr)
        for one in _inherited(holder):
            if node.attr in class_namespace(one):
                name = f"{getattr(one, '__qualname__', '')}.{node.attr}"
                return module_of_class(one), name, class_namespace(one)[node.attr]
        return "", "", None

    def _class_of(self, node: ast.Attribute) -> object:
        """Return the class in whose methods `self.x` stands, unless instances have an x."""
        text = ast.unparse(node.value)
        is_held = text == _INSTANCE and (text, node.attr) not in self._written
        if len(self.classes) == 1 and (is_held or text in _OWN_CLASS):
            return self._own.get(self.classes[0])
        return None

    def _is_local(self, node: ast.Name) -> bool:
        return any(node.id in names for names in self.locals)


def own_name(thing: object) -> str:
    """Return what a function calls itself, `os.chdir`; empty for anything else."""
    if not issubclass(type(thing), types.FunctionType | types.BuiltinFunctionType):
        return ""
    module = str(getattr(thing, "__module__", ""))
    return f"{_C_MODULES.get(module, module)}.{getattr(thing, '__name__', '')}"


def attribute(thing: object, name: str) -> object:
    """Return what a module or a class itself holds under a name, without asking it."""
    if issubclass(type(thing), types.ModuleType):
        return namespace_of(thing).get(name)
    return class_namespace(thing).get(name) if issubclass(type(thing), type) else None


def name_of_module(thing: object) -> str:
    """Return what a module calls itself; empty for anything else."""
    is_module = issubclass(type(thing), types.ModuleType)
    return str(namespace_of(thing).get("__name__")) if is_module else ""


def _inherited(thing: object) -> Iterator[object]:
    if issubclass(type(thing), type):
        yield from type.__dict__["__mro__"].__get__(thing)
