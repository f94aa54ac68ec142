"""Addresses: where a tenant answers, and which former addresses redirect there.

A host decides everything about addresses by *pairs* of a host name and a path prefix. This module
does not know other tenants; `uniqueness` compares the pairs of all tenants.
"""

from collections.abc import Iterator
from typing import NamedTuple

Pair = tuple[str, str]
"""A host name and a path prefix. The name `""` means every name that no tenant claims, and the
prefix `""` means the root of the name."""


class Address(NamedTuple):
    """The present and the former addresses of one version of a tenant file."""

    prefix: str
    """The URL prefix, such as `/acme`; `/` for the root of the host names."""
    hosts: tuple[str, ...] = ()
    """The host names, as A-labels in lower case. The first name is canonical."""
    old_hosts: tuple[str, ...] = ()
    old_prefixes: tuple[str, ...] = ()

    @property
    def root(self) -> str:
        """The prefix as in `SCRIPT_NAME`: empty for the root of the host names."""
        return "" if self.prefix == "/" else self.prefix

    @property
    def canonical(self) -> Pair:
        """The pair at which the app answers. The other pairs redirect to it."""
        return (self.hosts[0] if self.hosts else ""), self.root

    @property
    def names(self) -> tuple[str, ...]:
        """The present and the former host names."""
        return (*self.hosts, *self.old_hosts)

    @property
    def text(self) -> str:
        """The address for people: `/acme`, `shop.example.org/` or `shop.example.org/acme`."""
        return f"{self.canonical[0]}{self.prefix}"

    @property
    def url(self) -> str:
        """The argument with which `tenantry get` requests the root of the app."""
        name, root = self.canonical
        return f"http://{name}{root}/" if name else f"{root}/"

    def claims(self) -> dict[Pair, str]:
        """Return every pair of the address, with the key of the tenant file that claims the pair.

        The canonical pair comes first.
        """
        claims: dict[Pair, str] = {}
        for pair, key in self._pairs():
            claims.setdefault(pair, key)
        return claims

    def _pairs(self) -> Iterator[tuple[Pair, str]]:
        root = self.root
        if not self.hosts:
            yield ("", root), "URL_PREFIX"
        for key, names in (("HOSTS", self.hosts), ("OLD_HOSTS", self.old_hosts)):
            for place, name in enumerate(names):
                yield (name, root), f"{key}[{place}]"
        for place, prefix in enumerate(self.old_prefixes):
            # At the root of its own names, the app itself answers every path.
            for name in ("", *(self.names if root else ())):
                yield (name, prefix), f"OLD_PREFIXES[{place}]"


def display(pair: Pair) -> str:
    """Return a pair for people: `/acme`, `shop.example.org/` or `shop.example.org/acme`."""
    return f"{pair[0]}{pair[1] or '/'}"


def address_of(prefix: object, *names: object) -> Address:
    """Return an address from JSON data: the prefix, and up to three lists of names.

    Raises:
        TypeError: the data is not an address.
    """
    lists = [tuple(map(str, one)) for one in names if isinstance(one, list)]
    return Address(str(prefix), *lists)
