"""Lists the types that tenants may share, and the functions that tenants must not call.

The functions in this module inspect types and run no code of a tenant.
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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tenantry.audit.raw_access import class_namespace, full_name, module_name, mro

MAY_BE_SHARED: Mapping[str, str] = {
    "logging.Logger": "loggers are global by name; their handlers are checked separately",
    "blinker.base.Signal": "signals are global; their receivers are checked separately",
    "os._Environ": "the environment is global; the source scan finds code that changes it",
    "sqlalchemy.orm.base.InspectionAttr": "part of the mapping of a table. A "
    "mapping holds no rows and no connection, and a mapping for each tenant would cost 171 KB "
    "and 11 ms",
    "sqlalchemy.orm.instrumentation.ClassManager": "part of the mapping of a table",
    "sqlalchemy.orm.path_registry.PathRegistry": "part of the mapping of a table",
    "sqlalchemy.orm.decl_api.registry": "the mappings of one declarative base",
    "sqlalchemy.sql.schema.MetaData": "the descriptions of tables",
    "sqlalchemy.sql.elements.ClauseElement": "a column or a statement, without values or rows",
    "sqlalchemy.sql.type_api.TypeEngine": "the type of a column",
    "sqlalchemy.event.attr._ClsLevelDispatch": "SQLAlchemy's listeners of a whole class",
    "tenantry.database.budget.ConnectionBudget": "limits the connections of all tenants",
    "tenantry.files.memory_budget.MemoryBudget": "limits the memory of all tenants",
    "tenantry.observability.usage_counters.UsageCounters": "counts the usage of all tenants",
    "tenantry.private_code.sources.Sources": "compiles the code of all tenants",
}
"""Maps each type whose instances two apps may share to the reason. Subclasses of these classes may
also be shared.

If two apps share a mutable object of any other type, the audit reports the object.
"""

TypeKind = Literal[
    "immutable", "wrapper", "weakref", "class", "module", "function", "descriptor", "listeners",
    "mutable",
]  # fmt: skip
"""How the walk through an object graph treats the instances of a type:

- immutable: the walk skips the object.
- wrapper: the object cannot change, but it can contain a mutable object, so the walk enters the
object.
- listeners: the object is one of SQLAlchemy's lists of listeners, and the walk enters only the
  listeners.
- mutable: if two apps share the object, the audit reports the object.
"""

_IMMUTABLE = (
    str, bytes, int, float, complex, type(None), type(...), type(NotImplemented), types.CodeType,
    types.GetSetDescriptorType, types.MemberDescriptorType, types.WrapperDescriptorType,
    types.MethodDescriptorType, types.ClassMethodDescriptorType, types.GenericAlias,
    types.UnionType, re.Pattern, range, slice, dt.date, dt.time, dt.timedelta,
    dt.tzinfo, decimal.Decimal, fractions.Fraction, pathlib.PurePath, uuid.UUID,
    struct.Struct, ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network,
    ipaddress.IPv6Network, weakref.ProxyType, weakref.CallableProxyType,
)  # fmt: skip
"""Types whose instances the walk through an object graph skips.

Weak proxies are skipped, because any access to a weak proxy resolves the proxy.
"""

_WRAPPERS = (
    tuple, frozenset, types.MethodType, types.CellType, types.BuiltinFunctionType,
    types.MappingProxyType, functools.partial, operator.attrgetter, operator.itemgetter,
    operator.methodcaller, enum.Enum, contextvars.ContextVar,
)  # fmt: skip
"""Types whose instances cannot change but can contain a mutable object.

For example, the value of an enumeration member or the default of a `ContextVar` can be mutable.
"""

_WRAPPERS_BY_NAME = frozenset({
    "_collections._tuplegetter", "collections._tuplegetter",
    "werkzeug.local.LocalProxy", "werkzeug.local.Local", "werkzeug.local.LocalStack",
    "werkzeug.datastructures.mixins.ImmutableDictMixin",
    "werkzeug.datastructures.mixins.ImmutableListMixin",
    "sqlalchemy.util._immutabledict_cy.immutabledict",
    "sqlalchemy.cyextension.immutabledict.immutabledict",  # SQLAlchemy 2.0
})  # fmt: skip
"""Names of library types that reject changes, or that store changes in a `ContextVar`."""

_LISTENERS = frozenset({
    "sqlalchemy.event.base._Dispatch", "sqlalchemy.event.attr._InstanceLevelDispatch",
})  # fmt: skip
"""Names of SQLAlchemy's listener collections.

All engines and pools without listeners share the same collections.
"""

_DESCRIPTORS = (classmethod, staticmethod, property, functools.cached_property)
"""Types of descriptors. Only the functions of a descriptor are part of an object graph.

Other parts of a descriptor, such as the lock of a `cached_property` in Python 3.11, are skipped.
"""


@dataclass(frozen=True)
class IssueKind:
    """A way in which a line of source code can affect other tenants."""

    id: str
    """The first part of the finding's ID."""
    text: str
    remedy: str


_DATACLASS_PARAMETERS = type(vars(IssueKind)["__dataclass_params__"])

READS_ALL_TENANTS = IssueKind(
    id="reaches",
    text="{module} reads {subject}, which gives access to the code of every tenant",
    remedy="use current_app instead",
)
CHANGES_PROCESS = IssueKind(
    id="process",
    text="{module} changes {subject}, which belongs to the whole process",
    remedy="set the value once for the host, such as in its environment or gunicorn configuration",
)
CHANGES_SHARED = IssueKind(
    id="shared",
    text="{module} changes {subject}, which all apps share",
    remedy="keep the value in resources.py, because each app has its own copy of it, or change the "
    "app's own object, such as app.jinja_env.filters",
)

VIEWS_OF_ALL_TENANTS = frozenset({
    "sys.modules", "sys._current_frames", "gc.get_objects", "gc.get_referrers",
    "logging.root.manager", "logging.Logger.manager",
})  # fmt: skip
"""Names in the standard library that give access to the code of all tenants."""

PROCESS_FUNCTIONS = frozenset({
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
"""Functions that change a property of the whole process."""

LOGGER_METHODS = frozenset({"setLevel", "removeHandler", "removeFilter"})
"""Methods that change a logger.

`addHandler` and `addFilter` are not included, because `shared_objects` finds added handlers and
filters.
"""

CONTAINER_METHODS = frozenset({
    "add", "append", "appendleft", "clear", "difference_update", "discard", "extend", "extendleft",
    "insert", "intersection_update", "pop", "popitem", "popleft", "remove", "reverse",
    "setdefault", "sort", "symmetric_difference_update", "update", "__delitem__", "__setitem__",
})  # fmt: skip
"""Methods that change a list, dict, set, deque or bytearray."""


def type_kind(type_: type) -> TypeKind:  # noqa: PLR0911 - one return for each kind
    """Return how the walk through an object graph treats the instances of a type."""
    classes = mro(type_)
    if _is_subclass(classes, (type,)):
        return "class"
    if _is_subclass(classes, (types.ModuleType,)):
        return "module"
    if type_ is types.FunctionType:
        return "function"
    if _is_subclass(classes, (weakref.ref,)):
        return "weakref"
    names = {full_name(class_) for class_ in classes}
    if type_ is object or _is_subclass(classes, _IMMUTABLE) or names & MAY_BE_SHARED.keys():
        return "immutable"
    if module_name(type_) in ("typing", "typing_extensions", "types", "__future__"):
        return "mutable" if type_ is types.SimpleNamespace else "immutable"
    if names & _LISTENERS:
        return "listeners"
    if _is_subclass(classes, _DESCRIPTORS):
        return "descriptor"
    is_wrapper = _is_subclass(classes, _WRAPPERS) or names & _WRAPPERS_BY_NAME
    return "wrapper" if is_wrapper or _is_frozen_dataclass(type_) else "mutable"


def _is_subclass(classes: tuple[type, ...], wanted: tuple[type, ...]) -> bool:
    return any(class_ is one for class_ in classes for one in wanted)


def _is_frozen_dataclass(type_: type) -> bool:
    parameters: object = class_namespace(type_).get("__dataclass_params__")
    return type(parameters) is _DATACLASS_PARAMETERS and parameters.frozen  # type: ignore[attr-defined]
