"""Tenants that take over what others of them give up: all are built beside, then handed over.

One after the other they would wait for ever, each for what the next one has. Decides on nobody and
swaps nothing: who asked for an exchange gets all that was built.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from tenantry.errors import Problem
from tenantry.reload.rebuilds import Rebuilds
from tenantry.routing.instance import Instance
from tenantry.routing.mount import Mount
from tenantry.tenants.model import Tenant

Members = Mapping[str, tuple[Mount, Tenant]]
"""Name → its mount, and what it is to serve."""


@dataclass(slots=True, eq=False)
class _Exchange:
    """One exchange, from its start until all is built, or it is called off."""

    members: Members
    then: Callable[[Mapping[str, Instance]], None]
    built: dict[str, Instance] = field(default_factory=dict)


class Exchanges:
    """The exchanges of one process; a name is in one at most. One thread uses it."""

    def __init__(self, rebuilds: Rebuilds) -> None:
        self._rebuilds = rebuilds
        self._exchanges: dict[str, _Exchange] = {}

    def __contains__(self, name: str) -> bool:
        """Whether a name is in an exchange."""
        return name in self._exchanges

    def begin(self, members: Members, then: Callable[[Mapping[str, Instance]], None]) -> None:
        """Build all, and hand the instances over, by name, when the last one is there."""
        exchange = _Exchange(members, then)
        self._exchanges.update(dict.fromkeys(members, exchange))
        for name in members:
            self._build(exchange, name)

    def go_on(self, name: str) -> None:
        """Build one anew if its build has failed; the others are told to wait for it."""
        if not self._rebuilds.has_failed(name):
            return
        exchange = self._exchanges[name]
        for other in exchange.built:
            mount, tenant = exchange.members[other]
            text = f"waits for tenant {name!r}, with which it exchanges; that cannot be built yet."
            reason = str(Problem(tenant.file, text))
            if mount.reason != reason:
                mount.reject(reason, tenant.digest)
        self._build(exchange, name)

    def call_off(self, name: str) -> list[str]:
        """End the exchange that a name is in, if any; return the others that were in it."""
        exchange = self._exchanges.get(name)
        if exchange is None:
            return []
        for member in exchange.members:
            del self._exchanges[member]
            self._rebuilds.drop(member)
        for instance in exchange.built.values():
            instance.retire()
        return [member for member in exchange.members if member != name]

    def close(self) -> None:
        """Call all off. Idempotent."""
        for name in list(self._exchanges):
            self.call_off(name)

    def _build(self, exchange: _Exchange, name: str) -> None:
        mount, tenant = exchange.members[name]
        self._rebuilds.begin(mount, tenant, partial(self._built, exchange, name))

    def _built(self, exchange: _Exchange, name: str, instance: Instance) -> None:
        exchange.built[name] = instance
        self._rebuilds.drop(name)  # it is not stuck: it waits for the others
        if len(exchange.built) == len(exchange.members):
            for member in exchange.members:
                del self._exchanges[member]
            exchange.then(exchange.built)
