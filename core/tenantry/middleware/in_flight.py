"""The requests in flight of one process: which tenant may run another request, and what runs now.

A request enters when the request may run, and leaves exactly once, when the server closes its
response. The scoreboard also shows each request and its tenant, in memory that all processes of the
host share. Limits therefore hold for the whole host, and the master knows what ran in a dead
worker. The counts belong to the tenant's name, so a new instance does not reset them.
"""

import sys
import threading
import time
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

from tenantry.http.problem import ProblemResponse
from tenantry.http.request_record import RequestRecord
from tenantry.middleware.fair_share import FairShare
from tenantry.observability.scoreboard import Row
from tenantry.settings import HostSettings
from tenantry.tenants.model import Tenant

RETRY_AFTER_S = 1
"""`Retry-After` of a refused request, in seconds. After one second, most requests that hold a slot
have ended."""

TENANT_BUSY = ProblemResponse(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "This application already has its maximum number of requests in progress.",
    retry_after_s=RETRY_AFTER_S,
)

LONG_NS = 5_000_000
"""Duration in nanoseconds from which a request counts as long: the longest time that a request may
keep the loop of a server waiting."""

OFTEN_LONG = 0.3
"""Share of long requests from which a tenant's next request is not expected to be short."""

_WEIGHT = 0.2
"""Weight of the newest request in the share of a tenant's long requests."""

_clock_of_thread = getattr(time, "pthread_getcpuclockid", None)  # macOS lacks this function


class RequestLimits(NamedTuple):
    """The limits of one tenant's requests."""

    max_requests: int | None
    """Maximum number of requests in flight, in all processes of the host; None for no maximum."""
    deadline_s: float
    """Seconds after which a request is overdue."""
    is_answering: bool
    """Whether the client of an overdue request gets 504 if nothing has been sent."""

    @staticmethod
    def of(tenant: Tenant | None, settings: HostSettings) -> "RequestLimits":
        """Return the limits of a tenant; those of the host for a tenant that is not known yet."""
        if tenant is None:
            most, deadline_s, action = None, None, None
        else:
            most, deadline_s = tenant.max_concurrent_requests, tenant.deadline_s
            action = tenant.deadline_action
        return _shared_limits(
            settings.max_concurrent_requests if most is None else most,
            deadline_s or settings.deadline_s,
            (action or settings.deadline_action) == "answer",
        )


_shared_limits = lru_cache(maxsize=1024)(RequestLimits)
"""Most of thousands of tenants have the same limits."""


class RequestsInFlight:
    """The requests in flight of one process, for the life of the process. Thread-safe.

    Args:
        share: the rule of fair share in this process.
        row: the scoreboard's row for the requests of this process; None if the process has no row.
    """

    def __init__(self, share: FairShare, row: Row | None = None) -> None:
        self.share = share
        self._row = row
        # Protects `_own`, `_total`, `_long_share` and the counts of `share`.
        self._lock = threading.Lock()
        self._own: dict[str, int] = {}  # this dict contains only tenants with a request in flight
        self._total = 0
        self._long_share: dict[str, float] = {}  # tenant → share of its requests that are long
        self._records: dict[RequestRecord, None] = {}  # single dict operations are atomic

    def enter(self, tenant: str, limits: RequestLimits) -> RequestRecord | None:
        """Return the record of a request that may run now; None if the request has to wait.

        The record has `is_over` set if the tenant already has its maximum number of requests in
        flight. Two requests that arrive at the same moment may both be refused, but a tenant never
        has more than `limits.max_requests` requests in flight.
        """
        with self._lock:
            own = self._own.get(tenant, 0)
            if not self.share.admits(tenant, own, self._total, len(self._own)):
                return None
            self._own[tenant] = own + 1
            self._total += 1
        record = RequestRecord()
        record.tenant = tenant
        record.limits = limits
        record.is_in_flight = True
        record.is_quick = self._long_share.get(tenant, 0.0) < OFTEN_LONG
        row = self._row
        if row is not None:
            record.cell = row.enter(tenant)
            record.entered_by = threading.get_ident()
        self._records[record] = None
        if limits.max_requests is not None:
            seen = 0 if row is None else row.scoreboard.count_requests(tenant)
            if max(seen, own + 1) > limits.max_requests:
                self.leave(record)
                record.is_over = True
        return record

    def move_to_thread(self, record: RequestRecord) -> None:
        """Show on the scoreboard that the calling thread runs a request of another thread."""
        if record.cell is not None and self._row is not None:
            self._row.move_to_thread(record.cell)

    def leave(self, record: RequestRecord) -> None:
        """Let another request run after a request has ended. Idempotent.

        The record has the duration and the CPU time of the request, if the request has run.
        """
        if not record.is_in_flight or self._records.pop(record, record) is record:
            return  # another thread has removed the record
        record.is_in_flight = False
        if record.cell is not None and self._row is not None:
            self._row.leave(record.cell)
        tenant = record.tenant
        with self._lock:
            self._total -= 1
            left = self._own[tenant] - 1
            if left:
                self._own[tenant] = left
            else:
                del self._own[tenant]
            if record.begun_ns:  # a refused request has used no CPU time
                share = self._long_share.get(tenant, 0.0)
                is_long = record.wall_ns >= LONG_NS
                self._long_share[tenant] = share + _WEIGHT * (is_long - share)
                self.share.note_used(
                    tenant,
                    record.processor_ns / 1e9,
                    record.wall_ns / 1e9,
                    noted_s=record.noted_s,
                )

    def counts(self) -> dict[str, int]:
        """Return the number of requests in flight of each tenant with requests in flight."""
        with self._lock:
            return dict(self._own)

    def records(self) -> list[RequestRecord]:
        """Return the records of the requests in flight."""
        return list(self._records)

    def note_running(self) -> None:
        """Count the CPU seconds of running requests. Call `note_running` regularly.

        Without `note_running`, a request that computes for ten seconds would not count for ten
        seconds.
        """
        if _clock_of_thread is None or not self._records:
            return
        threads = sys._current_frames()  # noqa: SLF001 - documented; lists the threads that exist
        with self._lock:  # while the lock is held, no request ends
            for record in list(self._records):
                if record.begun_ns and record.thread in threads:
                    used_s = time.clock_gettime(_clock_of_thread(record.thread))
                    used_s -= record.processor_begun_ns / 1e9
                    self.share.note_running(record.tenant, max(used_s - record.noted_s, 0.0))
                    record.noted_s = used_s
