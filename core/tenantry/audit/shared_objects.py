"""Finds mutable objects that two apps reference, and apps that reference another tenant's code.

The graphs of 200 apps would not fit in memory. Therefore, the comparison builds the graph of one
app after another, and keeps only the `id()` of each object. To describe how two apps reach a shared
object, the comparison builds the graphs of both apps again.
"""

import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MethodType, ModuleType

from blinker import ANY, Signal
from flask import Flask

from tenantry.audit.finding import AuditedTenant, Finding, finding_id, join_names
from tenantry.audit.object_graph import TENANTRY, ObjectGraph, ProcessSnapshot
from tenantry.audit.reference_path import (
    Definition,
    describe_path,
    find_definition,
    qualified_name,
    relative_path,
)
from tenantry.endpoints.finding import find_endpoint
from tenantry.endpoints.loading import LOADED_ENDPOINTS, LoadedEndpoint

_EVERY_TENANT = "every tenant"
"""The owner of `sys.modules`, which gives access to the code of every tenant."""

_PATHS_SHOWN = 2

_OBJECT_REMEDY = (
    "move the object to resources.py, because each app has its own copy of that module; or use a "
    "tuple, frozenset or types.MappingProxyType, which cannot change"
)

_LOG_SETUP = re.compile(r"\.add(?:Handler|Filter)\(|\b(?:basic|dict|file)Config\(")

_Root = tuple[str, object]
"""A root, which is an object that an app uses directly, with the label of the root."""


@dataclass(frozen=True)
class ObjectComparison:
    """The result of a comparison of the apps' object graphs."""

    snapshot: ProcessSnapshot
    modules: Mapping[str, frozenset[str]]
    """Maps each tenant to the modules that its app references."""
    findings: tuple[Finding, ...]


def compare_objects(
    tenants: Sequence[AuditedTenant], known_listeners: frozenset[int] = frozenset()
) -> ObjectComparison:
    """Compare the objects that the apps reference.

    Args:
        tenants: the tenants, with their apps.
        known_listeners: the result of a call of `process_listeners()` before the first build.
            Listeners that exist before the first build belong to the host.
    """
    snapshot = _snapshot(tenants)
    listeners = [root for root in _listeners() if _listener_id(root[1]) not in known_listeners]
    signals = _signals()
    apps = {
        audited.name: _App(audited, _roots(audited.app, listeners, signals), snapshot)
        for audited in tenants
    }
    referenced_by: dict[int, list[str]] = {}
    foreign: list[tuple[str, int]] = []
    modules: dict[str, frozenset[str]] = {}
    for name, app in apps.items():
        graph = app.build_graph()
        modules[name] = frozenset(graph.modules)
        foreign += [(name, key) for key in graph.foreign]
        for key in graph.mutable:
            referenced_by.setdefault(key, []).append(name)
    shared = {key: names for key, names in referenced_by.items() if len(names) > 1}
    reporter = _Reporter(apps, shared, modules, snapshot)
    return ObjectComparison(
        snapshot, modules, (*reporter.shared_objects(), *reporter.foreign_code(foreign))
    )


def process_listeners() -> frozenset[int]:
    """Return the `id()` of each signal receiver, log handler and log filter in the process.

    Call this function before the first app is built, and pass the result to `audit`.
    """
    return frozenset(_listener_id(listener) for _, listener in _listeners())


def _listener_id(listener: object) -> int:
    # Each access to a bound method creates a new object, so use the `id()` of its instance.
    return id(listener.__self__ if type(listener) is MethodType else listener)


def _listeners() -> Iterator[_Root]:
    for signal in _signals():
        yield from ((_signal_label(signal), receiver) for receiver in signal.receivers_for(ANY))
    # `logging` has no public function that lists the loggers.
    for logger in [logging.root, *list(logging.Logger.manager.loggerDict.values())]:
        if isinstance(logger, logging.Logger) and not logger.name.startswith("tenant."):
            yield from ((f"log handler of {logger.name}", item) for item in logger.handlers)
            yield from ((f"log filter of {logger.name}", item) for item in logger.filters)


def _signals() -> list[Signal]:
    """Return the signals that are global variables of modules, including Flask's signals."""
    signals: dict[int, Signal] = {}
    for module in list(sys.modules.values()):
        for value in list(vars(module).values()) if type(module) is ModuleType else ():
            if issubclass(type(value), Signal):
                signals[id(value)] = value
    return list(signals.values())


def _signal_label(signal: Signal) -> str:
    return f"signal {getattr(signal, 'name', 'without a name')}"


def _snapshot(tenants: Sequence[AuditedTenant]) -> ProcessSnapshot:
    return ProcessSnapshot(
        apps={id(audited.app): audited.name for audited in tenants}
        | {id(sys.modules): _EVERY_TENANT},
        packages=frozenset(
            package
            for audited in tenants
            for endpoint in audited.tenant.blueprints
            for package in _packages(endpoint, audited.tenant.app_dir)
        ),
    )


def _loaded_endpoints(app: Flask) -> list[LoadedEndpoint]:
    return list(app.extensions.get(LOADED_ENDPOINTS, ()))


def _packages(endpoint: str, app_dir: str) -> list[str]:
    """Return the names of an endpoint's package and of its top-level package."""
    package = find_endpoint(endpoint, app_dir)
    top = package.partition(".")[0]
    return [package] if top == TENANTRY else [package, top]


def _roots(
    app: Flask, listeners: Sequence[_Root], signals: Iterable[Signal]
) -> list[Sequence[_Root]]:
    """Return groups of roots.

    The first group contains objects that the author of an endpoint knows.
    """
    packages = tuple(f"{endpoint.package}." for endpoint in _loaded_endpoints(app))
    extensions = [(name, item) for name, item in app.extensions.items() if name != LOADED_ENDPOINTS]
    return [
        [(f"view {name}", view) for name, view in app.view_functions.items()],
        [
            (f"module {name.partition('.')[2]}", module)
            for name, module in list(sys.modules.items())
            if name.startswith(packages)
        ],
        [*_receivers(app, signals)],
        [(f"extension {name}", extension) for name, extension in extensions],
        listeners,
        [("app", app)],
    ]


def _receivers(app: Flask, signals: Iterable[Signal]) -> Iterator[_Root]:
    """Yield the signal receivers and log handlers of one app."""
    for signal in signals:
        for_all_apps = {_listener_id(receiver) for receiver in signal.receivers_for(ANY)}
        for receiver in signal.receivers_for(app):
            if _listener_id(receiver) not in for_all_apps:
                yield _signal_label(signal), receiver
    logger = logging.Logger.manager.loggerDict.get(app.name)
    if isinstance(logger, logging.Logger):
        yield from (("log handler of the app", handler) for handler in logger.handlers)


class _App:
    """One app, the roots of its object graph, and paths in the graph."""

    def __init__(
        self,
        audited: AuditedTenant,
        root_groups: Sequence[Sequence[_Root]],
        snapshot: ProcessSnapshot,
    ) -> None:
        self._name = audited.name
        self._root_groups = root_groups
        self._snapshot = snapshot
        self._graph: ObjectGraph | None = None
        self._labels: dict[int, str] = {}
        for label, root in [item for group in root_groups for item in group]:
            self._labels.setdefault(id(root), f"{audited.name}: {label}")

    def build_graph(self) -> ObjectGraph:
        """Build the object graph of the app."""
        graph = ObjectGraph(self._name, self._snapshot)
        graph.walk([[root for _, root in group] for group in self._root_groups])
        return graph

    def path_to(self, key: int) -> list[object]:
        """Return the path to an object, or an empty path if the app no longer references it."""
        if self._graph is None:
            self._graph = self.build_graph()
        return self._graph.path_to(key)

    def describe(self, path: Sequence[object]) -> str:
        """Return a description of a path, such as `acme: view … → _cache`."""
        return describe_path(path, self._labels[id(path[0])], self._snapshot)


@dataclass(frozen=True)
class _Reporter:
    """Creates findings about shared objects."""

    apps: Mapping[str, _App]
    shared: Mapping[int, Sequence[str]]
    """Maps the `id()` of each mutable object to the tenants whose apps reference the object."""
    modules: Mapping[str, frozenset[str]]
    snapshot: ProcessSnapshot

    def shared_objects(self) -> Iterator[Finding]:
        """Yield a finding for each shared object that is not part of another shared object."""
        for key, names in self.shared.items():
            paths = {name: self.apps[name].path_to(key) for name in names[:_PATHS_SHOWN]}
            if all(paths.values()) and not all(map(self._is_part_of_shared, paths.values())):
                yield self._shared_object(paths, names)

    def _shared_object(
        self, paths: Mapping[str, Sequence[object]], names: Sequence[str]
    ) -> Finding:
        path = next(iter(paths.values()))
        type_name = type(path[-1]).__qualname__
        descriptions = self._descriptions(paths.items())
        definition = find_definition(path, self.snapshot)
        label = definition.label if definition else descriptions[0].partition(": ")[2]
        place = definition.place if definition else ""
        text = (
            f"the apps of {join_names(names)} share the {type_name} {label}: each app sees "
            "the changes of the others"
        )
        remedy = _OBJECT_REMEDY
        if not definition and label.startswith("log "):
            place = self._log_setup(self.modules[names[0]])
            text = f"{type_name}, a {label}, receives the log records of {join_names(names)}"
            remedy = "use app.logger instead of a logger that several tenants share"
        return Finding(
            id=finding_id("shared", label),
            tenants=tuple(names),
            text=text,
            remedy=remedy,
            paths=descriptions,
            place=place,
        )

    def _log_setup(self, modules: Iterable[str]) -> str:
        """Return the line of tenant code that adds a log handler or filter."""
        for module in sorted(modules):
            file = getattr(sys.modules.get(module), "__file__", None)
            if isinstance(file, str) and self.snapshot.is_tenant_code(module):
                lines = Path(file).read_text("utf-8", "replace").splitlines()
                for number, line in enumerate(lines, 1):
                    if _LOG_SETUP.search(line):
                        return f"{relative_path(file)}:{number}"
        return ""

    def foreign_code(self, foreign: Sequence[tuple[str, int]]) -> Iterator[Finding]:
        """Yield a finding for each definition that references another tenant's app or code.

        Args:
            foreign: pairs of a tenant, and the `id()` of an object that belongs to another tenant.
        """
        groups: dict[str, list[tuple[str, list[object]]]] = {}
        for name, key in foreign:
            path = self.apps[name].path_to(key)
            if path and not self._is_part_of_shared(path):
                definition = self._referrer(path)
                label = definition.label if definition else type(path[0]).__qualname__
                groups.setdefault(label, []).append((name, path))
        for label, members in groups.items():
            owners = {str(self.snapshot.owner(path[-1])) for _, path in members}
            name, path = members[0]
            definition = self._referrer(path)
            yield Finding(
                id=finding_id("reaches", label),
                tenants=tuple(sorted({name for name, _ in members} | (owners & self.apps.keys()))),
                text=f"the app of {name} references endpoint code that belongs to "
                f"{self.snapshot.owner(path[-1])}, through {label}",
                remedy="do not look for other apps: use current_app; connect signals with "
                "sender=app, and add log handlers to app.logger",
                paths=self._descriptions(members[:_PATHS_SHOWN]),
                place=definition.place if definition else "",
            )

    def _descriptions(self, paths: Iterable[tuple[str, Sequence[object]]]) -> tuple[str, ...]:
        return tuple(self.apps[name].describe(path) for name, path in paths)

    def _is_part_of_shared(self, path: Sequence[object]) -> bool:
        """Whether the last object on a path is part of another shared object."""
        for thing in path[-2::-1]:
            if id(thing) in self.shared:
                return True
            is_namespace = id(thing) in self.snapshot.modules
            if is_namespace or self.snapshot.kind(thing) in ("class", "function", "mutable"):
                return False
        return False

    def _referrer(self, path: Sequence[object]) -> Definition | None:
        """Return the definition that is nearest to the shared object on a path."""
        definition = find_definition(path, self.snapshot) if len(path) > 1 else None
        thing = path[-1]
        if definition is None and self.snapshot.kind(thing) in ("class", "function"):
            definition = Definition(self.snapshot.module_of(thing), qualified_name(thing))
        return definition
