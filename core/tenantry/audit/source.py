"""What endpoints may do to their neighbours that no object shows before it is done.

Reads the source of the modules that the apps reach: who rebinds what a shared module, class or
function holds, who writes what a library holds or the whole process has, who asks for
`sys.modules`, where every tenant's private code is, and who redirects out of the tenant's prefix.
"""

import ast
import logging
import os
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tenantry.audit.finding import Finding, stable_id
from tenantry.audit.names import Names, name_of_module, own_name
from tenantry.audit.object_graph import World
from tenantry.audit.object_paths import Place, plain_name, shown_file

_WINDOWS = frozenset({
    "sys.modules", "sys._current_frames", "gc.get_objects", "gc.get_referrers",
    "logging.root.manager", "logging.Logger.manager",
})  # fmt: skip
"""Names of the standard library that show what belongs to all tenants."""

_OF_THE_PROCESS = frozenset({
    "os.chdir", "os.chroot", "os.fchdir", "os.nice", "os.putenv", "os.register_at_fork",
    "os.setpriority", "os.umask", "os.unsetenv",
    "signal.alarm", "signal.pthread_sigmask", "signal.set_wakeup_fd", "signal.setitimer",
    "signal.siginterrupt", "signal.signal",
    "sys.addaudithook", "sys.set_int_max_str_digits", "sys.setprofile", "sys.setrecursionlimit",
    "sys.setswitchinterval", "sys.settrace", "threading.setprofile", "threading.settrace",
    "gc.disable", "gc.enable", "gc.freeze", "gc.set_debug", "gc.set_threshold",
    "warnings.filterwarnings", "warnings.resetwarnings", "warnings.simplefilter",
    "logging.basicConfig", "logging.captureWarnings", "logging.disable",
    "logging.setLogRecordFactory", "logging.setLoggerClass", "logging.config.dictConfig",
    "logging.config.fileConfig", "logging.config.listen",
    "asyncio.set_event_loop_policy", "codecs.register", "codecs.register_error",
    "faulthandler.disable", "faulthandler.enable", "locale.setlocale", "mimetypes.add_type",
    "mimetypes.init", "multiprocessing.set_start_method", "random.seed", "resource.setrlimit",
    "socket.setdefaulttimeout", "sqlite3.register_adapter", "sqlite3.register_converter",
    "time.tzset", "tracemalloc.start", "tracemalloc.stop", "urllib.request.install_opener",
})  # fmt: skip
"""Functions that change what all tenants have."""

_OF_A_LOGGER = frozenset({"setLevel", "removeHandler", "removeFilter"})
"""Methods that change a logger. What is added to one is found as an object (`audit_objects`)."""

_WRITING = frozenset({
    "add", "append", "appendleft", "clear", "difference_update", "discard", "extend", "extendleft",
    "insert", "intersection_update", "pop", "popitem", "popleft", "remove", "reverse",
    "setdefault", "sort", "symmetric_difference_update", "update", "__delitem__", "__setitem__",
})  # fmt: skip
_UNKNOWN = "…"
_CONTAINERS = (list, dict, set, deque, bytearray)

Kind = Literal["window", "process", "rebound", "written", "redirect"]


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
    "written": (
        "shared",
        "{where} is written by {module}, and all apps share it",
        "change the app's own: app.jinja_env.filters, decorators of one Api, a list in one class",
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
    reader = _Reader(module, tree, world)
    reader.visit(tree)
    return reader.hints


class _Reader(ast.NodeVisitor):
    """Collects the hints of one module.

    Args:
        module: its name in `sys.modules`; of a private one, any tenant's copy will do.
        tree: its source.
        world: what is known of the process.
    """

    def __init__(self, module: str, tree: ast.Module, world: World) -> None:
        self.hints: list[Hint] = []
        self._module = module
        self._world = world
        self._is_shared = "@" not in module
        self._names = Names(module, tree)
        self._are_warnings_caught = False

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Find the windows that are imported by their own names."""
        for one in node.names:
            origin = self._names.origins.get(one.asname or one.name, "")
            if origin in _WINDOWS:
                self._add("window", origin, node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Find the windows, and attributes of shared things that are written."""
        if isinstance(node.ctx, ast.Load):
            if (name := self._names.dotted(node)) in _WINDOWS:
                self._add("window", name, node)
        elif ast.unparse(node.value) in ("cls", "type(self)", "self.__class__"):
            if self._is_shared and self._names.classes:
                self._rebound(f"{'.'.join(self._names.classes)}.{node.attr}", node)
        elif logger := self._logger(node.value):
            self._add("process", logger, node)
        elif where := self._shared(node.value):
            self._add("rebound", f"{where}.{node.attr}", node)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """Find what is written into the environment, a library's container and `globals()`."""
        if not isinstance(node.ctx, ast.Load):
            if ast.unparse(node.value) == "globals()" and self._is_shared and self._names.locals:
                self._rebound(_constant(node.slice), node)
            self._find_written(node.value)
        elif ast.unparse(node.slice) == "__name__" and (
            self._names.dotted(node.value) == "sys.modules"
        ):
            return  # a module may look itself up
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Find what writes by a call, and redirects to a path of the origin."""
        dotted = self._names.dotted(node.func)
        dotted = dotted if dotted in _OF_THE_PROCESS else own_name(self._names.meant(node.func))
        if dotted in _OF_THE_PROCESS:
            if not (self._are_warnings_caught and dotted.startswith("warnings.")):
                self._add("process", dotted, node)
        elif isinstance(node.func, ast.Attribute) and node.func.attr in _WRITING:
            self._find_written(node.func.value)
        elif isinstance(node.func, ast.Attribute) and node.func.attr in _OF_A_LOGGER:
            if logger := self._logger(node.func.value):
                self._add("process", logger, node)
        elif ast.unparse(node.func) == "setattr" and len(node.args) == 3:  # noqa: PLR2004 - its arguments
            if where := self._shared(node.args[0]):
                self._add("rebound", f"{where}.{_constant(node.args[1])}", node)
        elif ast.unparse(node.func).rpartition(".")[2] == "redirect" and node.args:
            target = _constant(node.args[0])
            if target.startswith("/"):
                self._add("redirect", target, node)
        self.generic_visit(node)

    def visit_With(self, node: ast.With) -> None:
        """Remember where filters of warnings are put back."""
        before = self._are_warnings_caught
        for one in node.items:
            call = one.context_expr
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute | ast.Name):
                is_catching = self._names.dotted(call.func) == "warnings.catch_warnings"
                self._are_warnings_caught |= is_catching
        self.generic_visit(node)
        self._are_warnings_caught = before

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
        self._names.locals.append(frozenset(arguments | {one.id for one in stored} - declared))
        self.generic_visit(node)
        self._names.locals.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _visit_function  # noqa: N815 - ast's

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Remember whose methods these are."""
        self._names.classes.append(node.name)
        self.generic_visit(node)
        self._names.classes.pop()

    # -- whose it is -----------------------------------------------------------------------------

    def _find_written(self, node: ast.expr) -> None:
        """Note a container that is written, if it is the environment's or a library's."""
        thing = self._names.meant(node)
        module, name, held = self._names.held(node)
        if thing is os.environ or thing is os.environb:
            self._add("process", "os.environ" if thing is os.environ else "os.environb", node)
        elif logger := self._logger_above(node):
            self._add("process", logger, node)
        elif not issubclass(type(held), _CONTAINERS) or self._world.is_entered(module):
            return
        elif module.partition(".")[0] in sys.stdlib_module_names:
            if f"{module}.{name}" not in _WINDOWS:
                self._add("process", f"{module}.{name}", node)
        elif not self._is_imported_once():
            self._add("written", Place(module, name).tail, node)

    def _logger_above(self, node: ast.expr) -> str:
        is_of_one = isinstance(node, ast.Attribute) and node.attr in ("handlers", "filters")
        return self._logger(node.value) if is_of_one else ""  # type: ignore[attr-defined]

    def _logger(self, node: ast.expr) -> str:
        """Return which logger it is, if it is none of this endpoint's copy and of no tenant."""
        thing = self._names.meant(node)
        name = str(thing.name) if issubclass(type(thing), logging.Logger) else ""  # type: ignore[attr-defined]
        if isinstance(node, ast.Call) and self._names.dotted(node.func) == "logging.getLogger":
            name = (_constant(node.args[0]) if node.args else "") or "root"
            if node.args and ast.unparse(node.args[0]) == "__name__":
                name = self._module
        is_own = "@" in name or (name == self._module and self._is_imported_once())
        is_known = name not in ("", _UNKNOWN) and not name.startswith("tenant.")
        return f"logger {name}" if is_known and not is_own else ""

    def _shared(self, node: ast.expr) -> str:
        """Return where a module, class or function is that all apps share; empty for others."""
        thing = self._names.meant(node)
        if thing is None or self._is_imported_once():
            return ""
        if module := name_of_module(thing):
            return "" if "@" in module else ".".join(module.split(".")[-2:])
        if self._world.kind(type(thing)) not in ("class", "function"):
            return ""
        module = self._world.module_of(thing)
        name = str(getattr(thing, "__qualname__", "")).replace(".<locals>", "")
        return "" if "@" in module or not module else Place(module, name).tail

    def _is_imported_once(self) -> bool:
        """Whether this is what a shared module does while it is imported: no matter of tenants."""
        return self._is_shared and not self._names.locals

    def _rebound(self, name: str, node: ast.expr) -> None:
        self._add("rebound", Place(self._module, name).tail, node)

    def _add(self, kind: Kind, where: str, node: ast.AST) -> None:
        self.hints.append(Hint(kind, where, getattr(node, "lineno", 0)))


def _constant(node: ast.expr) -> str:
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return str(node.value) if is_text else _UNKNOWN  # type: ignore[attr-defined]
