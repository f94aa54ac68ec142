"""Which mutable objects an app can reach: one walk per app. Knows Python objects, nothing of Flask.

It looks from outside only: at what `gc.get_referents` tells, and at the namespaces of modules and
classes. It reads no attribute, calls no property and resolves no proxy, so nothing wakes and no
code of a tenant runs. Modules and classes of the standard library, of installed packages and of
the host are not entered: their globals are shared by nature. Instances of their classes are.
"""

import dis
import functools
import gc
import site
import struct
import sys
import sysconfig
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tenantry.audit.shareable import Kind, class_namespace, kind_of, module_of_class, type_names

_NO_STATE = frozenset({
    "__builtins__", "__loader__", "__spec__", "__path__", "__all__", "__annotations__",
    "__warningregistry__", "__conditional_annotations__",
    # what enum, abc, typing and pydantic write about a class
    "_abc_impl", "_member_map_", "_member_names_", "_value2member_map_", "_hashable_values_",
    "_unhashable_values_", "_unhashable_values_map_", "_field_defaults", "model_config",
})  # fmt: skip
"""Names in modules and classes that the language or a library keeps, not the endpoint's author."""

_CODE = ("function", "open")

_CACHED = type(functools.lru_cache(bool))

_LISTS = (list, deque, dict, set)

HOST = frozenset({"tenantry"})
"""Its packages: what tenants share by nature, as they share libraries."""

_BARE_BYTES = object.__basicsize__ + 2 * struct.calcsize("P")
"""Of an instance without slots: it may have a namespace and weak references to it."""

_LOCKS = frozenset({"_thread.lock", "_thread.RLock"})

_WRITES = frozenset({"STORE_DEREF", "DELETE_DEREF"})


@dataclass(frozen=True)
class World:
    """What the walks have to know of the process. A snapshot: make it when all apps are built."""

    apps: Mapping[int, str]
    """id of an app → its tenant."""
    privates: Mapping[str, str]
    """The private package of an endpoint → the tenant whose copy it is."""
    packages: frozenset[str]
    """The enabled endpoints' packages, and what they are in: entered, wherever it is installed."""
    modules: dict[int, str] = field(default_factory=lambda: dict(_namespaces()))
    """id of a module's namespace → the module's name."""
    _kinds: dict[type, Kind] = field(default_factory=dict)
    _entered: dict[str, bool] = field(default_factory=dict)

    def kind(self, type_: type) -> Kind:
        """Return how objects of a type are treated."""
        found = self._kinds.get(type_)
        if found is None:
            found = self._kinds[type_] = kind_of(type_)
        return found

    def is_entered(self, module: str) -> bool:
        """Whether a module's globals and classes are the tenants' matter."""
        found = self._entered.get(module)
        if found is None:
            found = self._entered[module] = self._is_entered(module)
        return found

    def _is_entered(self, module: str) -> bool:
        first = module.partition(".")[0]
        if "@" in first or any(f"{module}.".startswith(f"{one}.") for one in self.packages):
            return True
        file = getattr(sys.modules.get(module), "__file__", None)
        return first not in HOST and isinstance(file, str) and not file.startswith(_library())

    def owner(self, thing: object) -> str | None:
        """Return whose app or private code this is; None where it is nobody's."""
        if id(thing) in self.apps:
            return self.apps[id(thing)]
        private = self.module_of(thing).partition(".")[0]
        if "@" not in private:
            return None
        return self.privates.get(private) or private.partition("@")[2].rpartition("-")[0]

    def module_of(self, thing: object) -> str:
        """Return the name of the module of a class or function, or whose namespace it is."""
        kind = self.kind(type(thing))
        name: object = self.modules.get(id(thing))
        if kind == "class":
            name = class_namespace(thing).get("__module__")
        elif kind == "function":
            name = _globals_of(thing).get("__name__")
        return name if isinstance(name, str) else ""


@dataclass
class Walk:
    """What one app reaches."""

    mutable: set[int] = field(default_factory=set)
    """ids of what can be written; good as long as the app lives."""
    crossings: dict[int, str] = field(default_factory=dict)
    """id of another tenant's app or private code → that tenant."""
    modules: set[str] = field(default_factory=set)
    """Names of the modules that were entered."""
    parents: dict[int, tuple[object, int]] = field(default_factory=dict)
    """id → the object, and the id of the one it was reached from; 0 for a root."""


def walk(tenant: str, groups: Sequence[Sequence[object]], world: World) -> Walk:
    """Return what a tenant's app reaches: its paths are the shortest ones of the first group.

    Args:
        tenant: whose app it is.
        groups: where the walk begins, by turns. What is in the last group is entered only from
            there: nearly everything leads to the app, and paths through it would tell little.
        world: what is known of the process.
    """
    found = Walk()
    last = [one for one in groups[-1] if _visit(one, None, tenant, found, world)]
    for group in groups[:-1]:
        _spread(
            (one for one in group if _visit(one, None, tenant, found, world)), tenant, found, world
        )
    _spread(last, tenant, found, world)
    return found


def _spread(roots: Iterable[object], tenant: str, found: Walk, world: World) -> None:
    waiting = deque(roots)
    while waiting:
        thing = waiting.popleft()
        waiting.extend(
            child for child in children(thing, world) if _visit(child, thing, tenant, found, world)
        )


def _visit(thing: object, parent: object, tenant: str, found: Walk, world: World) -> bool:
    """Note one object, and whether the walk goes on from it."""
    key, kind = id(thing), world.kind(type(thing))
    if key in found.parents or (kind == "atom" and key not in world.apps):
        return False
    found.parents[key] = thing, 0 if parent is None else id(parent)
    module = world.modules.get(key)
    if module or kind in ("class", "function") or key in world.apps:
        owner = world.owner(thing)
        if owner is not None and owner != tenant:
            found.crossings[key] = owner
            return False
    if module:
        found.modules.add(module)
    elif kind == "function":
        found.mutable.update(id(cell) for cell in _written_cells(thing, world))
    elif kind == "mutable" and not _is_part(thing, parent, world) and not _is_bare(thing, world):
        found.mutable.add(key)
    return True


def _is_part(thing: object, parent: object, world: World) -> bool:
    """Whether it is the namespace of a function, a partial or of what cannot be written."""
    kind = world.kind(type(parent))
    if kind == "function" or issubclass(type(parent), functools.partial):
        return True
    return kind == "open" and type(thing) is dict and own_dict(parent) is thing


def _written_cells(function: object, world: World) -> list[object]:
    """Return the cells of closed-over variables that a function of the tenants' code rebinds."""
    cells = types.FunctionType.__dict__["__closure__"].__get__(function)
    if not cells or not world.is_entered(world.module_of(function)):
        return []
    code = types.FunctionType.__dict__["__code__"].__get__(function)
    written = _rebound_names(code)
    return [cell for name, cell in zip(code.co_freevars, cells, strict=True) if name in written]


@functools.lru_cache(maxsize=4096)
def _rebound_names(code: types.CodeType) -> frozenset[str]:
    return frozenset(one.argval for one in dis.get_instructions(code) if one.opname in _WRITES)


def _is_bare(thing: object, world: World) -> bool:
    """Whether it is a library's sentinel: an instance that holds nothing, in no buffer either."""
    module = module_of_class(type(thing))
    if module == "builtins" or world.is_entered(module) or next(type_names(type(thing))) in _LOCKS:
        return False
    if type.__dict__["__basicsize__"].__get__(type(thing)) > _BARE_BYTES:
        return False
    held = gc.get_referents(thing)
    return len(held) == 1 and held[0] is type(thing)


def children(thing: object, world: World) -> Iterator[object]:
    """Yield what `thing` refers to, as far as it is entered."""
    kind = world.kind(type(thing))
    if kind == "class":
        found = _in_class(thing, world)
    elif kind == "module":
        found = [namespace_of(thing)]
    elif kind == "weak":
        found = [weakref.ref.__call__(thing)]  # type: ignore[arg-type]
    elif id(thing) in world.modules:
        found = [value for name, value in items_of(thing) if name not in _NO_STATE]
    elif type(thing) is types.MappingProxyType:  # of a dict that may have no other name
        found = [one for behind in gc.get_referents(thing) for one in gc.get_referents(behind)]
    elif kind == "listeners":
        found = [
            one
            for held in gc.get_referents(thing)
            for one in (gc.get_referents(held) if issubclass(type(held), _LISTS) else [held])
        ]
    elif kind == "descriptor":
        found = [one for one in gc.get_referents(thing) if _is_code(one, world)]
    else:
        found = gc.get_referents(thing)
    return (one for one in found if _may_enter(one, world))


def _in_class(class_: object, world: World) -> list[object]:
    found = [
        value
        for name, value in items_of(class_namespace(class_))
        if name not in _NO_STATE and (not name.startswith("__") or _is_entered_code(value, world))
    ]
    found += type.__dict__["__bases__"].__get__(class_)
    if not any(_is_entered_code(value, world) for value in found):
        found.append(sys.modules.get(world.module_of(class_)))
    return found


def _is_entered_code(thing: object, world: World) -> bool:
    return world.kind(type(thing)) == "function" and world.is_entered(world.module_of(thing))


def _is_code(thing: object, world: World) -> bool:
    return world.kind(type(thing)) in _CODE or type(thing) is _CACHED


def _may_enter(thing: object, world: World) -> bool:
    """Whether a walk goes on to `thing`: not where a library or the host begins."""
    kind = world.kind(type(thing))
    if kind == "module":
        return world.is_entered(str(namespace_of(thing).get("__name__")))
    if kind == "class" or id(thing) in world.modules:
        return world.is_entered(world.module_of(thing))
    return True


def items_of(namespace: Any) -> list[tuple[str, object]]:
    """Return names and values of a module or a class; a copy, for other threads may import."""
    return list(namespace.items())


def namespace_of(module: object) -> dict[str, object]:
    """Return a module's namespace, without waking a module that loads itself late."""
    found: dict[str, object] = object.__getattribute__(module, "__dict__")
    return found


def own_dict(thing: object) -> dict[str, object] | None:
    """Return an instance's `__dict__`, past whatever its class puts before it; None without one."""
    for class_ in type.__dict__["__mro__"].__get__(type(thing)):
        slot = class_namespace(class_).get("__dict__")
        if isinstance(slot, types.GetSetDescriptorType):
            found: dict[str, object] = slot.__get__(thing)
            return found
    return None


def _globals_of(function: object) -> dict[str, object]:
    found: dict[str, object] = types.FunctionType.__dict__["__globals__"].__get__(function)
    return found


def _namespaces() -> Iterator[tuple[int, str]]:
    for name, module in list(sys.modules.items()):
        if issubclass(type(module), types.ModuleType):
            own = namespace_of(module).get("__name__")
            yield id(namespace_of(module)), own if isinstance(own, str) else name


@functools.cache
def _library() -> tuple[str, ...]:
    """Return the folders of the standard library and of installed packages."""
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple(f"{folder}/" for folder in folders)
