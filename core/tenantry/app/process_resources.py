"""What the tenants of one process share, each thing with the rule that keeps them apart.

Database connections, slots, rates, what runs, and the keys of tokens: made when a process begins to
serve. How an app gets its part of it is the affair of `layers`.
"""

import threading
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from tenantry.database.budget import ConnectionBudget
from tenantry.http.problem import Refusal
from tenantry.http.request_context import current_request
from tenantry.middleware.authentication import Verify
from tenantry.middleware.concurrency import Slots
from tenantry.middleware.deadlines import RunningRequests
from tenantry.middleware.fair_share import FairShare
from tenantry.observability.scoreboard import Row
from tenantry.observability.usage_counters import UsageCounters
from tenantry.settings import HostSettings
from tenantry.storage.memory_budget import DECODING_BYTES, DECODING_WAIT_S, MemoryBudget
from tenantry.tenants.model import Tenant
from tenantry.tenants.openid import OpenId

if TYPE_CHECKING:
    from tenantry.middleware.rate_limit import RateLimiter


class ProcessResources:
    """One process's; one that is forked from it needs its own. Thread-safe.

    `close()` ends what would go on by itself; connections are closed with the apps that have them.

    Args:
        settings: those of the host.
        ledger: where it is counted who used what.
        threads: how many requests the server runs at once in this process; None where that is not
            known.
        row: where the board shows what is in flight here; None: nowhere.
    """

    def __init__(
        self,
        settings: HostSettings,
        ledger: UsageCounters,
        *,
        threads: int | None = None,
        row: Row | None = None,
    ) -> None:
        self.ledger = ledger
        self.row = row
        self.budget = ConnectionBudget(settings.db_connections)
        self.decoding_memory = MemoryBudget(DECODING_BYTES, DECODING_WAIT_S)
        self.requests = RunningRequests(note_overdue=ledger.note_overdue)
        self.share = FairShare(threads)
        self.slots = Slots(self.share, row)
        self.note_query = partial(_note_query, ledger)  # one for all apps
        self._rates_url = settings.rate_limit_storage
        self._lock = threading.Lock()  # protects the first look at rates
        self._rates: RateLimiter | None = None
        self._token_checks: WeakValueDictionary[tuple[str, str, OpenId], Verify] = (
            WeakValueDictionary()
        )

    def in_flight(self) -> Mapping[str, int]:
        """Return how many requests of each tenant are in flight, in all processes of the server."""
        return self.slots.in_use() if self.row is None else self.row.board.in_flight()

    # -- rates ----------------------------------------------------------------------------------

    def rates(self) -> "RateLimiter":
        """Return the rates of all tenants; made when the first one has a rate."""
        from tenantry.middleware.rate_limit import RateLimiter  # noqa: PLC0415 - takes 0.3 s

        with self._lock:
            if self._rates is None:
                processes = self.row.board.processes if self.row else lambda: 1
                note = self.ledger.note_uncounted
                self._rates = RateLimiter(self._rates_url, processes, note_uncounted=note)
            return self._rates

    def known_over(self, tenant: str) -> Refusal | None:
        """Return what a tenant that is surely over its rate still gets, with its headers."""
        return None if self._rates is None else self._rates.known_over(tenant)

    @property
    def uncounted_total(self) -> int:
        """Requests that passed uncounted, because the storage of rates did not answer."""
        return 0 if self._rates is None else self._rates.unanswered_total

    # -- tokens ---------------------------------------------------------------------------------

    def token_check(self, tenant: Tenant) -> Verify | None:
        """Return the check of a tenant's tokens; a rebuilt instance goes on with the same keys.

        None where it takes no tokens.
        """
        if tenant.oidc is None:
            return None
        from tenantry.middleware.oidc import TokenCheck  # noqa: PLC0415 - 10 MiB, for who needs it

        known = tenant.name, repr(tenant.oidc), tenant.oidc  # 1 and True are equal; claims are not
        # Two builds at once may make two: then the keys are read twice.
        check = self._token_checks.get(known) or TokenCheck(tenant.oidc, tenant.name)
        self._token_checks[known] = check
        return check

    def close(self) -> None:
        """Ask the storage of rates no more. Idempotent."""
        if self._rates is not None:
            self._rates.close()


def _note_query(ledger: UsageCounters, tenant: str, took_ns: int) -> None:
    """Count a query for its tenant and, if a request made it, for that."""
    ledger.note_query(tenant, took_ns)
    context = current_request.get()
    if context is not None:
        context.queries += 1
        context.database_ns += took_ns
