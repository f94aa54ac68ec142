"""What a changed tenants folder would change: descriptions of tenants, and how two sets differ.

A description holds no secret: in the place of one stands a fingerprint, which tells that it changed
and not what it is. Descriptions that are compared are made with the same random `salt`.
"""

import hashlib
import hmac
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tenantry.grammar import are_nested
from tenantry.observability.redaction import MASK, redact_value
from tenantry.tenants.model import Tenant
from tenantry.tenants.uniqueness import prefix_conflict

Description = Mapping[str, Any]
"""`{"prefix", "endpoints", "keys": {KEY: text}}`, as JSON takes it."""

Routes = Callable[[Sequence[str]], Sequence[str]]
"""What tenants with these endpoints answer: `GET /images/`, without their prefix."""

_SHOWN_OTHERWISE = ("URL_PREFIX", "BLUEPRINTS")


@dataclass(frozen=True)
class Change:
    """One difference of one tenant."""

    tenant: str
    what: str
    """`added`, `removed`, `stays`, `prefix`, `database`, `key`, `endpoint` or `route`."""
    text: str

    def __str__(self) -> str:
        """Return a line: `~ acme: …`."""
        sign = {"added": "+", "removed": "-"}.get(self.what, "~")
        return f"{sign} {self.tenant}: {self.text}"


def describe(tenant: Tenant, salt: str) -> dict[str, Any]:
    """Return what a plan compares of a tenant."""
    config = tenant.config()
    known = [config["SECRET_KEY"], *config["SECRET_KEY_FALLBACKS"]]
    if tenant.database_url.password:
        known.append(tenant.database_url.password)
    keys = {}
    for key, value in config.items():
        shown = MASK if key in tenant.keys_with_secrets else redact_value(key, value, known)
        is_plain = shown is value or shown == value
        keys[key] = _text(value) if is_plain else _masked(key, value, shown, salt)
    return {"prefix": tenant.url_prefix, "endpoints": list(tenant.blueprints), "keys": keys}


def compare(
    old: Mapping[str, Description],
    new: Mapping[str, Description],
    routes: Routes,
    refused: Mapping[str, str] = MappingProxyType({}),
) -> list[Change]:
    """Return what happens between two sets of tenants (name → description), by name.

    `refused` are those whose newest file is not served, and why: a tenant of old stays as it is.
    """
    changes: list[Change] = []
    for name in sorted(old.keys() | new.keys()):
        if name in refused:
            if name in old:
                changes.append(Change(name, "stays", f"stays as it is: {refused[name]}"))
        elif name not in old:
            text = f"new at {new[name]['prefix']}, endpoints {', '.join(new[name]['endpoints'])}"
            changes.append(Change(name, "added", text))
        elif name not in new:
            changes.append(Change(name, "removed", f"gone from {old[name]['prefix']}"))
        else:
            changes += _differences(name, old[name], new[name], routes)
    return changes


def find_blocked_moves(
    old: Mapping[str, Description], new: Mapping[str, Description], refused: Collection[str]
) -> dict[str, str]:
    """Return the tenants that cannot move to their new prefix, by name, and why.

    A host moves one tenant after another, each to a prefix that is free by then. A tenant whose
    newest file is refused keeps its prefix. Two tenants that swap prefixes block each other.
    """
    current = {name: old[name]["prefix"] for name in old if name in new or name in refused}
    moving = {
        name: one["prefix"]
        for name, one in new.items()
        if name not in refused and one["prefix"] != current.get(name)
    }
    while True:
        reasons = {
            name: prefix_conflict(prefix, other, owner)
            for name, prefix in moving.items()
            for owner, other in current.items()
            if owner != name and are_nested(prefix, other)
        }
        free = moving.keys() - reasons.keys()
        if not free:
            return reasons
        current |= {name: moving.pop(name) for name in free}


def _differences(name: str, old: Description, new: Description, routes: Routes) -> Iterator[Change]:
    if old["prefix"] != new["prefix"]:
        yield Change(name, "prefix", f"moves from {old['prefix']} to {new['prefix']}")
    for key in sorted(old["keys"].keys() | new["keys"].keys()):
        before, after = (side["keys"].get(key, "not set") for side in (old, new))
        if before != after and key not in _SHOWN_OTHERWISE:
            what = "database" if key == "DATABASE_URI" else "key"
            yield Change(name, what, f"{key}: {before} → {after}")
    if old["endpoints"] != new["endpoints"]:
        yield from _gained_and_lost(name, old, new, routes)


def _gained_and_lost(
    name: str, old: Description, new: Description, routes: Routes
) -> Iterator[Change]:
    for verb, more, less in (("gains", new, old), ("loses", old, new)):
        for endpoint in more["endpoints"]:
            if endpoint not in less["endpoints"]:
                yield Change(name, "endpoint", f"{verb} endpoint {endpoint}")
        for route in sorted(set(routes(more["endpoints"])) - set(routes(less["endpoints"]))):
            method, _, rule = route.partition(" ")
            yield Change(name, "route", f"{verb} {method} {more['prefix']}{rule}")


def _masked(key: str, value: Any, shown: Any, salt: str) -> str:
    print_ = hmac.new(
        salt.encode(), f"{key} {_text(value)}".encode("utf-8", "surrogatepass"), hashlib.sha256
    )
    return f"{MASK if shown == MASK else repr(shown)} (#{print_.hexdigest()[:8]})"


def _text(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes no number of over 4,300 digits
        return f"{type(value).__name__} too long to show"
