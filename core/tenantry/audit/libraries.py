"""Records the objects that libraries create while they are imported.

Such an object exists once in the process by design, such as Click's groups of commands or a
handler that a library adds to its logger. Tenants that reference the object share nothing of their
own. An object that a tenant puts into a library later is not recorded.
"""

import builtins
import gc
import logging
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from flask import Flask

from tenantry.audit.process_snapshot import CodeOwners
from tenantry.audit.raw_access import is_a, is_module, module_name, namespace_of, own_dict, text_of

_WITHOUT_REFERENCES = frozenset(
    map(id, (str, bytes, int, float, bool, complex, type(None), types.CodeType))
)


class LibraryObjects:
    """The objects that libraries have created while they were imported.

    The objects stay in memory as long as this object, so that each `id()` stays valid.

    Args:
        code: tells libraries from tenant code.
    """

    def __init__(self, code: CodeOwners) -> None:
        self.code = code
        self._objects: dict[int, object] = {}
        self._modules: set[str] = set()

    def __contains__(self, thing: object) -> bool:
        # Each access to a bound method creates a new object, so use the method's instance.
        return id(thing.__self__ if type(thing) is types.MethodType else thing) in self._objects

    def has_id(self, key: int) -> bool:
        """Whether a library has created the object with the `id()` `key`."""
        return key in self._objects

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the objects of all imported libraries, and of libraries that the block imports.

        Use this context around the first build of all apps. The context replaces `__import__`.
        """
        import_ = builtins.__import__
        running: list[str] = []
        self.record(_log_outputs())

        def import_and_record(
            name: str,
            globals: Mapping[str, Any] | None = None,  # noqa: A002 - as `__import__`
            locals: Mapping[str, Any] | None = None,  # noqa: A002 - as `__import__`
            fromlist: Sequence[str] | None = (),
            level: int = 0,
        ) -> ModuleType:
            is_outermost = not running or self._is_tenant_code(globals)
            is_new = is_outermost and name not in sys.modules
            before = {id(one) for one in _log_outputs()} if is_new else set()
            running.append(name)
            try:
                return import_(name, globals, locals, fromlist or (), level)
            finally:
                running.pop()
                if is_outermost and not self._modules.issuperset(sys.modules):
                    outputs = [] if self.code.is_tenant_code(name) else _log_outputs()
                    self.record([one for one in outputs if is_new and id(one) not in before])

        builtins.__import__ = import_and_record
        try:
            yield
        finally:
            builtins.__import__ = import_

    def record(self, outputs: Iterable[object] = ()) -> None:
        """Record the objects of libraries that have been imported since the last call.

        Args:
            outputs: log handlers and filters that a library has added to its loggers.
        """
        waiting = deque(outputs)
        for name, module in list(sys.modules.items()):
            if name not in self._modules and is_module(module) and not _is_being_imported(module):
                self._modules.add(name)
                if not self.code.is_tenant_code(name):
                    waiting.append(namespace_of(module))
        while waiting:
            thing = waiting.popleft()
            if id(thing) not in self._objects and not self._is_tenants(thing):
                self._objects[id(thing)] = thing
                waiting.extend(
                    child
                    for child in gc.get_referents(thing)
                    if id(type(child)) not in _WITHOUT_REFERENCES
                )

    def _is_tenant_code(self, namespace: Mapping[str, Any] | None) -> bool:
        return self.code.is_tenant_code(text_of((namespace or {}).get("__name__")))

    def _is_tenants(self, thing: object) -> bool:
        if is_module(thing):
            name = text_of(namespace_of(thing).get("__name__"))
        elif type(thing) is types.FunctionType:
            name = text_of(thing.__globals__.get("__name__"))
        elif is_a(thing, type):
            name = module_name(thing)  # type: ignore[arg-type]
        else:
            return is_a(thing, Flask)
        return self.code.is_tenant_code(name)


def _is_being_imported(module: object) -> bool:
    spec = namespace_of(module).get("__spec__")
    # Python has no public function that tells whether a module is complete.
    return bool((own_dict(spec) or {}).get("_initializing"))


def _log_outputs() -> list[object]:
    """Return the handlers and filters of all loggers."""
    loggers = [logging.root, *list(logging.Logger.manager.loggerDict.values())]
    return [
        output
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for output in (*logger.handlers, *logger.filters)
    ]
