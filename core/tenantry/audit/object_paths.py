"""Says in words how an app reaches an object, and on which line that begins.

view landing.landingpage → LandingPage.get → module models → _cache
"""

import ast
import functools
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tenantry.audit.object_graph import Walk, World, items_of, namespace_of, own_dict
from tenantry.audit.shareable import class_namespace

TEXT_LIMIT = 40
"""Characters of a dictionary's key that are shown."""


@dataclass(frozen=True)
class Place:
    """Where an object has its name."""

    module: str
    name: str
    """Inside the module: `_cache`, `ShopModel.seen`."""

    @property
    def tail(self) -> str:
        """The name without the packages above the endpoint: `shop.models._cache`."""
        return ".".join([*plain_name(self.module).split(".")[-2:], self.name])

    def line(self) -> str:
        """Return `corp/shop/models.py:3`, or only the file where the name is not found in it."""
        file = getattr(sys.modules.get(self.module), "__file__", None)
        if not isinstance(file, str):
            return self.module
        number = _bindings(file).get(self.name) or _bindings(file).get(self.name.split(".")[0])
        return shown_file(file) if number is None else f"{shown_file(file)}:{number}"


def plain_name(module: str) -> str:
    """Return a module's name without the tenant: `a/b@acme-1.resources` is `a.b.resources`."""
    private, dot, inner = module.partition(".")
    return private.partition("@")[0].replace("/", ".") + dot + inner


def shown_file(file: str) -> str:
    """Return a path as short as it can be typed here."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def chain(key: int, walk: Walk) -> list[object]:
    """Return the objects from a root to the one with this id."""
    found = []
    while key:
        thing, key = walk.parents[key]
        found.append(thing)
    return found[::-1]


def path_text(things: list[object], roots: Mapping[int, str], world: World) -> str:
    """Return the way in words, without the hops that only Python sees."""
    pieces = [roots[id(things[0])]]
    for place, thing in enumerate(things):
        text = _own_text(thing, things[place - 1] if place else None, world)
        if text is None and place:
            text = _edge(things, place, world)
        if text and text[0] in ".[" and place:
            pieces[-1] += text
        elif text and pieces[-1] != text and not roots[id(things[0])].endswith(f" {text}"):
            pieces.append(text)
    return " → ".join(pieces)


def _own_text(thing: object, parent: object, world: World) -> str | None:
    """Return what code calls itself; None for what only has the name that its holder gives it."""
    kind = world.kind(type(thing))
    module = world.modules.get(id(thing))
    if module is not None:
        return f"module {plain_name(module).rpartition('.')[2]}"
    if kind == "module":
        return ""
    if kind == "class":
        return str(getattr(thing, "__name__", "class"))
    if isinstance(thing, types.FunctionType):
        wrapped = str(thing.__module__)  # of a wrapper that a library made, its function's
        is_shared_one = "@" not in wrapped and world.is_entered(wrapped)
        if not (is_shared_one or world.is_entered(world.module_of(thing))):
            return ""
        is_method = world.kind(type(parent)) == "class"
        return f".{thing.__name__}" if is_method else thing.__name__
    return None


def _edge(things: list[object], place: int, world: World) -> str:  # noqa: PLR0911 - one per kind
    """Return by which name the object before holds this one; empty for a hop nobody wrote."""
    parent, child = things[place - 1], things[place]
    kind = world.kind(type(parent))
    if type(parent) is types.CellType:
        return _variable(things, place, world)
    if kind == "class" or id(parent) in world.modules:
        namespace = class_namespace(parent) if kind == "class" else parent
        name = _key_of(child, items_of(namespace))
        return f".{name}" if kind == "class" else str(name)
    if type(parent) is dict and place > 1 and own_dict_is(things[place - 2], parent, world):
        return f".{_key_of(child, parent.items())}"
    if isinstance(parent, Mapping | dict):
        key = _key_of(child, dict.items(parent) if isinstance(parent, dict) else parent.items())
        return "" if key is None else f"[{repr(key)[:TEXT_LIMIT]}]"
    if type(parent) is list:
        return f"[{next((i for i, one in enumerate(parent) if one is child), '…')}]"
    if kind in ("function", "open", "weak", "descriptor"):
        return ""
    if own_dict_is(parent, child, world):
        return ""
    return _attribute(parent, child)


def _variable(things: list[object], place: int, world: World) -> str:
    """Return the name of a closed-over variable: function → tuple of cells → cell → value."""
    cell, *above = things[place - 1 :: -1]
    function = above[1] if len(above) > 1 else None
    is_named = world.is_entered(world.module_of(function))  # a library's variables tell little
    if is_named and isinstance(function, types.FunctionType) and function.__closure__:
        names = zip(function.__code__.co_freevars, function.__closure__, strict=True)
        return next((f"variable {name}" for name, one in names if one is cell), "")
    return ""


def own_dict_is(thing: object, namespace: object, world: World) -> bool:
    """Whether a dictionary is an object's own `__dict__`."""
    if type(namespace) is not dict or world.kind(type(thing)) in ("class", "module"):
        return False
    return own_dict(thing) is namespace


def _attribute(parent: object, child: object) -> str:
    name = _key_of(child, (own_dict(parent) or {}).items())
    if name is None:
        name = next((one for one, value in _slots(parent) if value is child), None)
    return f".{name}" if name is not None else type(child).__name__


def _slots(thing: object) -> Iterator[tuple[str, object]]:
    for class_ in type.__dict__["__mro__"].__get__(type(thing)):
        for name, slot in items_of(class_namespace(class_)):
            if isinstance(slot, types.MemberDescriptorType):
                try:
                    yield name, slot.__get__(thing)
                except AttributeError:
                    continue


def _key_of(value: object, items: object) -> object:
    return next((key for key, one in list(items) if one is value), None)  # type: ignore[call-overload]


def place_of(things: list[object], world: World) -> Place | None:
    """Return where the last of `things` has its name: in shared code if it is there, else nearest.

    None where no code of the tenants names it.
    """
    home = _home(things[-1], world)
    if home is not None:
        return home
    for parent, thing in zip(things[-2::-1], things[:0:-1], strict=True):
        module = world.modules.get(id(parent))
        if module is not None:
            return Place(module, str(_key_of(thing, items_of(parent))))
        if world.kind(type(parent)) == "class":
            name = _key_of(thing, items_of(class_namespace(parent)))
            return Place(world.module_of(parent), f"{parent.__qualname__}.{name}")  # type: ignore[attr-defined]
        if isinstance(parent, types.FunctionType) and world.is_entered(world.module_of(parent)):
            name = parent.__qualname__.replace(".<locals>", "")
            return Place(world.module_of(parent), name)
        if (home := _home(parent, world)) is not None:  # what a library made of a function there
            return home
    return None


def _home(thing: object, world: World) -> Place | None:
    for module, namespace in shared_namespaces(world):
        name = _key_of(thing, items_of(namespace))
        if name is not None:
            return Place(module, str(name))
    return None


def shared_namespaces(world: World) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield each module, with its namespace, that is entered and that all apps share."""
    for name, module in list(sys.modules.items()):
        if (
            "@" not in name
            and world.is_entered(name)
            and issubclass(type(module), types.ModuleType)
        ):
            yield name, namespace_of(module)


@functools.lru_cache(maxsize=256)
def _bindings(file: str) -> Mapping[str, int]:
    """Return the line on which each name of a module, and of its classes, is bound first."""
    found: dict[str, int] = {}
    try:
        tree = ast.parse(Path(file).read_bytes(), file)
    except (OSError, SyntaxError, ValueError):
        return found
    _bind(tree.body, "", found)
    return found


def _bind(body: list[ast.stmt], above: str, found: dict[str, int]) -> None:
    for statement in body:
        for name in _names_bound(statement):
            found.setdefault(above + name, statement.lineno)
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _bind(statement.body, f"{above}{statement.name}.", found)
        else:
            for inner in ("body", "orelse", "finalbody"):
                _bind(getattr(statement, inner, []), above, found)


def _names_bound(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        yield from ((one.asname or one.name).partition(".")[0] for one in statement.names)
    elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
