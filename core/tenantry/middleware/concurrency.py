"""Slots: requests in flight are bounded per tenant, before its app is called.

One is taken when a request comes in and given back when the server closes the response's body,
exactly once, however the request ends. Counted by the tenant's name over all its instances: a swap
does not forget what is in flight on the old one.
"""

import sys
import threading
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

from tenantry.http.problem import ProblemResponse
from tenantry.http.response_close import on_close
from tenantry.middleware.fair_share import FairShare
from tenantry.observability.scoreboard import Row, Tag, tag

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

RETRY_AFTER_S = 1
"""What clients are told: most requests that hold a slot have ended by then."""

BUSY = ProblemResponse(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "This application has as many requests in progress as it may have.",
    retry_after_s=RETRY_AFTER_S,
)


_clock_of_thread = getattr(time, "pthread_getcpuclockid", None)  # not on macOS


class Slots:
    """What is in flight in this process, by tenant. Thread-safe; lives as long as the process.

    Args:
        share: the rule of this process.
        row: where the board shows what is in flight here; None: nowhere.
    """

    def __init__(self, share: FairShare, row: Row | None = None) -> None:
        self.share = share
        self._row = row
        self._lock = threading.Lock()  # protects the two below, and what `share` notes
        self._own: dict[str, int] = {}  # only of who has any
        self._in_flight = 0
        self._running: dict[Slot, bool] = {}  # its own methods are atomic
        self._let_in = threading.local()  # the tenant whose request a thread runs next

    def in_use(self) -> dict[str, int]:
        """Return how many requests of each tenant are in flight here; none of who has none."""
        with self._lock:
            return dict(self._own)

    def let_in(self, tenant: str | None) -> None:
        """Note on a thread whose request it runs next, for which the share has been asked.

        Asked again, in whatever order threads come to it, the rule refused requests of tenants
        that had been told to come in: 13 of 900, eight clients at eight threads.
        """
        self._let_in.tenant = tenant

    def take(self, whose: Tag, most: int | None) -> "Slot | None":
        """Take a slot for a request on this thread; None if the tenant may have no other.

        Args:
            whose: the tenant.
            most: how many it may have at once over all processes of the board; None: any number.
                Of two that come at one moment both may be refused, but never is one too many in.
        """
        tenant = whose.tenant
        is_let_in = getattr(self._let_in, "tenant", None) == tenant
        with self._lock:
            own = self._own.get(tenant, 0)
            if not is_let_in and not self.share.admits(tenant, own, self._in_flight):
                return None
            self._own[tenant] = own + 1
            self._in_flight += 1
        slot = Slot(self, tenant, None if self._row is None else self._row.enter(whose))
        if most is not None:
            seen = 0 if self._row is None else self._row.board.count(whose)
            if max(seen, own + 1) > most:
                slot.give_back()
                return None
        self._running[slot] = True
        return slot

    def note_running(self) -> None:
        """Note what the requests that run have computed so far; now and then, on any thread.

        Else one that computes for ten seconds would count nothing for so long.
        """
        if _clock_of_thread is None or not self._running:
            return
        threads = sys._current_frames()  # noqa: SLF001 - those that are there
        with self._lock:  # none of these requests ends meanwhile
            for slot in list(self._running):
                if slot.thread in threads:
                    used_s = time.clock_gettime(_clock_of_thread(slot.thread)) - slot.begun_s
                    self.share.note_running(slot.tenant, max(used_s - slot.noted_s, 0.0))
                    slot.noted_s = used_s

    def _give_back(self, slot: "Slot") -> None:
        tenant = slot.tenant
        if self._row is not None and slot.cell is not None:
            self._row.leave(slot.cell)
        used_s, took_s = slot.used_s(), slot.took_s()
        with self._lock:
            has_run = self._running.pop(slot, False)  # else it was refused: that says nothing
            self._in_flight -= 1
            left = self._own[tenant] - 1
            if left:
                self._own[tenant] = left
            else:
                del self._own[tenant]
            if has_run:
                self.share.note_used(tenant, used_s, took_s, noted_s=slot.noted_s)


class Slot:
    """One request's; whoever took it gives it back once."""

    __slots__ = ("_begun_at", "_slots", "begun_s", "cell", "noted_s", "tenant", "thread")

    def __init__(self, slots: Slots, tenant: str, cell: int | None) -> None:
        self._slots = slots
        self.tenant = tenant
        self.cell = cell
        self.thread = threading.get_ident()
        self.begun_s = time.thread_time()
        """Of its thread's processor time."""
        self.noted_s = 0.0
        """Processor seconds that the share knows of, while it runs."""
        self._begun_at = time.monotonic()

    def took_s(self) -> float:
        """Return the seconds since it was taken."""
        return time.monotonic() - self._begun_at

    def used_s(self) -> float:
        """Return the processor seconds of its thread since; 0 on another thread, which has none."""
        if self.thread != threading.get_ident():
            return 0.0
        return time.thread_time() - self.begun_s

    def give_back(self) -> None:
        """Let another request have it."""
        self._slots._give_back(self)  # noqa: SLF001 - one thing in two classes


class ConcurrencyLimit:
    """WSGI middleware: a request gets a slot of its tenant, or 503 at once. Safe in any thread."""

    __slots__ = ("_app", "_most", "_slots", "_whose")

    def __init__(self, app: "WSGIApplication", slots: Slots, tenant: str, most: int | None) -> None:
        self._app = app
        self._slots = slots
        self._whose = tag(tenant)
        self._most = most

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Call the app with a slot taken; the body's `close` gives it back."""
        slot = self._slots.take(self._whose, self._most)
        if slot is None:
            return BUSY(environ, start_response)
        try:
            return on_close(self._app(environ, start_response), slot.give_back)
        except BaseException:
            slot.give_back()
            raise
