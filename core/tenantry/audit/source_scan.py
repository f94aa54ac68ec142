"""Finds source code that can change objects that tenants share, without running the code.

The scan parses the modules that the apps reference, and looks up each name in the loaded module.
The scan calls no function of a module and reads no attribute of an instance, so it runs no code of
a tenant.
"""

import ast
import importlib.util
import logging
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenantry.audit.finding import Finding, finding_id
from tenantry.audit.process_snapshot import ProcessSnapshot, file_of
from tenantry.audit.raw_access import (
    class_namespace,
    is_a,
    is_module,
    module_name,
    mro,
    namespace_of,
    own_dict,
    qualified_name,
    text_of,
)
from tenantry.audit.reference_path import Definition, relative_path
from tenantry.audit.sharing_rules import (
    CHANGES_PROCESS,
    CHANGES_SHARED,
    CONTAINER_METHODS,
    LOGGER_METHODS,
    PROCESS_FUNCTIONS,
    READS_ALL_TENANTS,
    VIEWS_OF_ALL_TENANTS,
    IssueKind,
)
from tenantry.private_code.names import plain_name, tenant_of

_CONTAINERS = (list, dict, set, deque, bytearray)
_CLASS_EXPRESSIONS = ("cls", "type(self)", "self.__class__")
_UNKNOWN_TEXT = "…"


@dataclass(frozen=True)
class _Issue:
    """A line of source code that can affect other tenants."""

    kind: IssueKind
    subject: str
    """The object that the line changes or reads, such as `shop.models.last`."""
    line: int


def scan_sources(
    snapshot: ProcessSnapshot, modules: Mapping[str, frozenset[str]]
) -> Iterator[Finding]:
    """Yield a finding for each line of source code that can affect other tenants.

    Args:
        snapshot: the apps, packages and modules of the process.
        modules: maps each tenant to the modules that its app references.
    """
    issues: dict[str, list[_Issue]] = {}
    users: dict[tuple[str, str], list[str]] = {}
    for tenant, names in modules.items():
        for name in sorted(names):
            file = file_of(name)
            if file and snapshot.is_tenant_code(name):
                tenants = users.setdefault((plain_name(name), file), [])
                if tenant not in tenants:
                    tenants.append(tenant)
                if file not in issues:
                    issues[file] = _scan(file, name, snapshot)
    for (module, file), tenants in users.items():
        for issue in issues[file]:
            yield _finding(issue, module, file, tenants)


def _finding(issue: _Issue, module: str, file: str, tenants: Sequence[str]) -> Finding:
    kind, subject = issue.kind, issue.subject
    label = Definition(module, subject).label if kind is READS_ALL_TENANTS else subject
    return Finding(
        id=finding_id(kind.id, label),
        tenants=tuple(tenants),
        text=kind.text.format(module=module, subject=subject),
        remedy=kind.remedy,
        paths=tuple(
            f"{name}: module {module.rpartition('.')[2]} → {subject}" for name in tenants[:2]
        ),
        place=f"{relative_path(file)}:{issue.line}",
    )


def _scan(file: str, module: str, snapshot: ProcessSnapshot) -> list[_Issue]:
    try:
        tree = ast.parse(Path(file).read_bytes(), file)
    except (OSError, SyntaxError, ValueError):  # the source is missing or has changed
        return []
    scanner = _Scanner(module, tree, snapshot)
    scanner.visit(tree)
    return scanner.issues


class _Scanner(ast.NodeVisitor):
    """Collects the issues of one module.

    Args:
        module: the name of the module in `sys.modules`. If each tenant has its own copy of the
            module, this is the name of any copy.
        tree: the syntax tree of the module.
        snapshot: the apps, packages and modules of the process.
    """

    def __init__(self, module: str, tree: ast.Module, snapshot: ProcessSnapshot) -> None:
        self.issues: list[_Issue] = []
        self._module = module
        self._snapshot = snapshot
        self._is_shared = not tenant_of(module)
        self._names = _Names(module, tree)
        self._restores_warnings = False

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Find imports such as `from sys import modules`."""
        for alias in node.names:
            name = self._names.imported(alias.asname or alias.name).full_name
            if name in VIEWS_OF_ALL_TENANTS:
                self._add(READS_ALL_TENANTS, name, node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Find names such as `sys.modules`, and assignments to attributes of shared objects."""
        if isinstance(node.ctx, ast.Load):
            if (name := self._names.resolve(node).full_name) in VIEWS_OF_ALL_TENANTS:
                self._add(READS_ALL_TENANTS, name, node)
        elif ast.unparse(node.value) in _CLASS_EXPRESSIONS:
            if self._is_shared and self._names.classes:
                self._add_own(f"{'.'.join(self._names.classes)}.{node.attr}", node)
        elif logger := self._shared_logger(node.value):
            self._add(CHANGES_PROCESS, logger, node)
        elif label := self._shared_label(node.value):
            self._add(CHANGES_SHARED, f"{label}.{node.attr}", node)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """Find assignments to items of `os.environ`, `globals()` or a library's container."""
        if not isinstance(node.ctx, ast.Load):
            if ast.unparse(node.value) == "globals()" and self._is_shared and self._names.locals:
                self._add_own(_constant(node.slice), node)
            self._check_change(node.value)
        elif ast.unparse(node) == "sys.modules[__name__]":
            return  # a module may look up itself with `sys.modules[__name__]`
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Find calls that change the process, a container or a logger."""
        name = self._names.resolve(node.func).full_name
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        receiver = node.func.value if isinstance(node.func, ast.Attribute) else node.func
        if name in PROCESS_FUNCTIONS:
            if not (self._restores_warnings and name.startswith("warnings.")):
                self._add(CHANGES_PROCESS, name, node)
        elif method in CONTAINER_METHODS:
            self._check_change(receiver)
        elif method in LOGGER_METHODS and (logger := self._shared_logger(receiver)):
            self._add(CHANGES_PROCESS, logger, node)
        match node:
            case ast.Call(func=ast.Name(id="setattr"), args=[target, attribute, _]):
                if label := self._shared_label(target):
                    self._add(CHANGES_SHARED, f"{label}.{_constant(attribute)}", node)
        self.generic_visit(node)

    def visit_With(self, node: ast.With) -> None:
        """Record blocks of `warnings.catch_warnings`, which restore the warning filters."""
        before = self._restores_warnings
        calls = [item.context_expr for item in node.items]
        self._restores_warnings |= any(
            self._names.resolve(call.func).full_name == "warnings.catch_warnings"
            for call in calls
            if isinstance(call, ast.Call)
        )
        self.generic_visit(node)
        self._restores_warnings = before

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        nodes = [*ast.walk(node)]
        declared = {name for item in nodes if isinstance(item, ast.Global) for name in item.names}
        assigned = [
            item
            for item in nodes
            if isinstance(item, ast.Name) and not isinstance(item.ctx, ast.Load)
        ]
        for item in assigned:
            if item.id in declared and self._is_shared:
                self._add_own(item.id, item)
        arguments = {item.arg for item in ast.walk(node.args) if isinstance(item, ast.arg)}
        self._names.locals.append(arguments | {item.id for item in assigned} - declared)
        self.generic_visit(node)
        self._names.locals.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _visit_function  # noqa: N815 - ast's

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Record the name of a class while visiting its methods."""
        self._names.classes.append(node.name)
        self.generic_visit(node)
        self._names.classes.pop()

    def _check_change(self, node: ast.expr) -> None:
        """Add an issue if the changed object belongs to the process, a logger or a library."""
        reference = self._names.resolve(node)
        if reference.value is os.environ or reference.value is os.environb:
            name = "os.environ" if reference.value is os.environ else "os.environb"
            self._add(CHANGES_PROCESS, name, node)
        elif (
            isinstance(node, ast.Attribute)
            and node.attr in ("handlers", "filters")
            and (logger := self._shared_logger(node.value))
        ):
            self._add(CHANGES_PROCESS, logger, node)
        elif is_a(reference.value, *_CONTAINERS):
            self._check_library_change(reference, node)

    def _check_library_change(self, container: "_Reference", node: ast.expr) -> None:
        module, name = container.module, container.full_name
        if module.partition(".")[0] in sys.stdlib_module_names:
            if name not in VIEWS_OF_ALL_TENANTS:
                self._add(CHANGES_PROCESS, name, node)
        elif not (self._snapshot.is_tenant_code(module) or self._is_import_time()):
            self._add(CHANGES_SHARED, Definition(module, container.name).label, node)

    def _shared_logger(self, node: ast.expr) -> str:
        """Return the label of a logger that belongs to no tenant; "" for other expressions."""
        value: Any = self._names.resolve(node).value
        is_logger = is_a(value, logging.Logger)
        name = text_of((own_dict(value) or {}).get("name")) if is_logger else ""
        if isinstance(node, ast.Call):
            if self._names.resolve(node.func).full_name != "logging.getLogger":
                return ""
            name = (_constant(node.args[0]) if node.args else "") or "root"
            if node.args and ast.unparse(node.args[0]) == "__name__":
                name = self._module
        is_own = tenant_of(name) or (name == self._module and self._is_import_time())
        if name in ("", _UNKNOWN_TEXT) or name.startswith("tenant.") or is_own:
            return ""
        return f"logger {name}"

    def _shared_label(self, node: ast.expr) -> str:
        """Return the label of a module, class or function that all apps share, or ""."""
        value = self._names.resolve(node).value
        if value is None or self._is_import_time():
            return ""
        if is_module(value):
            module = _module_name(value)
            return "" if tenant_of(module) else ".".join(module.split(".")[-2:])
        if self._snapshot.kind(value) not in ("class", "function"):
            return ""
        module = self._snapshot.module_of(value)
        is_shared = module and not tenant_of(module)
        return Definition(module, qualified_name(value)).label if is_shared else ""

    def _is_import_time(self) -> bool:
        """Whether the current line runs only while the module is imported."""
        return self._is_shared and not self._names.locals

    def _add_own(self, name: str, node: ast.expr) -> None:
        self._add(CHANGES_SHARED, Definition(self._module, name).label, node)

    def _add(self, kind: IssueKind, subject: str, node: ast.AST) -> None:
        self.issues.append(_Issue(kind, subject, getattr(node, "lineno", 0)))


@dataclass(frozen=True)
class _Reference:
    """The object that an expression refers to. A field whose value is unknown is empty."""

    value: object = None
    module: str = ""
    """Name of the module that contains the object.

    If the object is a module, its name.
    """
    name: str = ""
    """Name of the object in the module, such as `Resource.method_decorators`."""

    @property
    def full_name(self) -> str:
        return f"{self.module}.{self.name}".rstrip(".")


class _Names:
    """Resolves the names in one module to objects.

    While visiting the module, the scanner updates `classes` and `locals`.
    """

    def __init__(self, module: str, tree: ast.Module) -> None:
        self.classes: list[str] = []
        """Names of the classes around the current node."""
        self.locals: list[set[str]] = []
        """The local names of each function around the current node."""
        self._module = module
        self._globals = namespace_of(sys.modules[module])
        self._imports: dict[str, _Reference] = {}
        self._assigned_attributes: set[str] = set()
        for node in ast.walk(tree):  # `ast.walk` also visits functions
            if isinstance(node, ast.Import):
                self._add_import(node)
            elif isinstance(node, ast.ImportFrom):
                self._add_from_import(node)
            elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
                self._assigned_attributes.add(ast.unparse(node))

    def imported(self, name: str) -> _Reference:
        """Return the object that an import statement binds to a name."""
        return self._imports.get(name, _Reference())

    def resolve(self, node: ast.expr) -> _Reference:
        """Return the object that a simple or dotted name refers to in the loaded module."""
        if isinstance(node, ast.Name):
            if any(node.id in names for names in self.locals):
                return _Reference()
            reference = self.imported(node.id)
            value = self._globals.get(node.id, reference.value)
            is_import = value is reference.value
            return reference if is_import else _Reference(value, self._module, node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        return _Reference()

    def _attribute(self, node: ast.Attribute) -> _Reference:
        parent = self.resolve(node.value)
        holder: Any = self._class_of_self(node) or parent.value
        if is_module(holder):
            value = namespace_of(holder).get(node.attr)
            return _Reference(value, _module_name(holder), node.attr)
        if is_a(holder, type):
            for class_ in mro(holder):
                namespace = class_namespace(class_)
                if node.attr in namespace:
                    name = f"{qualified_name(class_)}.{node.attr}"
                    return _Reference(namespace[node.attr], module_name(class_), name)
        return _Reference(None, parent.full_name, node.attr) if parent.module else _Reference()

    def _class_of_self(self, node: ast.Attribute) -> object:
        """Return the enclosing class if a method accesses an attribute of that class, or None."""
        text = ast.unparse(node.value)
        is_instance = text == "self" and ast.unparse(node) in self._assigned_attributes
        if len(self.classes) != 1 or is_instance or text not in ("self", *_CLASS_EXPRESSIONS):
            return None
        return self._globals.get(self.classes[0])

    def _add_import(self, node: ast.Import) -> None:
        for alias in node.names:
            name = alias.name if alias.asname else alias.name.partition(".")[0]
            self._imports[alias.asname or name] = _Reference(sys.modules.get(name), name)

    def _add_from_import(self, node: ast.ImportFrom) -> None:
        package = str(self._globals.get("__package__") or "")
        try:
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        except ImportError:  # the import would also fail when the module runs
            return
        for alias in node.names:
            value: object = sys.modules.get(f"{module}.{alias.name}")
            if value is None and module in sys.modules:
                value = namespace_of(sys.modules[module]).get(alias.name)
            self._imports[alias.asname or alias.name] = _Reference(value, module, alias.name)


def _module_name(module: object) -> str:
    return text_of(namespace_of(module).get("__name__"))


def _constant(node: ast.expr) -> str:
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return str(node.value) if is_text else _UNKNOWN_TEXT  # type: ignore[attr-defined]
