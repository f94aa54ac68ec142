"""The latest build of each tenant, and the import hook that finds its modules by private name.

`sys.modules` holds the modules of each tenant's latest build under their private names, for code
that looks up a module by name: pickles, dataclasses with postponed annotations, SQLAlchemy, Celery,
`importlib.resources`. The import hook imports the other modules of these builds by private name.
"""

import importlib.abc
import sys
import threading
import time
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
"""Seconds after the beginning of a build for which another build of the same tenant waits. A build
takes 10 to 125 ms, and with a database migration up to some seconds. An older build hangs."""


class _BuildTurn:
    """The builds of one owner, of which one runs at a time. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held during the imports of a build
        self._running: tuple[PrivateModules, float] | None = None

    def begin(self, build: "PrivateModules") -> None:
        """Wait for the running build.

        Raises:
            TimeoutError: the running build hangs.
        """
        while not self._lock.acquire(timeout=self._patience_s()):
            if self._patience_s() <= 0:
                raise TimeoutError(self._describe())
        self._running = build, time.monotonic()

    def end(self) -> None:
        """Let the next build begin."""
        self._running = None
        self._lock.release()

    def _patience_s(self) -> float:
        running = self._running
        if running is None:
            return BUILD_WAIT_S
        return max(0.0, running[1] + BUILD_WAIT_S - time.monotonic())

    def _describe(self) -> str:
        running = self._running
        modules = () if running is None else tuple(running[0].importing)
        what = f"the import of {modules[-1]!r}" if modules else "an earlier build of this tenant"
        return (
            f"{what} has not ended within {BUILD_WAIT_S:g} s; fix the code that hangs, then run: "
            "tenantry restart"
        )


_LOCK = threading.Lock()
"""Protects `_latest`, and the private names in `sys.modules`."""

_latest: dict[str, "PrivateModules"] = {}
"""The latest build of each owner."""

_building: dict[str, _BuildTurn] = {}
"""The turn of each owner that has been built."""


def latest(owner: str) -> "PrivateModules | None":
    """Return the modules of the latest build of a tenant."""
    return _latest.get(owner)


@contextmanager
def becoming_latest(modules: "PrivateModules") -> Iterator["ref[PrivateModules] | None"]:
    """Make a build the latest of its owner, and yield a reference to the build before it.

    Another build of the owner waits until the end of the `with` block.

    Raises:
        TimeoutError: another build of the owner has not ended within `BUILD_WAIT_S` of its
            beginning.
    """
    owner = modules.owner
    with _LOCK:
        turn = _building.setdefault(owner, _BuildTurn())
    turn.begin(modules)
    try:
        with _LOCK:
            previous = _latest.get(owner)
            _remove(owner)
            _latest[owner] = modules
        yield None if previous is None else ref(previous)
    finally:
        turn.end()


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
