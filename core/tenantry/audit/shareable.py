"""What two apps may share: what cannot be written, and a short list of exceptions.

Looks at types only, and runs nothing of theirs.
"""

import contextvars
import datetime as dt
import decimal
import enum
import fractions
import functools
import ipaddress
import operator
import pathlib
import re
import struct
import types
import uuid
import weakref
from collections.abc import Iterator, Mapping
from typing import Literal

MAY_BE_SHARED: Mapping[str, str] = {
    "logging.Logger": "the process's, by name; handlers are looked at on their own",
    "blinker.base.Signal": "the process's; who hears an app is looked at on its own",
    "blinker.base.Namespace": "the process's signals, by name",
    "os._Environ": "the process's; who writes it is looked for in the source",
    "sqlalchemy.orm.base.InspectionAttr": "a table's mapping: made once by an import, no rows and "
    "no connection in it; mapping anew for each tenant costs 171 KB and 11 ms",
    "sqlalchemy.orm.instrumentation.ClassManager": "part of a table's mapping",
    "sqlalchemy.orm.path_registry.PathRegistry": "a place in tables' mappings",
    "sqlalchemy.orm.decl_api.registry": "the mappings of one declarative class",
    "sqlalchemy.sql.schema.MetaData": "the descriptions of tables",
    "sqlalchemy.sql.elements.ClauseElement": "a column or a statement, not its values or rows",
    "sqlalchemy.sql.type_api.TypeEngine": "the type of a column",
    "sqlalchemy.sql.functions._FunctionGenerator": "`func`: makes SQL's calls, keeps none",
    "sqlalchemy.event.attr._ClsLevelDispatch": "listeners of a whole class, kept by SQLAlchemy; "
    "those that hear an engine are looked at from there",
    "tenantry.database.budget.ConnectionBudget": "it bounds the connections of all tenants",
    "tenantry.endpoints.images.room.DecodingRoom": "it bounds the memory of all tenants together",
    "tenantry.observability.usage_counters.UsageCounters": "it counts what each tenant uses",
}
"""Types by name, subclasses included, whose instances two apps may share, each with the reason.
Whatever else can be written and is reached from two apps is a finding."""

Kind = Literal[
    "atom", "open", "weak", "class", "module", "function", "descriptor", "listeners", "mutable"
]
"""An atom is not entered; an open one is entered, but is nobody's state; of listeners only those
who listen matter, not the lists of them; a mutable one is state."""

_ATOMS = (
    str, bytes, int, float, complex, type(None), type(...), type(NotImplemented), types.CodeType,
    types.GetSetDescriptorType, types.MemberDescriptorType, types.WrapperDescriptorType,
    types.MethodDescriptorType, types.ClassMethodDescriptorType, types.GenericAlias,
    types.UnionType, re.Pattern, range, slice, dt.date, dt.time, dt.timedelta,
    dt.tzinfo, decimal.Decimal, fractions.Fraction, pathlib.PurePath, uuid.UUID,
    struct.Struct, ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network,
    ipaddress.IPv6Network, weakref.ProxyType, weakref.CallableProxyType,
)  # fmt: skip
"""Cannot be written; a weak proxy can only be entered by resolving it."""

_OPEN = (
    tuple, frozenset, types.MethodType, types.CellType, types.BuiltinFunctionType,
    types.MappingProxyType, functools.partial, operator.attrgetter, operator.itemgetter,
    operator.methodcaller, enum.Enum, contextvars.ContextVar,
)  # fmt: skip
"""Cannot be written, but may hold what can: a member of an enumeration its value, a ContextVar, of
which each request has its own value, its default."""

_OPEN_BY_NAME = frozenset({
    "_collections._tuplegetter", "collections._tuplegetter",
    "werkzeug.local.LocalProxy", "werkzeug.local.Local", "werkzeug.local.LocalStack",
    "werkzeug.datastructures.mixins.ImmutableDictMixin",
    "werkzeug.datastructures.mixins.ImmutableListMixin",
    "sqlalchemy.util._immutabledict_cy.immutabledict",
    "sqlalchemy.cyextension.immutabledict.immutabledict",  # 2.0
})  # fmt: skip
"""They refuse to be written, or keep what is written in a ContextVar."""

_LISTENERS = frozenset({
    "sqlalchemy.event.base._Dispatch", "sqlalchemy.event.attr._InstanceLevelDispatch",
})  # fmt: skip
"""SQLAlchemy's own lists of who hears an engine or a pool, shared by all where nobody does."""

_DESCRIPTORS = (classmethod, staticmethod, property, functools.cached_property)
"""Only functions are looked for in them: a cached_property of Python 3.11 has a lock."""


def type_names(type_: type) -> Iterator[str]:
    """Yield the full names of a type and of what it inherits from."""
    for one in type.__dict__["__mro__"].__get__(type_):
        yield f"{module_of_class(one)}.{one.__qualname__}"


def module_of_class(class_: object) -> str:
    """Return the name of the module in which a class was made."""
    return str(type.__dict__["__module__"].__get__(class_))


def kind_of(type_: type) -> Kind:  # noqa: PLR0911 - one per kind
    """Return how objects of a type are treated."""
    if issubclass(type_, type):
        return "class"
    if issubclass(type_, types.ModuleType):
        return "module"
    if issubclass(type_, types.FunctionType):
        return "function"
    if issubclass(type_, weakref.ref):
        return "weak"
    names = {*type_names(type_)}
    if issubclass(type_, _ATOMS) or type_ is object or names & MAY_BE_SHARED.keys():
        return "atom"
    if module_of_class(type_) in ("typing", "typing_extensions", "types"):
        return "atom" if type_ is not types.SimpleNamespace else "mutable"
    if names & _LISTENERS:
        return "listeners"
    if issubclass(type_, _DESCRIPTORS):
        return "descriptor"
    parameters = class_namespace(type_).get("__dataclass_params__")
    is_open = issubclass(type_, _OPEN) or names & _OPEN_BY_NAME
    return "open" if is_open or getattr(parameters, "frozen", False) else "mutable"


def class_namespace(class_: object) -> Mapping[str, object]:
    """Return what a class itself defines."""
    found: Mapping[str, object] = type.__dict__["__dict__"].__get__(class_)
    return found
