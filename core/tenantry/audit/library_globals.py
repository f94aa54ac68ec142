"""Finds global variables of libraries that hold the app or the code of only one tenant.

A library gives the value of such a variable to the code of every tenant. For example,
Flask-Marshmallow keeps the database session of the tenant that was built last in a class, and the
schemas of all tenants use this session. If a variable holds code of each tenant that uses the
library, the variable is a registry, which exchanges nothing between tenants.
"""

import gc
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tenantry.audit.finding import AuditedTenant, Finding, finding_id, join_names
from tenantry.audit.process_snapshot import TENANTRY, ProcessSnapshot, top_package
from tenantry.audit.raw_access import class_namespace, is_module, namespace_of

_REMEDIES = {
    "flask_marshmallow": "write sqla_session = db.session in the Meta class of each schema",
    "flask_restx": "add the ID to AUDIT_ACCEPT: the library's own view keeps the media types of "
    "the last Api, which are the same for all",
}
"""Maps a library to what its variables need."""

_REMEDY = "do not set a default in the library: pass the object to the code that needs it"

_OWNED = frozenset({"class", "function"})


@dataclass(frozen=True)
class _Variable:
    """A global variable of a library."""

    module: str
    name: str

    @property
    def package(self) -> str:
        return top_package(self.module)

    @property
    def label(self) -> str:
        return f"{self.module}.{self.name}"


def library_globals(
    tenants: Sequence[AuditedTenant],
    snapshot: ProcessSnapshot,
    users: Mapping[str, frozenset[str]],
) -> Iterator[Finding]:
    """Yield a finding for each global variable of a library that holds code of only some users.

    Args:
        tenants: the tenants, with their apps.
        snapshot: the process in which the apps were built.
        users: maps each tenant to the libraries whose objects its app references.
    """
    places = {audited.name: audited.tenant.file for audited in tenants}
    for variable, owners in _owners(snapshot).items():
        using = {name for name, packages in users.items() if variable.package in packages}
        others = sorted(using - owners)
        if others and owners:
            yield _finding(variable, sorted(owners & places.keys()), others, places)


def _owners(snapshot: ProcessSnapshot) -> dict[_Variable, set[str]]:
    """Return the tenants whose app or code each global variable of a library references."""
    found: dict[_Variable, set[str]] = {}
    # Modules are roots of their own, and `sys.modules` contains the modules of all tenants.
    seen = {id(sys.modules), *snapshot.modules}
    waiting = deque(_variables(snapshot))
    while waiting:
        variable, thing = waiting.popleft()
        kind = snapshot.kind(thing)
        if id(thing) in seen or kind in ("immutable", "weakref", "module"):
            continue
        owner = snapshot.owner(thing) if kind in _OWNED or id(thing) in snapshot.apps else None
        if owner is not None:
            found.setdefault(variable, set()).add(owner)
            continue
        seen.add(id(thing))
        is_class = kind == "class"
        children = class_namespace(thing).values() if is_class else gc.get_referents(thing)
        waiting.extend((variable, child) for child in children if id(child) not in seen)
    return found


def _variables(snapshot: ProcessSnapshot) -> Iterator[tuple[_Variable, object]]:
    for name, module in list(sys.modules.items()):
        package = top_package(name)
        is_standard = package in sys.stdlib_module_names or package in (TENANTRY, "__main__")
        if is_module(module) and not is_standard and not snapshot.is_tenant_code(name):
            for variable, value in list(namespace_of(module).items()):
                yield _Variable(name, variable), value


def _finding(
    variable: _Variable, owners: Sequence[str], others: Sequence[str], places: Mapping[str, str]
) -> Finding:
    return Finding(
        id=finding_id("library", variable.label),
        tenants=tuple(sorted({*owners, *others})),
        text=f"{variable.label} holds code of {join_names(owners)}, and {join_names(others)} "
        f"can get it from {variable.package}",
        remedy=_REMEDIES.get(variable.package, _REMEDY),
        paths=tuple(f"{name}: held by {variable.label}" for name in owners[:2]),
        place=places[owners[0]],
    )
