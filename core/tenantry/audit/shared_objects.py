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
from types import MethodType
from typing import cast

from blinker import ANY, Signal
from flask import Flask

from tenantry.audit.finding import AuditedTenant, Finding, finding_id, join_names
from tenantry.audit.libraries import LibraryObjects
from tenantry.audit.object_graph import ObjectGraph
from tenantry.audit.process_snapshot import ProcessSnapshot, file_of
from tenantry.audit.raw_access import (
    full_name,
    is_a,
    is_module,
    namespace_of,
    own_dict,
    qualified_name,
)
from tenantry.audit.reference_path import (
    Definition,
    describe_path,
    find_definition,
    relative_path,
)
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
    """The result of a comparison of the apps' object graphs. Each mapping is by tenant."""

    snapshot: ProcessSnapshot
    modules: Mapping[str, frozenset[str]]
    """The modules that each app references."""
    packages: Mapping[str, frozenset[str]]
    """The packages whose objects each app references."""
    stores: Mapping[str, Sequence[object]]
    """The caches and limiters that each app references."""
    findings: Sequence[Finding]


def compare_objects(
    tenants: Sequence[AuditedTenant], libraries: LibraryObjects
) -> ObjectComparison:
    """Compare the objects that the apps reference.

    Args:
        tenants: the tenants, with their apps.
        libraries: the objects that libraries have created for all tenants.
    """
    libraries.record()  # libraries that other libraries imported by name
    snapshot = ProcessSnapshot(
        apps={id(audited.app): audited.name for audited in tenants}
        | {id(sys.modules): _EVERY_TENANT},
        code=libraries.code,
    )
    listeners = [root for root in _listeners() if root[1] not in libraries]
    signals = _signals()
    apps = {
        audited.name: _App(audited, _roots(audited.app, listeners, signals), snapshot)
        for audited in tenants
    }
    referenced_by: dict[int, list[str]] = {}
    foreign: list[tuple[str, int]] = []
    modules: dict[str, frozenset[str]] = {}
    stores: dict[str, Sequence[object]] = {}
    packages: dict[str, frozenset[str]] = {}
    for name, app in apps.items():
        graph = app.build_graph()
        modules[name] = frozenset(graph.modules)
        stores[name] = graph.stores
        packages[name] = frozenset(graph.packages)
        foreign += [(name, key) for key in graph.foreign]
        for key in graph.mutable:
            if not libraries.has_id(key):
                referenced_by.setdefault(key, []).append(name)
    shared = {key: names for key, names in referenced_by.items() if len(names) > 1}
    reporter = _Reporter(apps, shared, modules, snapshot)
    findings = [*reporter.shared_objects(), *reporter.foreign_code(foreign)]
    return ObjectComparison(snapshot, modules, packages, stores, findings)


def _listener_id(listener: object) -> int:
    # Each access to a bound method creates a new object, so use the `id()` of its instance.
    return id(listener.__self__ if type(listener) is MethodType else listener)


def _is_of_process(handler: object) -> bool:
    """Whether a log handler writes nothing, or writes to the log of the process."""
    stream = (own_dict(handler) or {}).get("stream")
    is_stream_handler = type(handler) is logging.StreamHandler
    return is_a(handler, logging.NullHandler) or (
        is_stream_handler and (stream is sys.stderr or stream is sys.stdout)
    )


def _listeners() -> Iterator[_Root]:
    for signal in _signals():
        yield from ((_signal_label(signal), receiver) for receiver in signal.receivers_for(ANY))
    # `logging` has no public function that lists the loggers.
    for logger in [logging.root, *list(logging.Logger.manager.loggerDict.values())]:
        if isinstance(logger, logging.Logger) and not logger.name.startswith("tenant."):
            yield from (
                (f"log handler of {logger.name}", item)
                for item in logger.handlers
                if not _is_of_process(item)
            )
            yield from ((f"log filter of {logger.name}", item) for item in logger.filters)


def _signals() -> list[Signal]:
    """Return the signals that are global variables of modules, including Flask's signals."""
    signals: dict[int, Signal] = {}
    for module in list(sys.modules.values()):
        for value in list(namespace_of(module).values()) if is_module(module) else ():
            if is_a(value, Signal):
                signals[id(value)] = cast("Signal", value)
    return list(signals.values())


def _signal_label(signal: Signal) -> str:
    return f"signal {getattr(signal, 'name', 'without a name')}"


def _loaded_endpoints(app: Flask) -> list[LoadedEndpoint]:
    return list(app.extensions.get(LOADED_ENDPOINTS, ()))


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
        type_name = full_name(type(path[-1])).rpartition(".")[2]
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
            file = file_of(module)
            if file and self.snapshot.is_tenant_code(module):
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
                label = definition.label if definition else full_name(type(path[0]))
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
