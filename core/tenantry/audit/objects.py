"""What two apps can both write: the object graphs of all apps, compared.

One walk per app tells the ids of what it reaches; those that two have in common are looked for
again, with the way to them. Only the apps concerned are walked twice.
"""

import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from blinker import Signal
from blinker.base import ANY_ID
from flask import Flask

from tenantry.audit.finding import Audited, Finding, stable_id
from tenantry.audit.object_graph import HOST, Walk, World, walk
from tenantry.audit.object_paths import Place, chain, path_text, place_of, shown_file
from tenantry.endpoints.loading import LoadedEndpoint, find_endpoint

EVERYBODY = "every tenant"
"""Whose `sys.modules` is: the private code of all."""

_SHOWN = 2
"""Paths of one finding: from both sides."""

_ADDING = re.compile(r"\.add(?:Handler|Filter)\(|\b(?:basic|dict|file)Config\(")

Root = tuple[str, object]


@dataclass(frozen=True)
class Graphs:
    """The walks of all apps, for those who ask further."""

    world: World
    modules: Mapping[str, frozenset[str]]
    """Tenant → the modules that its app reaches."""
    findings: tuple[Finding, ...]


def compare_graphs(audited: Sequence[Audited], before: frozenset[int] = frozenset()) -> Graphs:
    """Walk every app once and return what crosses.

    Args:
        audited: the tenants.
        before: ids from `hearing()` before they were built: what listened then is not theirs.
    """
    world = _world(audited)
    hooks = [(label, one) for label, one in hearing() if id(one) not in before]
    signals = _signals()
    sides = {one.name: _Side(one, hooks, signals, world) for one in audited}
    reached: dict[int, list[str]] = {}
    crossed: list[tuple[str, int]] = []
    modules: dict[str, frozenset[str]] = {}
    for name, side in sides.items():
        found = side.walk()
        modules[name] = frozenset(found.modules)
        crossed += [(name, key) for key in found.crossings]
        for key in found.mutable:
            reached.setdefault(key, []).append(name)
    shared = {key: names for key, names in reached.items() if len(names) > 1}
    findings = _Findings(sides, shared, world)
    return Graphs(world, modules, (*findings.shared(), *findings.crossings(crossed)))


def hearing() -> Iterator[Root]:
    """Yield, with a label, what hears all apps of this process: signal receivers, log handlers."""
    for signal in _signals():
        for key in _heard_by(signal, ANY_ID):
            yield _heard(signal), signal.receivers[key]
    loggers = [logging.root, *list(logging.Logger.manager.loggerDict.values())]
    for logger in loggers:
        if isinstance(logger, logging.Logger) and not logger.name.startswith("tenant."):
            yield from ((f"log handler of {logger.name}", one) for one in logger.handlers)
            yield from ((f"log filter of {logger.name}", one) for one in logger.filters)


def _heard_by(signal: Signal, sender: int) -> list[Any]:
    """Return the keys of who hears one sender; blinker has no public list of them."""
    return list(signal._by_sender.get(sender, ()))  # noqa: SLF001


def _heard(signal: Signal) -> str:
    return f"signal {getattr(signal, 'name', 'without a name')}"


def _signals() -> list[Signal]:
    """Return the signals that a module of this process knows, Flask's own among them."""
    found: dict[int, Signal] = {}
    for module in list(sys.modules.values()):
        for value in list(vars(module).values()) if type(module) is ModuleType else ():
            if issubclass(type(value), Signal):
                found[id(value)] = value
    return list(found.values())


def _world(audited: Sequence[Audited]) -> World:
    return World(
        apps={id(one.app): one.name for one in audited} | {id(sys.modules): EVERYBODY},
        privates={
            endpoint.package: one.name for one in audited for endpoint in endpoints_of(one.app)
        },
        packages=frozenset(
            part for one in audited for name in one.tenant.blueprints for part in _entered(name)
        ),
    )


def _entered(endpoint: str) -> tuple[str, ...]:
    """Return an endpoint's package, and the one on top of it, where its helpers are installed."""
    package = find_endpoint(endpoint)
    top = package.partition(".")[0]
    return (package,) if top in HOST else (package, top)


def endpoints_of(app: Flask) -> list[LoadedEndpoint]:
    """Return the endpoints' copies that an app was built with."""
    return list(app.extensions.get("tenantry", ()))


class _Side:
    """One app, and where walks of it begin."""

    def __init__(
        self, audited: Audited, hooks: Iterable[Root], signals: Iterable[Signal], world: World
    ) -> None:
        self.name = audited.name
        self._world = world
        self._known: Walk | None = None
        self._groups: list[list[Root]] = [
            *_roots(audited.app, signals),
            [*hooks],
            [("app", audited.app)],
        ]
        self.labels: dict[int, str] = {}
        for label, one in [pair for group in self._groups for pair in group]:
            self.labels.setdefault(id(one), f"{self.name}: {label}")

    def walk(self) -> Walk:
        """Walk it, and remember nothing: 200 of them need not be kept."""
        groups = [[one for _, one in group] for group in self._groups]
        return walk(self.name, groups, self._world)

    def chain(self, key: int) -> list[object]:
        """Return the way to an object; empty if it is not reached any more."""
        if self._known is None:
            self._known = self.walk()
        return chain(key, self._known) if key in self._known.parents else []

    @property
    def modules(self) -> set[str]:
        """The modules that it reaches."""
        return set() if self._known is None else self._known.modules


def _roots(app: Flask, signals: Iterable[Signal]) -> list[list[Root]]:
    """Return where an app's graph begins: first what an endpoint's author knows by name."""
    return [
        [(f"view {name}", view) for name, view in app.view_functions.items()],
        [*_own_modules(app)],
        [*_receivers(app, signals)],
        [(f"extension {name}", one) for name, one in app.extensions.items() if name != "tenantry"],
    ]


def _own_modules(app: Flask) -> Iterator[Root]:
    packages = {endpoint.package for endpoint in endpoints_of(app)}
    for name, module in list(sys.modules.items()):
        package, _, inner = name.partition(".")
        if package in packages and inner:
            yield f"module {inner}", module


def _receivers(app: Flask, signals: Iterable[Signal]) -> Iterator[Root]:
    """Yield who hears this app alone."""
    for signal in signals:
        for key in _heard_by(signal, id(app)):
            if key in signal.receivers:
                yield _heard(signal), signal.receivers[key]
    logger = logging.Logger.manager.loggerDict.get(app.name)
    if isinstance(logger, logging.Logger):
        yield from (("log handler of the app", one) for one in logger.handlers)


class _Findings:
    """Puts ids into words."""

    def __init__(
        self, sides: Mapping[str, _Side], shared: Mapping[int, list[str]], world: World
    ) -> None:
        self._sides = sides
        self._shared = shared
        self._world = world

    def shared(self) -> Iterator[Finding]:
        """Yield what two apps can both write, but not once more what hangs on it."""
        for key, names in self._shared.items():
            ways = self._ways(key, names[:_SHOWN])
            if len(ways) == _SHOWN and not all(self._is_below(way) for _, way in ways):
                yield self._shared_finding(ways, tuple(names))

    def _shared_finding(
        self, ways: list[tuple[str, list[object]]], names: tuple[str, ...]
    ) -> Finding:
        thing = ways[0][1][-1]
        place = place_of(ways[0][1], self._world)
        paths = self._paths(ways)
        where = place.tail if place else paths[0].partition(": ")[2]
        return Finding(
            stable_id("shared", where),
            names,
            f"{len(names)} apps can write one {type(thing).__qualname__}, {where}",
            "keep it in resources.py, which each app has for itself; or make it a tuple, a "
            "frozenset or a types.MappingProxyType, which nobody writes",
            paths,
            place.line() if place else self._adding(names, where),
        )

    def _adding(self, names: tuple[str, ...], where: str) -> str:
        """Return the line of the tenants' code that adds a log handler or filter, if it is one."""
        if not where.startswith("log "):
            return ""
        for module in sorted(self._sides[names[0]].modules):
            file = getattr(sys.modules.get(module), "__file__", None)
            if isinstance(file, str) and self._world.is_entered(module):
                lines = Path(file).read_text("utf-8", "replace").splitlines()
                for number, line in enumerate(lines, 1):
                    if _ADDING.search(line):
                        return f"{shown_file(file)}:{number}"
        return ""

    def crossings(self, crossed: Sequence[tuple[str, int]]) -> Iterator[Finding]:
        """Yield a finding for each place from which apps reach private code of others."""
        groups: dict[str, list[tuple[str, list[object]]]] = {}
        for name, key in crossed:
            way = self._sides[name].chain(key)
            if way and not self._is_below(way):
                groups.setdefault(_crossing(way, self._world), []).append((name, way))
        for where, ways in groups.items():
            owners = {str(self._world.owner(way[-1])) for _, way in ways} - {EVERYBODY}
            names = tuple(sorted({name for name, _ in ways} | (owners & self._sides.keys())))
            whose = self._world.owner(ways[0][1][-1])
            yield Finding(
                stable_id("reaches", where),
                names,
                f"{ways[0][0]} reaches the private code of {whose}, by {where}",
                "let it not look for other apps: what an endpoint needs hangs on current_app; "
                "connect signals with sender=app, and add log handlers to app.logger",
                self._paths(ways[:_SHOWN]),
                _line_of(ways[0][1], self._world),
            )

    def _ways(self, key: int, names: Iterable[str]) -> list[tuple[str, list[object]]]:
        ways = [(name, self._sides[name].chain(key)) for name in names]
        return [(name, way) for name, way in ways if way]

    def _paths(self, ways: Iterable[tuple[str, list[object]]]) -> tuple[str, ...]:
        return tuple(path_text(way, self._sides[name].labels, self._world) for name, way in ways)

    def _is_below(self, way: list[object]) -> bool:
        """Whether the way leads through something that is shared itself, and no code after it."""
        for thing in way[-2::-1]:
            if id(thing) in self._shared:
                return True
            is_code = id(thing) in self._world.modules
            if is_code or self._world.kind(type(thing)) in ("class", "function", "mutable"):
                return False
        return False


def _crossing(way: list[object], world: World) -> str:
    place = _named(way, world)
    return place.tail if place else str(type(way[0]).__qualname__)


def _line_of(way: list[object], world: World) -> str:
    place = _named(way, world)
    return place.line() if place else ""


def _named(way: list[object], world: World) -> Place | None:
    """Return the nearest name on the way that code gave; else of what is at its end."""
    place = place_of(way, world) if len(way) > 1 else None
    if place is None and world.kind(type(way[-1])) in ("class", "function"):
        name = str(getattr(way[-1], "__qualname__", "")).replace(".<locals>", "")
        place = Place(world.module_of(way[-1]), name)
    return place
