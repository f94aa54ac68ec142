"""Holds the resources that all tenants of a process share.

The resources are database connections, memory for decoding images, request slots, rate limits,
failed attempts, running requests, and the keys that verify tokens. `app.stack` passes the resources
to each app's layers.
"""

import threading
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from tenantry.database.budget import ConnectionBudget
from tenantry.files.memory_budget import DECODING_BYTES, DECODING_WAIT_S, MemoryBudget
from tenantry.http.problem import Refusal
from tenantry.http.request_record import current_request
from tenantry.middleware.authentication import Verify
from tenantry.middleware.deadlines import Watchdog
from tenantry.middleware.failed_attempts import FailedAttempts
from tenantry.middleware.fair_share import FairShare
from tenantry.middleware.in_flight import RequestsInFlight
from tenantry.observability.scoreboard import Row
from tenantry.observability.usage_counters import UsageCounters
from tenantry.private_code.sources import Sources
from tenantry.settings import HostSettings
from tenantry.tenants.model import Tenant
from tenantry.tenants.openid import OpenId

if TYPE_CHECKING:
    from tenantry.middleware.rate_limit import RateLimiter


RATES_FOLDER = ".rates"
"""Name of the folder below `<data>` with the counts of rate limits."""


class ProcessResources:
    """The shared resources of one process.

    Thread-safe. After a fork, the child process needs a new instance.

    `close()` closes the rate storage and removes shared modules. Each app closes its own database
    connections.

    Args:
        settings: the host's settings.
        usage: the usage counters of the process.
        threads: the number of requests that the server runs concurrently in this process, or None
            if unknown.
        row: the scoreboard row that shows the requests of this process, or None.
    """

    def __init__(
        self,
        settings: HostSettings,
        usage: UsageCounters,
        *,
        threads: int | None = None,
        row: Row | None = None,
    ) -> None:
        self.usage = usage
        self.row = row
        self.budget = ConnectionBudget(settings.db_connections)
        self.decoding_memory = MemoryBudget(DECODING_BYTES, DECODING_WAIT_S)
        self.in_flight = RequestsInFlight(FairShare(threads), row)
        self.watchdog = Watchdog(self.in_flight, note_overdue=partial(usage.add, overdue=1))
        self.failed_attempts = FailedAttempts()
        self.sources = Sources()
        self.note_query = partial(_note_query, usage)
        self._rates_url = settings.rate_limit_storage
        self._rates_folder = settings.data_dir / RATES_FOLDER
        self._lock = threading.Lock()  # the lock protects the creation of the rate limiter
        self._rates: RateLimiter | None = None
        self.over: dict[str, Any] = {}
        """The tenants that were over their rate, which the rate limiter keeps."""
        self.guarded: dict[str, None] = {}
        """The tenants that were built with keys. A tenant without keys can remain in the dict."""
        self._token_checks: WeakValueDictionary[tuple[str, str, OpenId], Verify] = (
            WeakValueDictionary()
        )

    def count_in_flight(self) -> Mapping[str, int]:
        """Return the number of requests in flight per tenant, in all processes of the server."""
        if self.row is None:
            return self.in_flight.counts()
        return self.row.scoreboard.requests_in_flight()

    # -- rates ----------------------------------------------------------------------------------

    def rates(self) -> "RateLimiter":
        """Return the rate limiter of all tenants, which is created on first use."""
        from tenantry.middleware.rate_limit import RateLimiter  # noqa: PLC0415 - takes 0.3 s

        with self._lock:
            if self._rates is None:
                # A command that sends one request does not use up the rate of the running host.
                folder = None if self.row is None else self._rates_folder
                note = partial(self.usage.add, uncounted=1)
                self._rates = RateLimiter(
                    self._rates_url, folder, note_uncounted=note, over=self.over
                )
            return self._rates

    def known_over(self, tenant: str) -> Refusal | None:
        """Return a 429 response if the tenant has certainly exceeded its rate limit."""
        return None if self._rates is None else self._rates.known_over(tenant)

    @property
    def uncounted_total(self) -> int:
        """Number of requests that were not counted, because the rate storage did not respond."""
        return 0 if self._rates is None else self._rates.unanswered_total

    # -- tokens ---------------------------------------------------------------------------------

    def token_check(self, tenant: Tenant) -> Verify | None:
        """Return a function that verifies a tenant's tokens, or None if the tenant accepts none.

        When a tenant is rebuilt, the new app reuses the issuer's keys that the old app has
        downloaded.
        """
        if tenant.oidc is None:
            return None
        from tenantry.middleware.oidc import TokenCheck  # noqa: PLC0415 - the import takes 10 MiB

        key = tenant.name, repr(tenant.oidc), tenant.oidc  # `repr` distinguishes 1 from True
        # If two concurrent builds create two token checks, each token check downloads the issuer's
        # keys.
        check = self._token_checks.get(key) or TokenCheck(tenant.oidc, tenant.name)
        self._token_checks[key] = check
        return check

    def close(self) -> None:
        """Close the rate storage, and remove the modules that all tenants share. Idempotent."""
        self.sources.close()
        if self._rates is not None:
            self._rates.close()


def _note_query(usage: UsageCounters, tenant: str, took_ns: int) -> None:
    """Count a database query for its tenant and, if there is one, for the current request."""
    usage.add(tenant, queries=1, database_ns=took_ns)
    record = current_request.get()
    if record is not None:
        record.queries += 1
        record.database_ns += took_ns
