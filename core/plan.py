"""What a changed tenants folder would change: descriptions of tenants, and how two sets differ.

A description holds no secret: in the place of one stands a fingerprint, keyed with the tenant's
own secret key, which tells that it changed and not what it is.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.masking import MASK, mask
from core.tenant import Tenant

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
    """`added`, `removed`, `prefix`, `database`, `key`, `endpoint` or `route`."""
    text: str

    def __str__(self) -> str:
        """Return a line: `~ acme: …`."""
        sign = {"added": "+", "removed": "-"}.get(self.what, "~")
        return f"{sign} {self.tenant}: {self.text}"


def describe(tenant: Tenant) -> dict[str, Any]:
    """Return what a plan compares of a tenant."""
    config = tenant.config()
    return {
        "prefix": tenant.url_prefix,
        "endpoints": list(tenant.blueprints),
        "keys": {key: _shown(tenant, key, value) for key, value in config.items()},
    }


def compare(
    old: Mapping[str, Description], new: Mapping[str, Description], routes: Routes
) -> list[Change]:
    """Return what happens between two sets of tenants (name → description), by name."""
    changes: list[Change] = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            text = f"new at {new[name]['prefix']}, endpoints {', '.join(new[name]['endpoints'])}"
            changes.append(Change(name, "added", text))
        elif name not in new:
            changes.append(Change(name, "removed", f"gone from {old[name]['prefix']}"))
        else:
            changes += _differences(name, old[name], new[name], routes)
    return changes


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


def _shown(tenant: Tenant, key: str, value: Any) -> str:
    shown = mask(key, value)
    if shown == value:
        return repr(value)
    own_key = tenant.secret_key.get_secret_value().encode()
    print_ = hmac.new(own_key, f"{key} {value!r}".encode(), hashlib.sha256).hexdigest()[:8]
    return f"{MASK if shown == MASK else repr(shown)} (#{print_})"
