"""Concurrency: the WSGI layer that limits the requests in flight of each tenant.

A request takes a slot on arrival, and releases the slot exactly once, when the server closes the
response body. The count of slots belongs to the tenant's name, so a new instance does not reset the
count of requests in flight on the old instance.
"""

import sys
import threading
import time
from collections.abc import Iterable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

from tenantry.http.problem import ProblemResponse
from tenantry.http.response_close import on_close
from tenantry.middleware.fair_share import FairShare
from tenantry.observability.scoreboard import Row

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

RETRY_AFTER_S = 1
"""`Retry-After` of a refused request, in seconds. After one second, most requests that hold a slot
have ended."""

BUSY = ProblemResponse(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "This application already has its maximum number of requests in progress.",
    retry_after_s=RETRY_AFTER_S,
)

_clock_of_thread = getattr(time, "pthread_getcpuclockid", None)  # missing on macOS


class Slot:
    """One request in flight, created by `Slots.take` and ended once by `Slots.release`."""

    __slots__ = ("begun_at", "cell", "noted_s", "processor_begun_s", "tenant", "thread")

    def __init__(self, tenant: str, cell: int | None) -> None:
        self.tenant = tenant
        self.cell = cell
        self.thread = threading.get_ident()
        self.begun_at = time.monotonic()
        self.processor_begun_s = time.thread_time()
        self.noted_s = 0.0
        """CPU seconds of the request that fair share has already counted."""


class Slots:
    """The requests in flight in this process, by tenant, for the life of the process. Thread-safe.

    Args:
        share: the rule of fair share in this process.
        row: the scoreboard's row for the requests of this process; None if there is none.
    """

    def __init__(self, share: FairShare, row: Row | None = None) -> None:
        self.share = share
        self._row = row
        self._lock = threading.Lock()  # protects `_counts`, `_in_flight` and the counts of `share`
        self._counts: dict[str, int] = {}  # contains only tenants with a request in flight
        self._in_flight = 0
        self._running: dict[Slot, bool] = {}  # single dict operations are atomic
        self._admitted = threading.local()  # the tenant of the next request of this thread

    def in_use(self) -> dict[str, int]:
        """Return the number of requests in flight of each tenant with requests in flight."""
        with self._lock:
            return dict(self._counts)

    def let_in(self, tenant: str | None) -> None:
        """Record on the calling thread that the server has admitted the next request of `tenant`.

        Threads start in any order. A second question to the fair share refused 13 of 900 admitted
        requests (eight clients, eight threads).
        """
        self._admitted.tenant = tenant

    def take(self, tenant: str, most: int | None) -> Slot | None:
        """Take a slot for a request on this thread; None if the tenant may not have another slot.

        Args:
            tenant: the tenant's name.
            most: the tenant's maximum number of requests in flight, over all processes of the
                scoreboard; None for no maximum. Two requests that arrive at the same moment may
                both be refused, but a tenant never has more than `most` requests in flight.
        """
        is_admitted = getattr(self._admitted, "tenant", None) == tenant
        with self._lock:
            count = self._counts.get(tenant, 0)
            if not is_admitted and not self.share.admits(tenant, count, self._in_flight):
                return None
            self._counts[tenant] = count + 1
            self._in_flight += 1
        slot = Slot(tenant, None if self._row is None else self._row.enter(tenant))
        if most is not None:
            seen = 0 if self._row is None else self._row.scoreboard.count_requests(tenant)
            if max(seen, count + 1) > most:
                self.release(slot)
                return None
        self._running[slot] = True
        return slot

    def release(self, slot: Slot) -> None:
        """Release a slot, so that another request can take a slot."""
        tenant = slot.tenant
        if self._row is not None and slot.cell is not None:
            self._row.leave(slot.cell)
        is_same_thread = slot.thread == threading.get_ident()  # the CPU clock is the thread's own
        used_s = time.thread_time() - slot.processor_begun_s if is_same_thread else 0.0
        took_s = time.monotonic() - slot.begun_at
        with self._lock:
            has_run = self._running.pop(slot, False)  # a refused request has used no CPU time
            self._in_flight -= 1
            left = self._counts[tenant] - 1
            if left:
                self._counts[tenant] = left
            else:
                del self._counts[tenant]
            if has_run:
                self.share.note_used(tenant, used_s, took_s, noted_s=slot.noted_s)

    def note_running(self) -> None:
        """Count the CPU seconds of running requests. Call `note_running` regularly.

        Without `note_running`, a request that computes for ten seconds would not count for ten
        seconds.
        """
        if _clock_of_thread is None or not self._running:
            return
        threads = sys._current_frames()  # noqa: SLF001 - documented; lists the threads that exist
        with self._lock:  # no running request ends meanwhile
            for slot in list(self._running):
                if slot.thread in threads:
                    used_s = time.clock_gettime(_clock_of_thread(slot.thread))
                    used_s -= slot.processor_begun_s
                    self.share.note_running(slot.tenant, max(used_s - slot.noted_s, 0.0))
                    slot.noted_s = used_s


class ConcurrencyLimit:
    """WSGI middleware: a request gets a slot of its tenant, or an immediate 503. Thread-safe."""

    __slots__ = ("_app", "_most", "_slots", "_tenant")

    def __init__(self, app: "WSGIApplication", slots: Slots, tenant: str, most: int | None) -> None:
        self._app = app
        self._slots = slots
        self._tenant = tenant
        self._most = most

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Take a slot and call the app; the `close()` of the body releases the slot."""
        slot = self._slots.take(self._tenant, self._most)
        if slot is None:
            return BUSY(environ, start_response)
        release = partial(self._slots.release, slot)
        try:
            return on_close(self._app(environ, start_response), release)
        except BaseException:
            release()
            raise
