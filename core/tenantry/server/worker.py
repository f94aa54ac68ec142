"""The gunicorn worker, which shares its threads fairly between tenants.

The main loop asks the host's `admission` for the tenant of a request. A request gets a thread at
its tenant's turn, or is refused without a thread. The scoreboard in shared memory shows the
requests and builds in flight, so that the master knows the requests in flight of a dead worker.
`patient_worker` handles slow clients.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from gunicorn.workers.gthread import TConn

from tenantry.http.problem import ProblemResponse, Refusal
from tenantry.http.raw_head import LIVENESS, NO_TENANT, is_whole_request, render_response
from tenantry.observability.scoreboard import Row, Scoreboard
from tenantry.server.crash_budget import CrashBudget, blame
from tenantry.server.crash_report import CrashReport
from tenantry.server.heartbeat import Heartbeat
from tenantry.server.patient_worker import HEAD_END, Connection, PatientWorker, send_problem
from tenantry.server.wait_queue import WaitQueue
from tenantry.settings import read_settings

BUSY = ProblemResponse(
    HTTPStatus.SERVICE_UNAVAILABLE, "The server is busy; try again.", retry_after_s=1
)
"""The response to waiting requests in a worker that has only stuck threads."""

STUCK_LOOK_S = 1.0
"""Seconds between two checks whether any thread is not stuck."""

GIVE_UP_S = 2
"""Seconds for which a worker with only stuck threads still answers 503: the time that gunicorn
gives idle connections for another request."""

SWITCH_INTERVAL_S = 0.0005
"""Seconds that a computing thread keeps the interpreter lock while another thread waits for the
lock. Beside a tenant with 32 clients that computes 50 ms per request without a pause, another
tenant had 0.71 of its calm throughput and 1.5 times its calm p99. With Python's default of 5 ms,
the other tenant had 0.29 of its calm throughput and 4.8 times its calm p99; with 1 ms, 0.31 of its
calm throughput and 2 times its calm p99."""

_logger = logging.getLogger(__name__)


class TenantWorker(PatientWorker):
    """gunicorn's `worker_class`, created in the master and run in its own process."""

    tmp: Heartbeat

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_given_up = False
        self._next_stuck_look = 0.0  # on the monotonic clock
        self.admission: Any = None
        self.wait_queue: WaitQueue[Connection] | None = None
        # The master runs `__init__` before the fork, and creates one scoreboard for all workers,
        # including workers after a HUP.
        self.app.scoreboard = getattr(self.app, "scoreboard", None) or Scoreboard()
        self.row: Row | None = self.app.scoreboard.claim_row()
        self.tmp.close()
        self.tmp = Heartbeat(self.cfg, self, self.row, self._has_struck)
        self.crash_report = CrashReport()

    def _has_struck(self, tenant: str) -> bool:
        strikes: CrashBudget | None = getattr(self.app, "strikes", None)
        return strikes is not None and strikes.has_struck(tenant)

    def init_process(self) -> None:
        """Set the switch interval, and start the worker in the new process."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        super().init_process()

    def load_wsgi(self) -> None:
        """Load the host, while another thread keeps up the heartbeat.

        Each tenant file that hangs takes 5 s, and gunicorn kills a worker without a heartbeat for
        `timeout` seconds. Without the extra heartbeat, a few tenant files that hang would keep
        every worker from starting.
        """
        self.crash_report.enable()
        is_loaded = threading.Event()
        heart = threading.Thread(target=self._beat_until, args=(is_loaded,), name="heartbeat")
        heart.start()
        try:
            super().load_wsgi()
            start = getattr(self.wsgi, "start", None)
            if start is not None:
                start("gunicorn", row=self.row, threads=self.cfg.threads)
        finally:
            is_loaded.set()
            heart.join()
        self.admission = getattr(self.wsgi, "admission", None)
        if self.admission is not None:
            self.wait_queue = WaitQueue(self.admission.share)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to stop the worker, and call `Host.stop` before the last requests have finished."""
        stop = getattr(getattr(self, "wsgi", None), "stop", None)
        if stop is not None:
            stop()
        self._note_stopping()
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Stop the worker immediately."""
        self._note_stopping()
        super().handle_quit(sig, frame)

    def note_exit(self) -> None:
        """Record the tenants that may have ended the worker, and free the worker's row.

        The master calls `note_exit` after the end of the worker process. `note_exit` raises
        nothing, because an exception would end the master and all workers.
        """
        if self.row is None:
            self.crash_report.close()
            return
        try:
            suspects, reason = blame(self.row, self.tmp, self.crash_report.thread())
            if suspects:
                app = self.app  # one object for all workers, even after a HUP
                app.strikes = getattr(app, "strikes", None) or CrashBudget(read_settings().data_dir)
                app.strikes.note(suspects, reason)
        except Exception:
            _logger.exception("worker.blame_failed")
        finally:
            self.row.free()
            self.crash_report.close()

    def _note_stopping(self) -> None:
        if self.row is not None:
            self.row.stop()

    def _beat_until(self, is_loaded: threading.Event) -> None:
        while not is_loaded.wait(1.0):
            self.notify()

    # -- whose turn it is, in the main loop ----------------------------------------------------

    def is_answered(self, conn: Connection, head: bytes) -> bool:
        """Refuse the next request of a kept-alive connection without a thread, if possible."""
        tenant = None if self.admission is None else conn.tenant
        refusal = None if tenant is None else self.admission.refusal(tenant)
        if refusal is None or not self.alive:
            return False
        if not is_whole_request(head) or self.admission.tenant_of(head) != tenant:
            return False
        data = render_response(refusal[0], head, refusal[1], keep_alive=True)
        self.admission.on_refusal(tenant, head, data)
        conn.set_timeout()
        self.keepalived_conns.remove(conn)
        self.keepalived_conns.append(conn)  # the queue is in the order of timeouts
        try:
            is_sent = conn.raw.send(data) == len(data)
        except OSError:
            is_sent = False
        if not is_sent:
            self.end_waiting(conn, self.keepalived_conns)
        return True

    def take_turn(self, conn: Connection) -> None:
        """Give the connection to a thread, or let the connection wait for its tenant's turn."""
        conn.tenant = None
        if self.wait_queue is not None and isinstance(conn, Connection):  # not TLS
            if not self.admission.is_operators(conn.server):
                tenant = conn.tenant = self.admission.tenant_of(conn.head)
                if (refusal := self._refusal(self.wait_queue, tenant)) is not None:
                    self._turn_away(conn, tenant, *refusal)
                    return
            if not self.wait_queue.arrive(conn.tenant, conn):
                return
        self.hand_over(conn)

    def _refusal(self, wait_queue: WaitQueue[Connection], tenant: str) -> Refusal | None:
        """Return the response that refuses the tenant's next request without a thread, or None."""
        if tenant == LIVENESS:
            return None if wait_queue.may_run(tenant) else (self.admission.live, [])
        refusal: Refusal | None = self.admission.refusal(tenant)
        if refusal is None and wait_queue.is_full(tenant):
            return self.admission.busy(tenant), []
        return refusal

    def _turn_away(
        self,
        conn: Connection,
        tenant: str,
        problem: ProblemResponse,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Answer without a thread; keep the connection if the head is a whole request."""
        end = conn.head.find(HEAD_END) + len(HEAD_END)
        head, rest = conn.head[:end], conn.head[end:]
        has_room = len(self.keepalived_conns) < self.max_keepalived
        is_kept = self.alive and has_room and is_whole_request(head)
        data = render_response(problem, head, headers, keep_alive=is_kept)
        if tenant not in (NO_TENANT, LIVENESS):
            self.admission.on_refusal(tenant, head, data)
        try:
            is_sent = conn.raw.send(data) == len(data)
        except OSError:
            is_sent = False
        if not is_sent:  # the client has left or does not read
            self.drop(conn)
        elif not is_kept:
            self.linger(conn)
        elif rest:
            self.method_queue.defer(self.await_head, conn, rest)  # after the events that wait now
        else:
            conn.head = b""
            self.keep(conn)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait for events, at most until a queued request may run or has waited too long."""
        left_s = None if self.wait_queue is None else self.wait_queue.left_s()
        super().wait_for_and_dispatch_events(timeout if left_s is None else min(timeout, left_s))
        if self.wait_queue is not None and left_s is not None:
            for conn in self.wait_queue.ready():
                self.hand_over(conn)
            for tenant, conn in self.wait_queue.expired():
                self._turn_away(conn, tenant, self.admission.busy(tenant))

    def end_turn(self, conn: TConn) -> None:
        """Start the queued requests that may run after the end of a request."""
        if self.wait_queue is None or not isinstance(conn, Connection):
            return
        others = self.wait_queue.end(conn.tenant)
        for other in others:
            self.hand_over(other)
        if not others and self.wait_queue.left_s() is not None:
            # Wakes the main loop, because a pause may have begun.
            self.method_queue.defer(lambda: None)

    def _cap_keepalive(self, deadline: float) -> None:
        super()._cap_keepalive(deadline)
        if not self._is_given_up:
            self._note_stopping()  # the worker may have reached `max_requests`

    def handle(self, conn: TConn) -> Any:
        """Serve one request that the main loop has admitted, in the calling thread."""
        if self.wait_queue is not None and isinstance(conn, Connection):
            self.admission.let_in(conn.tenant)
        return super().handle(conn)

    # -- when all threads are stuck -------------------------------------------------------------

    def run(self) -> None:
        """Serve until the end of the worker, without waiting for stuck threads."""
        super().run()
        if self._is_given_up:
            os._exit(1)  # not a normal end, so the tenants of stuck threads get strikes

    def murder_pending(self) -> None:
        """End connections that have waited too long, and check for stuck threads every second."""
        super().murder_pending()
        now = time.monotonic()
        if now >= self._next_stuck_look and self.alive:
            self._next_stuck_look = now + STUCK_LOOK_S
            self._look_for_threads()

    def _look_for_threads(self) -> None:
        """Stop the worker if every thread has a request that hangs in its app over its deadline.

        The main loop of a stopping worker answers 503 to queued requests, and gunicorn starts
        another worker.
        """
        count_held = getattr(getattr(self, "wsgi", None), "count_held_threads", lambda: 0)
        if count_held() < self.cfg.threads:
            return
        _logger.error("worker.given_up", extra={"stuck": self.cfg.threads})
        self._is_given_up, self.alive = True, False
        self.cfg.set("graceful_timeout", GIVE_UP_S)  # sets the timeout of this process only
        getattr(self.wsgi, "stop", lambda: None)()
        for conn in self.tpool.shutdown():
            self.enqueue_req(conn)

    def enqueue_req(self, conn: TConn) -> None:
        """Give a request to a thread, or refuse the request if no thread will become free."""
        if self._is_given_up and isinstance(conn, Connection):
            self.method_queue.defer(self._give_up, conn)
        else:
            super().enqueue_req(conn)

    def _give_up(self, conn: Connection) -> None:
        send_problem(conn.raw, BUSY)
        self.linger(conn)
