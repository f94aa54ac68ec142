"""Asks caches and rate limiters whether two tenants share entries.

For each cache or limiter, the audit writes an entry through the object of one app, and looks for
the entry through the objects of all other apps. Thus key prefixes and addresses count as they count
for the library. Afterwards, the audit removes the entry.

The audit knows the caches of cachelib, such as those of Flask-Caching, and Flask-Limiter.
"""

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenantry.audit.finding import AuditedTenant, Finding, finding_id, join_names
from tenantry.audit.raw_access import full_name, mro, own_dict

ANSWER_S = 5.0
"""Seconds after which the audit no longer waits for the answer of a store."""

_ENTRY_S = 60
"""Seconds after which a store forgets the entry of the audit, if the audit cannot remove it."""

_CACHE = "cachelib.base.BaseCache"
_FILE_CACHE = "cachelib.file.FileSystemCache"
_LIMITERS = frozenset({"flask_limiter._extension.Limiter", "flask_limiter.extension.Limiter"})


@dataclass(frozen=True)
class _Store:
    """A cache or limiter of one app."""

    audited: AuditedTenant
    thing: Any
    key: str
    """The key of the entry that is written through this object."""

    @property
    def name(self) -> str:
        return self.audited.name

    def write(self) -> None:
        """Write an entry."""
        self.thing.set(self.key, self.name, timeout=_ENTRY_S)

    def has(self, key: str) -> bool:
        """Whether an entry that was written through another object is found."""
        return self.thing.get(key) is not None

    def remove(self) -> None:
        """Remove the entry."""
        self.thing.delete(self.key)

    def remedy(self) -> str:
        """Return what gives the tenant entries of its own."""
        if any(full_name(class_) == _FILE_CACHE for class_ in mro(type(self.thing))):
            line = f"CACHE_DIR = {self.audited.app.instance_path + '/cache'!r}"
        else:
            line = f"CACHE_KEY_PREFIX = {self.name + ':'!r}"
        return f"give each tenant entries of its own; in {self.audited.tenant.file}: {line}"


class _Limiter(_Store):
    """A limiter of Flask-Limiter."""

    def write(self) -> None:
        self.thing.storage.incr(self._prefixed(self.key), _ENTRY_S)

    def has(self, key: str) -> bool:
        return bool(self.thing.storage.get(self._prefixed(key)))

    def remove(self) -> None:
        self.thing.storage.clear(self._prefixed(self.key))

    def remedy(self) -> str:
        line = f"RATELIMIT_KEY_PREFIX = {self.name + ':'!r}"
        return f"give each tenant counts of its own; in {self.audited.tenant.file}: {line}"

    def _prefixed(self, key: str) -> str:
        # Flask-Limiter puts this prefix in front of the names of limits.
        return f"{(own_dict(self.thing) or {})['_key_prefix']}/{key}"


_TEXTS = {
    "cache": "a value that one of them stores is returned to the others",
    "rate limiter": "requests to one of them count for the others",
}


def is_store(type_: type) -> bool:
    """Whether the audit can ask the instances of a type."""
    return _class_of(type_) is not None


def ask_stores(
    tenants: Sequence[AuditedTenant], stores: Mapping[str, Sequence[object]]
) -> Iterator[Finding]:
    """Yield a finding for each set of tenants that share the entries of a cache or limiter.

    Args:
        tenants: the tenants, with their apps.
        stores: maps each tenant to the caches and limiters that its app references.
    """
    found: dict[str, list[_Store]] = {label: [] for label in _TEXTS}
    for audited in tenants:
        # The replay asks the store of the sessions, because the session adds a prefix to its keys.
        of_sessions = [id(one) for one in (own_dict(audited.app.session_interface) or {}).values()]
        for thing in stores.get(audited.name, ()):
            class_ = _class_of(type(thing))
            if class_ is not None and id(thing) not in of_sessions:
                label = "rate limiter" if class_ is _Limiter else "cache"
                key = f"tenantry-audit-{secrets.token_hex(8)}"
                found[label].append(class_(audited, thing, key))
    for label, members in found.items():
        if len({store.name for store in members}) > 1:
            yield from _ask(label, members)


def is_answered(finding: Finding, stores: Mapping[str, Sequence[object]]) -> bool:
    """Whether the stores themselves have answered what a finding concludes from configurations."""
    for prefix, class_ in (("CACHE_", _Store), ("RATELIMIT_", _Limiter)):
        if finding.id.startswith(f"shared-store:{prefix}"):
            asked = [[_class_of(type(one)) for one in stores[name]] for name in finding.tenants]
            return all(class_ in classes for classes in asked)
    return False


def _class_of(type_: type) -> type[_Store] | None:
    names = {full_name(class_) for class_ in mro(type_)}
    if names & _LIMITERS:
        return _Limiter
    return _Store if _CACHE in names else None


def _ask(label: str, stores: Sequence[_Store]) -> Iterator[Finding]:
    """Write through all stores, then look for each entry through the stores of other tenants."""
    readers: dict[str, set[str]] = {store.key: {store.name} for store in stores}

    def read_all(store: _Store) -> None:
        for other in stores:
            if other.name != store.name and store.has(other.key):
                readers[other.key].add(store.name)

    failures: dict[str, tuple[_Store, str]] = {}
    for work in (lambda store: store.write(), read_all, lambda store: store.remove()):
        for store in stores:
            if store.name not in failures and (failure := _failure(store, work)):
                failures[store.name] = store, failure
    groups = {frozenset(readers[store.key]): store for store in stores}
    for names, store in groups.items():
        if len(names) > 1:
            yield _shared(label, sorted(names), store)
    for store, failure in failures.values():
        yield _unproven(label, store, failure)


def _failure(store: _Store, work: Callable[[_Store], None]) -> str:
    """Do work with a store, and return why it failed; "" if it did not fail."""
    failures = [f"it does not answer within {ANSWER_S:g} s"]

    def run() -> None:
        try:
            with store.audited.app.app_context():
                work(store)
            failures.clear()
        except Exception as error:  # noqa: BLE001 - a store may raise any exception
            failures[:] = [f"it raises {type(error).__name__}"]

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return next(iter(failures), "")


def _shared(label: str, names: Sequence[str], store: _Store) -> Finding:
    others = [name for name in names if name != store.name]
    return Finding(
        id=finding_id("shared-store", label),
        tenants=tuple(names),
        text=f"{join_names(names)} share the entries of a {label}: {_TEXTS[label]}",
        remedy=store.remedy(),
        paths=tuple(f"{name}: finds the entry of {store.name}" for name in others[:2]),
        place=store.audited.tenant.file,
    )


def _unproven(label: str, store: _Store, failure: str) -> Finding:
    return Finding(
        id=finding_id("store-unproven", label),
        tenants=(store.name,),
        text=f"the audit cannot ask the {label} of {store.name} whether other tenants share its "
        f"entries: {failure}",
        remedy="start the server that the app needs, and audit again",
        place=store.audited.tenant.file,
    )
