"""Describes the path from an app to an object, and finds the source line that defines the object.

An example of a description is `view shop.page → Page.get → module models → _cache`.
"""

import ast
import functools
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tenantry.audit.process_snapshot import ProcessSnapshot, file_of
from tenantry.audit.raw_access import (
    class_namespace,
    full_name,
    is_a,
    is_module,
    namespace_of,
    own_dict,
    qualified_name,
    text_of,
)
from tenantry.private_code.names import plain_name, tenant_of

KEY_CHARACTERS = 40
"""Maximum length of a dictionary key in the description of a path."""


@dataclass(frozen=True)
class Definition:
    """The module and the name of an object in source code."""

    module: str
    name: str
    """The qualified name of the object, such as `_cache` or `ShopModel.seen`."""

    @property
    def label(self) -> str:
        """A short name of the object, such as `shop.models._cache`."""
        return ".".join([*plain_name(self.module).split(".")[-2:], self.name])

    @property
    def place(self) -> str:
        """File and line of the definition, such as `corp/shop/models.py:3`."""
        file = file_of(self.module)
        if not file:
            return self.module
        lines = _binding_lines(file)
        line = lines.get(self.name) or lines.get(self.name.partition(".")[0])
        return relative_path(file) if line is None else f"{relative_path(file)}:{line}"


def relative_path(file: str) -> str:
    """Return a path relative to the working directory, if the path is below that directory."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def describe_path(path: Sequence[object], root: str, snapshot: ProcessSnapshot) -> str:
    """Return a description of a path, made of names that occur in source code.

    Args:
        path: the objects from a root to the described object.
        root: the label of the root, such as `acme: view shop.page`.
        snapshot: the apps, packages and modules of the process.
    """
    pieces = [root]
    for index, thing in enumerate(path):
        text = _own_name(thing, path[index - 1] if index else None, snapshot)
        if text is None and index:
            text = _name_in_parent(path[: index + 1], snapshot)
        if text and text[0] in ".[" and index:
            pieces[-1] += text
        elif text and text != pieces[-1] and not root.endswith(f" {text}"):
            pieces.append(text)
    return " → ".join(pieces)


def find_definition(path: Sequence[object], snapshot: ProcessSnapshot) -> Definition | None:
    """Return the definition of the last object on a path, in a shared module if possible.

    If the last object has no name in source code, return the nearest definition on the path. If
    tenant code defines no object on the path, return None.
    """
    if definition := _shared_definition(path[-1], snapshot):
        return definition
    for parent, thing in zip(path[-2::-1], path[:0:-1], strict=True):
        module = snapshot.modules.get(id(parent))
        if module is not None:
            return Definition(module, str(_key_of(thing, parent)))
        if snapshot.kind(parent) == "class":
            name = f"{qualified_name(parent)}.{_key_of(thing, class_namespace(parent))}"
            return Definition(snapshot.module_of(parent), name)
        module = snapshot.module_of(parent)
        if snapshot.kind(parent) == "function" and snapshot.is_tenant_code(module):
            return Definition(module, qualified_name(parent))
        # A library may have created the parent, such as the cache of a decorated function.
        if definition := _shared_definition(parent, snapshot):
            return definition
    return None


def _shared_definition(thing: object, snapshot: ProcessSnapshot) -> Definition | None:
    """Return the name of an object in tenant code that all apps share."""
    for module_name, module in list(sys.modules.items()):
        if tenant_of(module_name) or not snapshot.is_tenant_code(module_name):
            continue
        if is_module(module):
            name = _key_of(thing, namespace_of(module))
            if name is not None:
                return Definition(module_name, str(name))
    return None


def _own_name(thing: object, parent: object, snapshot: ProcessSnapshot) -> str | None:
    """Return the name of a module, class or function on a path.

    The result is "" if the description omits the object, and None if only the parent names it.
    """
    kind = snapshot.kind(thing)
    module = snapshot.modules.get(id(thing))
    if module is not None:
        return f"module {plain_name(module).rpartition('.')[2]}"
    if kind == "module":
        return ""
    if kind == "class":
        return qualified_name(thing).rpartition(".")[2]
    if type(thing) is types.FunctionType:
        # `functools.wraps` gives a library's wrapper the `__module__` of the wrapped function.
        wrapped = text_of(thing.__module__)
        is_shared = not tenant_of(wrapped) and snapshot.is_tenant_code(wrapped)
        if not (is_shared or snapshot.is_tenant_code(snapshot.module_of(thing))):
            return ""
        is_method = snapshot.kind(parent) == "class"
        return f".{thing.__name__}" if is_method else thing.__name__
    return None


def _name_in_parent(path: Sequence[object], snapshot: ProcessSnapshot) -> str:
    """Return the name by which the parent references the last object on a path.

    If the description of the path omits the object, return "".
    """
    parent, thing = path[-2:]
    kind = snapshot.kind(parent)
    if id(parent) in snapshot.modules:
        name = str(_key_of(thing, parent))
    elif kind == "class":
        name = f".{_key_of(thing, class_namespace(parent))}"
    elif is_a(parent, dict):
        name = _item_name(path, snapshot)
    elif type(parent) is list:
        name = f"[{next((i for i, item in enumerate(parent) if item is thing), '…')}]"
    elif kind in ("function", "wrapper", "weakref", "descriptor"):
        name = ""
    else:
        name = "" if _own_dict_is(parent, thing, snapshot) else _attribute_name(parent, thing)
    return name


def _item_name(path: Sequence[object], snapshot: ProcessSnapshot) -> str:
    """Return the name of a dictionary item: `['x']`, or `.x` in the `__dict__` of an instance."""
    *above, parent, thing = path
    key = _key_of(thing, parent)
    if above and _own_dict_is(above[-1], parent, snapshot):
        return f".{text_of(key)}"
    if key is None:
        return ""
    is_plain = type(key) in (str, int, bytes, bool)  # other types can have any `__repr__`
    return f"[{(repr(key) if is_plain else full_name(type(key)))[:KEY_CHARACTERS]}]"


def _own_dict_is(thing: object, namespace: object, snapshot: ProcessSnapshot) -> bool:
    if type(namespace) is not dict or snapshot.kind(thing) in ("class", "module"):
        return False
    return own_dict(thing) is namespace


def _attribute_name(parent: object, thing: object) -> str:
    name = text_of(_key_of(thing, own_dict(parent) or {}))
    return f".{name}" if name else full_name(type(thing)).rpartition(".")[2]


def _key_of(value: object, mapping: object) -> object:
    """Return the key of a value in a dict. The dict is copied, because threads can change it."""
    items = list(cast("dict[object, object]", mapping).items())
    return next((key for key, item in items if item is value), None)


@functools.lru_cache(maxsize=256)
def _binding_lines(file: str) -> Mapping[str, int]:
    """Return the line on which each name of a source file is first bound."""
    lines: dict[str, int] = {}
    try:
        tree = ast.parse(Path(file).read_bytes(), file)
    except (OSError, SyntaxError, ValueError):
        return lines
    _collect_bindings(tree.body, "", lines)
    return lines


def _collect_bindings(body: list[ast.stmt], scope: str, lines: dict[str, int]) -> None:
    for statement in body:
        for name in _names_bound(statement):
            lines.setdefault(scope + name, statement.lineno)
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _collect_bindings(statement.body, f"{scope}{statement.name}.", lines)
        else:
            for block in ("body", "orelse", "finalbody"):
                _collect_bindings(getattr(statement, block, []), scope, lines)


def _names_bound(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name).partition(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
