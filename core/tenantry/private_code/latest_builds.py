"""The latest build of each tenant, and the import hook that finds its modules by private name.

`sys.modules` holds the modules of each tenant's latest build under their private names, for code
that looks up a module by name: pickles, dataclasses with postponed annotations, SQLAlchemy, Celery,
`importlib.resources`. The import hook imports the other modules of these builds by private name.
"""

import importlib.abc
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING
from weakref import ref

from tenantry.private_code.names import owner_of, plain_name

if TYPE_CHECKING:
    from tenantry.private_code.modules import PrivateModules

BUILD_WAIT_S = 30.0
"""Seconds that a build waits for another build of the same tenant. A build takes 10 to 125 ms, and
with a database migration up to some seconds."""

_LOCK = threading.Lock()
"""Protects `_latest`, and the private names in `sys.modules`."""

_latest: dict[str, "PrivateModules"] = {}
"""The latest build of each owner."""

_building: dict[str, threading.Lock] = {}
"""The lock of each owner that has been built: held during the imports of a build."""


def latest(owner: str) -> "PrivateModules | None":
    """Return the modules of the latest build of a tenant."""
    return _latest.get(owner)


@contextmanager
def becoming_latest(modules: "PrivateModules") -> Iterator["ref[PrivateModules] | None"]:
    """Make a build the latest of its owner, and yield a reference to the build before it.

    Another build of the owner waits until the end of the `with` block.

    Raises:
        TimeoutError: another build of the owner has not ended within `BUILD_WAIT_S`.
    """
    owner = modules.owner
    with _LOCK:
        lock = _building.setdefault(owner, threading.Lock())
    if not lock.acquire(timeout=BUILD_WAIT_S):
        raise TimeoutError("another build of this tenant has not ended; see its log lines")
    try:
        with _LOCK:
            previous = _latest.get(owner)
            _remove(owner)
            _latest[owner] = modules
        yield None if previous is None else ref(previous)
    finally:
        lock.release()


def forget(modules: "PrivateModules", previous: "PrivateModules | None") -> None:
    """Remove the modules of a build, and make the build before it the latest again if loaded."""
    owner = modules.owner
    with _LOCK:
        if _latest.get(owner) is modules:
            _remove(owner)
            del _latest[owner]
            if previous is not None and previous.modules:
                _latest[owner] = previous
                sys.modules.update(previous.by_private_name())
        modules.modules.clear()


def latest_or_replaced(modules: "PrivateModules") -> "PrivateModules":
    """Return the latest build of the owner, or `modules` if that build has other sources."""
    owner = modules.owner
    with _LOCK:
        found = _latest.get(owner)
        if found is None or found.sources is not modules.sources:
            _remove(owner)
            found = _latest[owner] = modules
        return found


def _remove(owner: str) -> None:
    for name in [one for one in list(sys.modules) if owner_of(one) == owner]:
        sys.modules.pop(name, None)


class _LoadedModule(importlib.abc.Loader):
    """Gives Python's import system a private module that is already imported."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module."""
        del spec
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the spec, which the import system has replaced."""
        module.__spec__ = self._spec


class _Finder(importlib.abc.MetaPathFinder):
    """Finds private modules by their private names, for code outside of the build."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a private module, or None for any other name."""
        del path, target
        owner = owner_of(fullname)
        modules = _latest.get(owner) if owner else None
        if modules is None:
            return None
        plain = plain_name(fullname)
        try:
            return ModuleSpec(fullname, _LoadedModule(modules.load(plain)))
        except ModuleNotFoundError as error:
            if error.name != plain:
                raise
            return None


# The import hook is global, but finds only private names.
sys.meta_path.insert(0, _Finder())
