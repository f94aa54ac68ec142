"""What no two tenants may share: secret keys, databases, prefixes. Who has what, and who clashes.

Each question costs the tenant's own few claims, however many tenants there are.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from tenantry.database.url import database_identity
from tenantry.errors import Problem
from tenantry.grammar import parent_prefixes
from tenantry.tenants.model import Tenant


@dataclass(frozen=True)
class Conflict:
    """A claim of one tenant that another has."""

    owner: str
    """The name of the other."""
    problem: Problem


class AcceptedTenants:
    """The claims of the accepted tenants. Not thread-safe: one thread decides who is accepted."""

    def __init__(self) -> None:
        self._owners: dict[bytes, str] = {}  # mark of a secret or database → name
        self._prefixes: dict[str, str] = {}  # prefix → name
        self._below: dict[str, set[str]] = {}  # path above prefixes → their names
        self._tenants: dict[str, Tenant] = {}
        # A tenant is asked about, then taken: each mark is computed once.
        self._marked: tuple[Tenant | None, tuple[tuple[str, bytes], ...]] = None, ()

    def conflicts(self, tenant: Tenant) -> list[Conflict]:
        """Return what `tenant` claims and others have; empty if it may be accepted."""
        found = [
            Conflict(owner, Problem(tenant.file, self._shared(key, mark, owner), key))
            for key, mark in self._marks(tenant)
            if (owner := self._owners.get(mark, tenant.name)) != tenant.name
        ]
        return found + list(self._prefix_clash(tenant))

    def _marks(self, tenant: Tenant) -> tuple[tuple[str, bytes], ...]:
        marked, marks = self._marked
        if marked is not tenant:
            marks = tuple(_marks(tenant))
            self._marked = tenant, marks
        return marks

    def _shared(self, key: str, mark: bytes, owner: str) -> str:
        """Say where the other one has it, so that both sides can be looked at."""
        if key == "DATABASE_URI":
            return f"is the database of tenant {owner!r} too; give this tenant its own."
        # The marks are of its SECRET_KEY, of each fallback, of its database if it has one.
        place = [one for _, one in _marks(self._tenants[owner])].index(mark)
        other = f"SECRET_KEY_FALLBACKS[{place - 1}]" if place else "SECRET_KEY"
        text = f"is {other} of tenant {owner!r} too"
        if key != "SECRET_KEY":
            if place:
                return f"{text}: one of the two files copied it; remove it from one."
            return f"{text}: sessions that {owner!r} signs now would verify here; remove it here."
        if place:
            return (
                f"{text}: what this tenant signs now would verify there; give this tenant its own "
                "key, or remove it from the fallbacks there if it was copied there."
            )
        return f"{text}; give this tenant its own."

    def add(self, tenant: Tenant) -> None:
        """Give `tenant` what it claims, instead of what its name had before."""
        self.remove(tenant.name)
        self._tenants[tenant.name] = tenant
        self._owners.update((mark, tenant.name) for _, mark in self._marks(tenant))
        self._prefixes[tenant.url_prefix] = tenant.name
        for above in parent_prefixes(tenant.url_prefix):
            self._below.setdefault(above, set()).add(tenant.name)

    def remove(self, name: str) -> None:
        """Free what a name had, if it had anything."""
        tenant = self._tenants.pop(name, None)
        if tenant is None:
            return
        marks = {mark for _, mark in _marks(tenant)}
        own = {mark for mark in marks if self._owners.get(mark) == name}
        if own != marks:  # a link on the way to its database was turned meanwhile
            own = {mark for mark, owner in self._owners.items() if owner == name}
        for mark in own:
            del self._owners[mark]
        del self._prefixes[tenant.url_prefix]
        for above in parent_prefixes(tenant.url_prefix):
            names = self._below[above]
            names.discard(name)
            if not names:
                del self._below[above]

    def is_free(self, prefix: str) -> bool:
        """Whether no accepted tenant is at, above or below `prefix`."""
        return next(self._neighbours(prefix), None) is None

    def _neighbours(self, prefix: str) -> Iterator[str]:
        for path in (prefix, *parent_prefixes(prefix)):
            if path in self._prefixes:
                yield self._prefixes[path]
        yield from sorted(self._below.get(prefix, ()))

    def _prefix_clash(self, tenant: Tenant) -> Iterator[Conflict]:
        for owner in self._neighbours(tenant.url_prefix):
            if owner == tenant.name:
                continue
            text = prefix_conflict(tenant.url_prefix, self._tenants[owner].url_prefix, owner)
            yield Conflict(owner, Problem(tenant.file, text, "URL_PREFIX"))


def prefix_conflict(prefix: str, other: str, owner: str) -> str:
    """Return why a tenant cannot have `prefix` while the tenant `owner` is at `other`."""
    if prefix == other:
        return (
            f"{prefix} is the prefix of tenant {owner!r} too; choose another. To swap the prefixes "
            "of two tenants, first save one of their files with a free prefix."
        )
    return (
        f"{prefix} and {other} of tenant {owner!r} lie inside one another, and a "
        "browser would send the outer one's cookies to the inner one; choose another."
    )


def _marks(tenant: Tenant) -> Iterator[tuple[str, bytes]]:
    """Yield, with its key, what no other tenant may have; hashed, so that no secret lies here."""
    for key, text in _claimed(tenant):
        data = text.encode("utf-8", "surrogatepass")
        yield key, hashlib.blake2b(data, digest_size=16).digest()


def _claimed(tenant: Tenant) -> Iterator[tuple[str, str]]:
    yield "SECRET_KEY", f"secret {tenant.secret_key.get_secret_value()}"
    for place, old in enumerate(tenant.secret_key_fallbacks):
        yield f"SECRET_KEY_FALLBACKS[{place}]", f"secret {old.get_secret_value()}"
    database = database_identity(tenant.database_uri.get_secret_value())
    if database is not None:
        yield "DATABASE_URI", f"database {database!r}"
