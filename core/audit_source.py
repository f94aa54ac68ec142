"""What endpoints may do to their neighbours that no object shows before it is done.

Reads the source of the modules that the apps reach: who rebinds what a shared module, class or
function holds, who changes what the whole process has, who asks for `sys.modules`, where every
tenant's private code is, and who redirects out of the tenant's prefix. A name in the source is
looked up in the module as it is now; nothing is called, and nothing wakes.
"""

import ast
import importlib.util
import os
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.audit_finding import Finding, stable_id
from core.object_graph import World, namespace_of
from core.object_paths import Place, plain_name, shown_file
from core.shareable import class_namespace

_WINDOWS = frozenset({
    "sys.modules", "sys._current_frames", "gc.get_objects", "gc.get_referrers",
    "logging.root.manager", "logging.Logger.manager",
})  # fmt: skip
"""Names of the standard library that show what belongs to all tenants."""

_OF_THE_PROCESS = frozenset({
    "os.chdir", "os.umask", "os.putenv", "os.unsetenv", "locale.setlocale", "signal.signal",
    "socket.setdefaulttimeout", "logging.disable", "logging.basicConfig", "random.seed",
})  # fmt: skip
"""Functions that change what all tenants have."""

_WRITING = frozenset({"update", "setdefault", "pop", "popitem", "clear"})

Kind = Literal["window", "process", "rebound", "redirect"]


@dataclass(frozen=True)
class Hint:
    """One line of source that matters."""

    kind: Kind
    where: str
    """What it is about: `shop.models.last`."""
    line: int


def scan_sources(world: World, modules: Mapping[str, frozenset[str]]) -> Iterator[Finding]:
    """Yield a finding for each such line in the modules that the tenants' apps reach."""
    hints: dict[str, list[Hint]] = {}
    users: dict[tuple[str, str], list[str]] = {}
    for tenant, names in modules.items():
        for name in sorted(names):
            file = getattr(sys.modules.get(name), "__file__", None)
            if isinstance(file, str) and world.is_entered(name):
                known = users.setdefault((plain_name(name) if "@" in name else name, file), [])
                if tenant not in known:
                    known.append(tenant)
                if file not in hints:
                    hints[file] = _hints(file, name, world)
    for (module, file), tenants in users.items():
        for hint in hints[file]:
            yield _finding(hint, module, file, tuple(tenants))


def _finding(hint: Hint, module: str, file: str, tenants: tuple[str, ...]) -> Finding:
    kind, text, remedy = _TOLD[hint.kind]
    where = Place(module, hint.where).tail if kind == "reaches" else hint.where
    return Finding(
        stable_id(kind, where),
        tenants,
        text.format(module=module, where=hint.where),
        remedy,
        tuple(f"{name}: module {module.rpartition('.')[2]} → {hint.where}" for name in tenants[:2]),
        f"{shown_file(file)}:{hint.line}",
        is_note=hint.kind == "redirect",
    )


_TOLD: Mapping[Kind, tuple[str, str, str]] = types.MappingProxyType({
    "window": (
        "reaches",
        "{module} looks into {where}, where every tenant's private code is",
        "let it not look for other apps: what an endpoint needs hangs on current_app",
    ),
    "process": (
        "process",
        "{module} changes {where}, which is the whole process's",
        "leave it to the host's start; what one request needs, hand on as an argument",
    ),
    "rebound": (
        "shared",
        "{where} is rebound by {module}, and all apps share it",
        "keep it in resources.py, which each app has for itself, or on the object that needs it",
    ),
    "redirect": (
        "leaves",
        "{module} redirects to {where}, which is not under the tenant's prefix",
        "write redirect(url_for(…)): it knows the prefix",
    ),
})  # fmt: skip


def _hints(file: str, module: str, world: World) -> list[Hint]:
    try:
        tree = ast.parse(Path(file).read_bytes(), file)
    except (OSError, SyntaxError, ValueError):
        return []
    reader = _Reader(module, world)
    reader.learn_imports(tree)
    reader.visit(tree)
    return reader.hints


class _Reader(ast.NodeVisitor):
    """Collects the hints of one module.

    Args:
        module: its name in `sys.modules`; of a private one, any tenant's copy will do.
        world: what is known of the process.
    """

    def __init__(self, module: str, world: World) -> None:
        self.hints: list[Hint] = []
        self._module = module
        self._world = world
        self._is_shared = "@" not in module
        self._names = namespace_of(sys.modules[module])
        self._imported: dict[str, object] = {}
        self._classes: list[str] = []
        self._locals: list[frozenset[str]] = []

    # -- what a name means -----------------------------------------------------------------------

    def learn_imports(self, tree: ast.Module) -> None:
        """Note what imports bind, those inside of functions too."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for one in node.names:
                    name = one.name if one.asname else one.name.partition(".")[0]
                    self._imported[one.asname or name] = sys.modules.get(name)
            elif isinstance(node, ast.ImportFrom):
                self._learn_from(node)

    def _learn_from(self, node: ast.ImportFrom) -> None:
        package = str(self._names.get("__package__") or "")
        try:
            name = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        except ImportError:  # it would fail when it runs
            return
        for one in node.names:
            found = sys.modules.get(f"{name}.{one.name}") or _attribute(
                sys.modules.get(name), one.name
            )
            self._imported[one.asname or one.name] = found
            if f"{name}.{one.name}" in _WINDOWS:
                self._add("window", f"{name}.{one.name}", node)

    def _meant(self, node: ast.expr) -> object:
        """Return what a name or a dotted name is now; None where nobody can tell."""
        if isinstance(node, ast.Name):
            if any(node.id in names for names in self._locals):
                return self._imported.get(node.id)
            return self._names.get(node.id, self._imported.get(node.id))
        if isinstance(node, ast.Attribute):
            return _attribute(self._meant(node.value), node.attr)
        return None

    def _dotted(self, node: ast.expr) -> str:
        """Return `sys.modules` for whatever this module calls it; empty where nobody can tell."""
        if isinstance(node, ast.Attribute):
            holder = self._meant(node.value)
            name = _name_of_module(holder) or self._dotted(node.value)
            return f"{name}.{node.attr}" if name else ""
        return ""

    # -- what is looked for ----------------------------------------------------------------------

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Find the windows, and attributes of shared things that are written."""
        if isinstance(node.ctx, ast.Load):
            if (name := self._dotted(node)) in _WINDOWS:
                self._add("window", name, node)
        elif ast.unparse(node.value) in ("cls", "type(self)", "self.__class__"):
            if self._is_shared and self._classes:
                self._rebound(f"{'.'.join(self._classes)}.{node.attr}", node)
        elif where := self._shared(node.value):
            self._add("rebound", f"{where}.{node.attr}", node)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """Find writes into the environment and into `globals()`; a module may look itself up."""
        if not isinstance(node.ctx, ast.Load):
            if self._meant(node.value) is os.environ:
                self._add("process", "os.environ", node)
            elif ast.unparse(node.value) == "globals()" and self._is_shared and self._locals:
                self._rebound(_constant(node.slice), node)
        elif ast.unparse(node.slice) == "__name__" and self._dotted(node.value) == "sys.modules":
            return
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Find `setattr`, what changes the process, and redirects to a path of the origin."""
        dotted = self._dotted(node.func) or _own_name(self._meant(node.func))
        if dotted in _OF_THE_PROCESS:
            self._add("process", dotted, node)
        elif isinstance(node.func, ast.Attribute) and node.func.attr in _WRITING:
            if self._meant(node.func.value) is os.environ:
                self._add("process", "os.environ", node)
        elif ast.unparse(node.func) == "setattr" and len(node.args) == 3:  # noqa: PLR2004 - its arguments
            if where := self._shared(node.args[0]):
                self._add("rebound", f"{where}.{_constant(node.args[1])}", node)
        elif ast.unparse(node.func).rpartition(".")[2] == "redirect" and node.args:
            target = _constant(node.args[0])
            if target.startswith("/"):
                self._add("redirect", target, node)
        self.generic_visit(node)

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        declared = {
            name for one in ast.walk(node) if isinstance(one, ast.Global) for name in one.names
        }
        stored = [one for one in ast.walk(node) if isinstance(one, ast.Name)]
        stored = [one for one in stored if not isinstance(one.ctx, ast.Load)]
        for one in stored if self._is_shared else ():
            if one.id in declared:
                self._rebound(one.id, one)
        arguments = {one.arg for one in ast.walk(node.args) if isinstance(one, ast.arg)}
        self._locals.append(frozenset(arguments | {one.id for one in stored} - declared))
        self.generic_visit(node)
        self._locals.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _visit_function  # noqa: N815 - ast's

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Remember whose methods these are."""
        self._classes.append(node.name)
        self.generic_visit(node)
        self._classes.pop()

    def _shared(self, node: ast.expr) -> str:
        """Return where a module, class or function is that all apps share; empty for others.

        What a shared module does while it is imported, once, is no matter of tenants.
        """
        thing = self._meant(node)
        if thing is None or (self._is_shared and not self._locals):
            return ""
        if module := _name_of_module(thing):
            return "" if "@" in module else ".".join(module.split(".")[-2:])
        if self._world.kind(type(thing)) not in ("class", "function"):
            return ""
        module = self._world.module_of(thing)
        name = str(getattr(thing, "__qualname__", "")).replace(".<locals>", "")
        return "" if "@" in module or not module else Place(module, name).tail

    def _rebound(self, name: str, node: ast.expr) -> None:
        self._add("rebound", Place(self._module, name).tail, node)

    def _add(self, kind: Kind, where: str, node: ast.AST) -> None:
        self.hints.append(Hint(kind, where, getattr(node, "lineno", 0)))


def _own_name(thing: object) -> str:
    """Return what a function calls itself, `os.chdir`; empty for anything else."""
    if not issubclass(type(thing), types.FunctionType | types.BuiltinFunctionType):
        return ""
    name = f"{getattr(thing, '__module__', '')}.{getattr(thing, '__name__', '')}"
    return _PLAIN.get(name, name)


_PLAIN = types.MappingProxyType({
    "posix.chdir": "os.chdir", "posix.umask": "os.umask", "posix.putenv": "os.putenv",
    "posix.unsetenv": "os.unsetenv", "_socket.setdefaulttimeout": "socket.setdefaulttimeout",
})  # fmt: skip
"""What functions written in C call themselves → what people call them."""


def _attribute(thing: object, name: str) -> object:
    """Return what a module or a class itself holds under a name, without asking it."""
    if issubclass(type(thing), types.ModuleType):
        return namespace_of(thing).get(name)
    return class_namespace(thing).get(name) if issubclass(type(thing), type) else None


def _name_of_module(thing: object) -> str:
    is_module = issubclass(type(thing), types.ModuleType)
    return str(namespace_of(thing).get("__name__")) if is_module else ""


def _constant(node: ast.expr) -> str:
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return str(node.value) if is_text else "…"  # type: ignore[attr-defined]
