"""Which tenant owns which address: each pair of a host name and a prefix has one owner.

The duration of a check does not depend on the number of tenants.
"""

from collections.abc import Iterator

from tenantry.grammar import parent_prefixes
from tenantry.tenants.address import Address, Pair, display


class AddressClaims:
    """The addresses that tenants own, present and former. Not thread-safe.

    A prefix inside the prefix of another tenant is not possible under the same host name, because a
    browser would send the outer tenant's cookies to the inner tenant.
    """

    def __init__(self) -> None:
        # Maps a host name and a prefix to the tenant that has them. Without a tuple for each pair,
        # 10,000 tenants take less memory.
        self._owners: dict[str, dict[str, str]] = {}
        # Maps a pair to the tenants inside its prefix, each with one of their pairs.
        self._below: dict[Pair, dict[str, Pair]] = {}

    def add(self, name: str, address: Address, *, only_names: bool = False) -> None:
        """Give a tenant an address, except for pairs of other tenants.

        Args:
            name: the name of the tenant, which has no address.
            address: the address.
            only_names: whether to omit the prefixes at host names that no tenant claims.
        """
        for pair in address.claims():
            if (pair[0] or not only_names) and self.is_free(pair, name):
                self._owners.setdefault(pair[0], {})[pair[1]] = name
                for parent in _parents(pair):
                    self._below.setdefault(parent, {})[name] = pair

    def remove(self, name: str, address: Address) -> None:
        """Free the pairs of an address that belong to the tenant."""
        for pair in address.claims():
            prefixes = self._owners.get(pair[0], {})
            if prefixes.get(pair[1]) == name:
                del prefixes[pair[1]]
            if not prefixes:
                self._owners.pop(pair[0], None)
            for parent in _parents(pair):
                below = self._below.get(parent, {})
                below.pop(name, None)
                if not below:
                    self._below.pop(parent, None)

    def conflicts(self, name: str, address: Address) -> Iterator[tuple[str, str, str]]:
        """Yield the owner, the key and the text of each conflict of a tenant's address."""
        keys = address.claims()
        for owner, pair, other in self.overlaps(name, address):
            yield owner, keys[pair], _conflict(pair, other, owner)

    def overlaps(self, name: str, address: Address) -> Iterator[tuple[str, Pair, Pair]]:
        """Yield each other tenant whose address overlaps, with a pair of `address` and of its own.

        Of several host names with the same overlap, only the first one is yielded.
        """
        found = set()
        for pair in address.claims():
            for owner, other in self._overlapping(pair):
                overlap = owner, pair[1], other[1]
                if owner != name and overlap not in found:
                    found.add(overlap)
                    yield owner, pair, other

    def is_free(self, pair: Pair, name: str) -> bool:
        """Whether no tenant except `name` owns the pair, or a prefix above or below it."""
        return all(owner == name for owner, _ in self._overlapping(pair))

    def free_part(self, name: str, address: Address) -> Address | None:
        """Return the part of an address that no other tenant owns, or None without a free part."""
        root = address.root

        def is_free(host: str, prefix: str) -> bool:
            return self.is_free((host, prefix), name)

        hosts = tuple(host for host in address.hosts if is_free(host, root))
        if not hosts and (address.hosts or not is_free("", root)):
            return None
        return Address(
            address.prefix,
            hosts,
            tuple(host for host in address.old_hosts if is_free(host, root)),
            tuple(
                prefix
                for prefix in address.old_prefixes
                if all(is_free(host, prefix) for host in ("", *(address.names if root else ())))
            ),
        )

    def _overlapping(self, pair: Pair) -> Iterator[tuple[str, Pair]]:
        prefixes = self._owners.get(pair[0], {})
        for one in (pair, *_parents(pair)):
            if one[1] in prefixes:
                yield prefixes[one[1]], one
        yield from sorted(self._below.get(pair, {}).items())


def _conflict(pair: Pair, other: Pair, owner: str) -> str:
    """Return why a tenant cannot have `pair` while the tenant `owner` has the pair `other`."""
    name, prefix = pair
    place, other_place = display(pair), display(other)
    if pair == other and name:
        return (
            f"{place} is also an address of tenant {owner!r}; remove it here or there. To move an "
            "address from one tenant to another, first save the file of the present owner."
        )
    if pair == other:
        return (
            f"{place} is also the prefix of tenant {owner!r}; choose another. To swap the "
            "prefixes of two tenants, first save one of their files with a free prefix."
        )
    relation = "is inside" if f"{prefix}/".startswith(f"{other[1]}/") else "contains"
    return (
        f"{place} {relation} {other_place} of tenant {owner!r}, so browsers would send the cookies "
        "of the outer tenant to the inner one; choose another."
    )


def _parents(pair: Pair) -> list[Pair]:
    """Return the pairs whose prefix contains the prefix of a pair."""
    name, prefix = pair
    parents = [(name, parent) for parent in parent_prefixes(prefix)]
    if name and prefix:  # only under host names of its own can a tenant have the root
        parents.append((name, ""))
    return parents
