"""Finds conflicts: tenants that share a secret key, a database or a prefix.

The duration of a check does not depend on the number of tenants.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from tenantry.database.url import database_identity
from tenantry.errors import Problem
from tenantry.grammar import parent_prefixes
from tenantry.tenants.model import Tenant

_Claim = bytes
"""A hash of a secret key or of a database. The hash is short, because a process can hold the hashes
of 10,000 tenants."""


@dataclass(frozen=True)
class Conflict:
    """A claim of a tenant to a secret key, database or prefix that another tenant already has."""

    owner: str
    """Name of the tenant that already has the claimed value."""
    problem: Problem


class AcceptedTenants:
    """The accepted tenants, with their secret keys, databases and prefixes. Not thread-safe."""

    def __init__(self) -> None:
        self._tenants: dict[str, Tenant] = {}
        self._owners: dict[_Claim, str] = {}
        self._prefixes: dict[str, str] = {}  # maps a prefix to its tenant
        self._below: dict[str, set[str]] = {}  # maps a prefix to the tenants under it

    def conflicts(self, tenant: Tenant) -> list[Conflict]:
        """Return a tenant's conflicts with accepted tenants."""
        found = [
            Conflict(owner, Problem(tenant.file, self._text(key, claim, owner), key))
            for key, claim in _claims(tenant).items()
            if (owner := self._owners.get(claim, tenant.name)) != tenant.name
        ]
        return found + list(self._prefix_conflicts(tenant))

    def add(self, tenant: Tenant) -> None:
        """Accept a tenant, in place of an accepted tenant with the same name."""
        self.remove(tenant.name)
        self._tenants[tenant.name] = tenant
        self._owners.update(dict.fromkeys(_claims(tenant).values(), tenant.name))
        self._prefixes[tenant.url_prefix] = tenant.name
        for parent in parent_prefixes(tenant.url_prefix):
            self._below.setdefault(parent, set()).add(tenant.name)

    def remove(self, name: str) -> None:
        """Free the claims of the accepted tenant with this name, if any."""
        tenant = self._tenants.pop(name, None)
        if tenant is None:
            return
        claims = set(_claims(tenant).values())
        if any(self._owners.get(claim) != name for claim in claims):
            # A link in the path of the tenant's database has changed since the call of `add`.
            claims = {claim for claim, owner in self._owners.items() if owner == name}
        for claim in claims:
            del self._owners[claim]
        del self._prefixes[tenant.url_prefix]
        for parent in parent_prefixes(tenant.url_prefix):
            names = self._below[parent]
            names.discard(name)
            if not names:
                del self._below[parent]

    def is_free(self, prefix: str) -> bool:
        """Whether no accepted tenant has `prefix`, or a prefix above or below it."""
        return next(self._overlapping(prefix), None) is None

    def _overlapping(self, prefix: str) -> Iterator[str]:
        for path in (prefix, *parent_prefixes(prefix)):
            if path in self._prefixes:
                yield self._prefixes[path]
        yield from sorted(self._below.get(prefix, ()))

    def _prefix_conflicts(self, tenant: Tenant) -> Iterator[Conflict]:
        for owner in self._overlapping(tenant.url_prefix):
            if owner != tenant.name:
                text = prefix_conflict(tenant.url_prefix, self._tenants[owner].url_prefix, owner)
                yield Conflict(owner, Problem(tenant.file, text, "URL_PREFIX"))

    def _text(self, key: str, claim: _Claim, owner: str) -> str:
        if key == "DATABASE_URI":
            return f"is also the database of tenant {owner!r}; give this tenant its own."
        owner_claims = _claims(self._tenants[owner]).items()
        owner_key = next(name for name, other in owner_claims if other == claim)
        text = f"is also '{owner_key}' of tenant {owner!r}"
        if key == owner_key == "SECRET_KEY":
            return f"{text}; give this tenant its own."
        if owner_key == "SECRET_KEY":
            return f"{text}, so sessions of {owner!r} would be valid here; remove it here."
        if key == "SECRET_KEY":
            return (
                f"{text}, so sessions of this tenant would be valid there; give this tenant its "
                f"own key or, if {owner!r} copied it, remove it there."
            )
        return f"{text}; remove it from the file that copied it."


def prefix_conflict(prefix: str, other: str, owner: str) -> str:
    """Return why a tenant cannot have `prefix` while the tenant `owner` has the prefix `other`."""
    if prefix == other:
        return (
            f"{prefix} is also the prefix of tenant {owner!r}; choose another. To swap the "
            "prefixes of two tenants, first save one of their files with a free prefix."
        )
    relation = "is inside" if prefix.startswith(f"{other}/") else "contains"
    return (
        f"{prefix} {relation} {other} of tenant {owner!r}, so browsers would send the cookies of "
        "the outer tenant to the inner one; choose another."
    )


def _claims(tenant: Tenant) -> dict[str, _Claim]:
    """Return, for each key whose value no other tenant can have, a hash of the value."""
    claims = {"SECRET_KEY": _claim("secret", tenant.secret_key.get_secret_value())}
    for place, fallback in enumerate(tenant.secret_key_fallbacks):
        claims[f"SECRET_KEY_FALLBACKS[{place}]"] = _claim("secret", fallback.get_secret_value())
    identity = database_identity(tenant.database_uri.get_secret_value())
    if identity is not None:
        claims["DATABASE_URI"] = _claim("database", *identity)
    return claims


def _claim(*parts: str) -> _Claim:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
