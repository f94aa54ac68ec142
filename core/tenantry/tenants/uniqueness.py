"""Finds conflicts: tenants that share a secret key, a database or an address.

The duration of a check does not depend on the number of tenants.
"""

import hashlib
from dataclasses import dataclass

from tenantry.database.url import database_identity
from tenantry.errors import Problem
from tenantry.tenants.address import Address
from tenantry.tenants.address_claims import AddressClaims
from tenantry.tenants.model import Tenant

_Claim = bytes
"""A hash of a secret key or of a database. The hash is short, because a process can hold the hashes
of 10,000 tenants."""


@dataclass(frozen=True)
class Conflict:
    """A claim of a tenant to a secret key, database or address that another tenant already has."""

    owner: str
    """Name of the tenant that already has the claimed value."""
    problem: Problem


class AcceptedTenants:
    """The accepted tenants, with their secret keys, databases and addresses. Not thread-safe.

    The host names of a tenant that is not accepted also belong to the tenant, after `hold`.
    """

    def __init__(self) -> None:
        self._tenants: dict[str, Tenant] = {}
        self._owners: dict[_Claim, str] = {}
        self._addresses = AddressClaims()
        self._held: dict[str, Address] = {}  # the addresses of tenants that are not accepted

    def conflicts(self, tenant: Tenant) -> list[Conflict]:
        """Return a tenant's conflicts with accepted tenants."""
        found = [
            Conflict(owner, Problem(tenant.file, self._text(key, claim, owner), key))
            for key, claim in _claims(tenant).items()
            if (owner := self._owners.get(claim, tenant.name)) != tenant.name
        ]
        return found + [
            Conflict(owner, Problem(tenant.file, text, key))
            for owner, key, text in self._addresses.conflicts(tenant.name, tenant.address)
        ]

    def add(self, tenant: Tenant) -> None:
        """Accept a tenant, in place of an accepted tenant with the same name."""
        self.remove(tenant.name)
        self._tenants[tenant.name] = tenant
        self._owners.update(dict.fromkeys(_claims(tenant).values(), tenant.name))
        self._addresses.add(tenant.name, tenant.address)

    def hold(self, name: str, address: Address | None) -> None:
        """Keep the host names of a tenant that is not accepted, unless others own them."""
        if name in self._tenants:
            return
        self._release(name)
        if address is not None and address.names:
            self._held[name] = address
            self._addresses.add(name, address, only_names=True)

    def _release(self, name: str) -> None:
        held = self._held.pop(name, None)
        if held is not None:
            self._addresses.remove(name, held)

    def remove(self, name: str) -> None:
        """Free the claims of the accepted tenant with this name, if any."""
        self._release(name)
        tenant = self._tenants.pop(name, None)
        if tenant is None:
            return
        self._addresses.remove(name, tenant.address)
        claims = set(_claims(tenant).values())
        if any(self._owners.get(claim) != name for claim in claims):
            # A link in the path of the tenant's database has changed since the call of `add`.
            claims = {claim for claim, owner in self._owners.items() if owner == name}
        for claim in claims:
            del self._owners[claim]

    def free_part(self, name: str, address: Address | None) -> Address | None:
        """Return the part of a tenant's address that no other tenant has, or None."""
        return None if address is None else self._addresses.free_part(name, address)

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
