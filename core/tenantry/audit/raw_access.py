"""Reads types, namespaces and instances without running their code.

`isinstance`, `getattr`, `vars` and even `hash` can run code of a class, a metaclass or a proxy, and
such code can fail, block or open a connection. The functions of this module call only functions of
the interpreter. They compare types by identity, because a metaclass can replace `__eq__` and
`__hash__`.
"""

import functools
import types
from typing import cast

_LRU_CACHE = type(functools.lru_cache(bool))

_type_dict = type.__dict__["__dict__"].__get__
_type_mro = type.__dict__["__mro__"].__get__
_type_module = type.__dict__["__module__"].__get__
_type_qualname = type.__dict__["__qualname__"].__get__
_module_dict = vars(types.ModuleType)["__dict__"].__get__


def is_a(thing: object, *types_: type) -> bool:
    """Whether an object is an instance of one of the types. `__class__` has no influence."""
    return any(class_ is wanted for class_ in mro(type(thing)) for wanted in types_)


def is_module(thing: object) -> bool:
    """Whether an object is a module."""
    return is_a(thing, types.ModuleType)


def mro(type_: type) -> tuple[type, ...]:
    """Return a type and its base classes."""
    return cast("tuple[type, ...]", _type_mro(type_))


def class_namespace(class_: object) -> dict[str, object]:
    """Return a copy of the namespace of a class, which other threads can change."""
    return dict(_type_dict(class_))


def namespace_of(module: object) -> dict[str, object]:
    """Return the namespace of a module, without triggering a lazy import."""
    return cast("dict[str, object]", _module_dict(module))


def own_dict(thing: object) -> dict[str, object] | None:
    """Return an instance's `__dict__`, even if the class defines a property named `__dict__`."""
    for class_ in mro(type(thing)):
        descriptor = _type_dict(class_).get("__dict__")
        if type(descriptor) is types.GetSetDescriptorType:
            return cast("dict[str, object]", descriptor.__get__(thing))
    return None


def module_name(class_: type) -> str:
    """Return the name of the module that defines a class, or "" if it is unknown."""
    try:
        return text_of(_type_module(class_))
    except AttributeError:  # the class has no `__module__`
        return ""


def qualified_name(thing: object) -> str:
    """Return the name of a class or function in its module; "" for other objects."""
    if is_a(thing, type):
        name = _type_qualname(thing)
    elif type(thing) in (types.FunctionType, types.BuiltinFunctionType):
        name = thing.__qualname__  # type: ignore[attr-defined]
    elif type(thing) is _LRU_CACHE:
        name = (own_dict(thing) or {}).get("__qualname__")
    else:
        name = ""
    return text_of(name).replace(".<locals>", "")


def full_name(class_: type) -> str:
    """Return the name of a class with its module, such as `collections.OrderedDict`."""
    return f"{module_name(class_)}.{text_of(_type_qualname(class_))}"


def text_of(value: object) -> str:
    """Return a value if it is a text, and "" otherwise."""
    return value if type(value) is str else ""
