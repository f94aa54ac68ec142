"""What endpoints may do to their neighbours that no object shows before it is done.

Reads the source of the modules that the apps reach: a name that functions of a shared module
rebind is state of all tenants, and who asks for `sys.modules` finds every tenant's private code.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.audit_finding import Finding, stable_id
from core.object_graph import World
from core.object_paths import Place, plain_name, shown_file

_WINDOWS = {
    "sys": frozenset({"modules", "_current_frames"}),
    "gc": frozenset({"get_objects", "get_referrers"}),
}
"""Names of the standard library that show what belongs to all tenants."""


@dataclass(frozen=True)
class Hint:
    """One line of source that matters."""

    name: str
    line: int
    is_window: bool
    """It looks into all tenants; else it rebinds a name that they share."""


def scan_sources(world: World, modules: Mapping[str, frozenset[str]]) -> Iterator[Finding]:
    """Yield a finding for each such name in the modules that the tenants' apps reach."""
    hints: dict[str, list[Hint]] = {}
    users: dict[tuple[str, str], list[str]] = {}
    for tenant, names in modules.items():
        for name in sorted(names):
            file = getattr(sys.modules.get(name), "__file__", None)
            if isinstance(file, str) and world.is_entered(name):
                users.setdefault((name if "@" not in name else plain_name(name), file), [])
                known = users[name if "@" not in name else plain_name(name), file]
                if tenant not in known:
                    known.append(tenant)
                if file not in hints:
                    hints[file] = list(_hints(file, is_shared="@" not in name))
    for (module, file), tenants in users.items():
        for hint in hints[file]:
            yield _finding(hint, module, file, tuple(tenants))


def _finding(hint: Hint, module: str, file: str, tenants: tuple[str, ...]) -> Finding:
    where = Place(module, hint.name).tail
    line = f"{shown_file(file)}:{hint.line}"
    paths = tuple(
        f"{name}: module {module.rpartition('.')[2]} → {hint.name}" for name in tenants[:2]
    )
    if hint.is_window:
        return Finding(
            stable_id("reaches", where), tenants,
            f"{module} looks into {hint.name}, where every tenant's private code is",
            "let it not look for other apps: what an endpoint needs hangs on current_app",
            paths, line,
        )  # fmt: skip
    return Finding(
        stable_id("shared", where), tenants,
        f"{where} is rebound while requests run, and all apps share it",
        "keep it in resources.py, which each app has for itself, or on the object that needs it",
        paths, line,
    )  # fmt: skip


def _hints(file: str, *, is_shared: bool) -> Iterator[Hint]:
    try:
        tree = ast.parse(Path(file).read_bytes(), file)
    except (OSError, SyntaxError, ValueError):
        return
    yield from _windows(tree)
    if is_shared:
        yield from _rebound(tree)


def _windows(tree: ast.Module) -> Iterator[Hint]:
    aliases: dict[str, str] = {}
    own = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and ast.unparse(node.slice) == "__name__"
    }  # a module may look itself up
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {one.asname or one.name: one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            for one in node.names:
                if one.name in _WINDOWS.get(node.module or "", ()):
                    yield Hint(f"{node.module}.{one.name}", node.lineno, is_window=True)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = aliases.get(node.value.id, "")
            if node.attr in _WINDOWS.get(module, ()) and id(node) not in own:
                yield Hint(f"{module}.{node.attr}", node.lineno, is_window=True)


def _rebound(tree: ast.Module) -> Iterator[Hint]:
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = {
                name for one in ast.walk(node) if isinstance(one, ast.Global) for name in one.names
            }
            stored = [
                one for one in ast.walk(node) if isinstance(getattr(one, "ctx", None), ast.Store)
            ]
            for one in stored:
                if isinstance(one, ast.Name) and one.id in names:
                    yield Hint(one.id, one.lineno, is_window=False)
                elif (
                    isinstance(one, ast.Attribute)
                    and isinstance(one.value, ast.Name)
                    and (one.value.id in classes)
                ):
                    yield Hint(f"{one.value.id}.{one.attr}", one.lineno, is_window=False)
        elif isinstance(node, ast.ClassDef):
            yield from _rebound_by_class(node)


def _rebound_by_class(class_: ast.ClassDef) -> Iterator[Hint]:
    for node in ast.walk(class_):
        if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
            continue
        if ast.unparse(node.value) in ("cls", "type(self)", "self.__class__"):
            yield Hint(f"{class_.name}.{node.attr}", node.lineno, is_window=False)
