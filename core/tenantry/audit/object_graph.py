"""Builds the graph of the objects that one app references.

Following references runs no code of a tenant or library. This module calls `gc.get_referents` and
reads the namespaces of modules and classes (`raw_access`), but never accesses an attribute of an
instance, a property or a proxy.

The graph does not contain the modules and classes of libraries, which all tenants share, but
contains the instances of these classes.
"""

import ast
import functools
import gc
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from tenantry.audit.process_snapshot import ProcessSnapshot
from tenantry.audit.raw_access import (
    class_namespace,
    is_a,
    mro,
    namespace_of,
    own_dict,
    text_of,
)
from tenantry.private_code.modules import are_private_builtins

_NO_STATE = frozenset({
    "__builtins__", "__loader__", "__spec__", "__path__", "__all__", "__annotations__",
    "__warningregistry__", "__conditional_annotations__",
    # The standard modules enum, abc and typing, and pydantic, assign these names.
    "_abc_impl", "_member_map_", "_member_names_", "_value2member_map_", "_hashable_values_",
    "_unhashable_values_", "_unhashable_values_map_", "_field_defaults", "model_config",
})  # fmt: skip
"""Names that Python or a library assigns in modules and classes of an endpoint."""

MAX_REFERENTS = 10_000
"""Maximum number of items that are examined in one container."""

MAX_OBJECTS = 2_000_000
"""Maximum number of objects in the graph of one app, which takes about 5 s to build."""

_LRU_CACHE = type(functools.lru_cache(bool))


class ObjectGraph:
    """The objects that one app references.

    While the graph exists, Python does not delete the objects in the graph.

    Args:
        tenant: the app's tenant.
        snapshot: the process in which the app was built.
    """

    def __init__(self, tenant: str, snapshot: ProcessSnapshot) -> None:
        self.mutable: set[int] = set()
        """The `id()` of each mutable object in the graph.

        The numbers are valid while the app exists.
        """
        self.foreign: list[int] = []
        """The `id()` of each object in the graph that belongs to another tenant."""
        self.modules: set[str] = set()
        """Names of the modules in the graph."""
        self.packages: set[str] = set()
        """Packages of the classes of the objects in the graph."""
        self.stores: list[object] = []
        """Caches and limiters in the graph."""
        self._tenant = tenant
        self._snapshot = snapshot
        self._parents: dict[int, tuple[object, int]] = {}
        """Maps the `id()` of an object to the object and the `id()` of its referrer.

        For a root, the `id()` of the referrer is 0.
        """

    def walk(self, root_groups: Sequence[Sequence[object]]) -> None:
        """Add all objects that the roots reference, one group of roots after another.

        The last group of roots contains the app. Almost every object references the app, so a path
        through the app explains little. Therefore, a path from another group of roots never leads
        through the app.
        """
        *groups, last = root_groups
        last = [root for root in last if self._add(root, None)]
        for group in groups:
            self._spread([root for root in group if self._add(root, None)])
        self._spread(last)

    def path_to(self, key: int) -> list[object]:
        """Return the objects on the path from a root to the object with the `id()` `key`.

        If the graph does not contain the object, the path is empty.
        """
        path = []
        while key in self._parents:
            thing, key = self._parents[key]
            path.append(thing)
        return path[::-1]

    def _spread(self, roots: Iterable[object]) -> None:
        waiting = deque(roots)
        while waiting and len(self._parents) < MAX_OBJECTS:
            thing = waiting.popleft()
            waiting.extend(
                child for child in _children(thing, self._snapshot) if self._add(child, thing)
            )

    def _add(self, thing: object, parent: object) -> bool:
        """Add an object, and return whether to follow its references."""
        key, kind, snapshot = id(thing), self._snapshot.kind(thing), self._snapshot
        if type(thing) is dict and are_private_builtins(thing):
            return False  # this dictionary is a copy of Python's built-in names
        if key in self._parents or (kind == "immutable" and key not in snapshot.apps):
            return False
        self._parents[key] = thing, 0 if parent is None else id(parent)
        self.packages.add(snapshot.package_of(thing))
        if snapshot.owner(thing) not in (None, self._tenant):
            self.foreign.append(key)
            return False
        if key in snapshot.modules:
            self.modules.add(snapshot.modules[key])
        elif kind == "function":
            self.mutable.update(id(cell) for cell in _rebound_cells(thing, snapshot))
        elif kind == "mutable" and not _is_own_namespace(thing, parent, snapshot):
            self.mutable.add(key)
            if snapshot.is_store(thing):
                self.stores.append(thing)
        return True


def _children(thing: object, snapshot: ProcessSnapshot) -> Iterator[object]:
    """Yield the referenced objects that belong in the graph."""
    kind = snapshot.kind(thing)
    if kind == "class":
        found = _class_members(thing, snapshot)
    elif kind == "module":
        found = [namespace_of(thing)]
    elif kind == "weakref":
        found = [weakref.ref.__call__(thing)]  # type: ignore[arg-type]
    elif id(thing) in snapshot.modules:
        items = list(cast("dict[str, object]", thing).items())
        found = [value for name, value in items if name not in _NO_STATE]
    elif type(thing) is types.MappingProxyType:  # skip the proxy's own dict
        found = [item for behind in gc.get_referents(thing) for item in gc.get_referents(behind)]
    elif kind == "listeners":
        found = _listeners(thing)
    elif kind == "descriptor":
        found = [item for item in gc.get_referents(thing) if _is_callable(item, snapshot)]
    else:
        found = gc.get_referents(thing)[:MAX_REFERENTS]
    return (child for child in found if _may_enter(child, snapshot))


def _class_members(class_: object, snapshot: ProcessSnapshot) -> list[object]:
    """Return the members and bases of a class.

    The list also contains the module of the class if no method references the module.
    """
    members = [
        value
        for name, value in class_namespace(class_).items()
        if name not in _NO_STATE
        and (not text_of(name).startswith("__") or _is_own(value, snapshot))
    ]
    members += mro(class_)[1:]  # type: ignore[arg-type]
    if not any(_is_own(value, snapshot) for value in members):
        members.append(sys.modules.get(snapshot.module_of(class_)))
    return members


def _is_own(thing: object, snapshot: ProcessSnapshot) -> bool:
    """Whether an object is a function that tenant code defines."""
    return snapshot.kind(thing) == "function" and snapshot.is_tenant_code(snapshot.module_of(thing))


def _listeners(thing: object) -> list[object]:
    return [
        item
        for held in gc.get_referents(thing)
        for item in (gc.get_referents(held) if is_a(held, list, deque, dict, set) else [held])
    ]


def _is_callable(thing: object, snapshot: ProcessSnapshot) -> bool:
    return snapshot.kind(thing) in ("function", "wrapper") or type(thing) is _LRU_CACHE


def _may_enter(thing: object, snapshot: ProcessSnapshot) -> bool:
    kind = snapshot.kind(thing)
    if kind == "module":
        return snapshot.is_tenant_code(text_of(namespace_of(thing).get("__name__")))
    if kind == "class" or id(thing) in snapshot.modules:
        return snapshot.is_tenant_code(snapshot.module_of(thing))
    return True


def _is_own_namespace(thing: object, parent: object, snapshot: ProcessSnapshot) -> bool:
    """Whether an object is the `__dict__` of a function, a partial or an immutable wrapper."""
    kind = snapshot.kind(parent)
    if kind == "function" or is_a(parent, functools.partial):
        return True
    return kind == "wrapper" and type(thing) is dict and own_dict(parent) is thing


def _rebound_cells(function: Any, snapshot: ProcessSnapshot) -> list[object]:
    """Return the closure cells that a function of tenant code assigns with `nonlocal`."""
    if not function.__closure__ or not snapshot.is_tenant_code(snapshot.module_of(function)):
        return []
    code = function.__code__
    rebound = _nonlocal_names(code.co_filename)
    cells = zip(code.co_freevars, function.__closure__, strict=True)
    return [cell for name, cell in cells if (code.co_name, name) in rebound]


@functools.lru_cache(maxsize=1024)
def _nonlocal_names(file: str) -> frozenset[tuple[str, str]]:
    """Return the function and the variable of each `nonlocal` statement in a file."""
    try:
        tree = ast.parse(Path(file).read_bytes(), file)
    except (OSError, SyntaxError, ValueError):  # the source is missing or has changed
        return frozenset()
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return frozenset(
        (function.name, name)
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Nonlocal)
        for name in node.names
    )
