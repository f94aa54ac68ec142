"""The gunicorn worker: one tenant's requests do not take the threads of the others.

An app that has a `door` (our host) says there, in the main loop, whose a request is: it gets a
thread when it is its tenant's turn, or is refused without one. What is in flight is on a board in
shared memory, so that the master knows who was when a worker dies. Knows gunicorn only; slow
clients are the affair of `patient_worker`.
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
from tenantry.server.crash_budget import CrashBudget
from tenantry.server.crash_report import CrashReport
from tenantry.server.heartbeat import Heartbeat, blame
from tenantry.server.patient_worker import HEAD_END, Connection, PatientWorker, send_problem
from tenantry.server.wait_queue import WaitQueue
from tenantry.settings import read_settings

BUSY = ProblemResponse(
    HTTPStatus.SERVICE_UNAVAILABLE, "The server is busy; try again.", retry_after_s=1
)
"""To requests that wait for a worker whose threads are all held."""

STUCK_LOOK_S = 1.0
"""Between two looks whether a request could get a thread at all."""

GIVE_UP_S = 2
"""How long a worker whose threads are all stuck still answers 503: as long as gunicorn gives idle
connections to send the request that may be under way."""

SWITCH_INTERVAL_S = 0.0005
"""How long a thread that computes keeps the interpreter lock when others want it. Beside a tenant
that computes 50 ms per request without a rest, 32 clients, another one had 0.71 of its calm
throughput and 1.5 times its p99; with Python's own 5 ms 0.29 and 4.8 times, with 1 ms 0.31 and 2
times."""

_logger = logging.getLogger(__name__)


class TenantWorker(PatientWorker):
    """`worker_class` of `config/gunicorn.conf.py`."""

    tmp: Heartbeat

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_given_up = False
        self._next_stuck_look = 0.0  # on the monotonic clock
        self.admission: Any = None
        self.room: WaitQueue[Connection] | None = None
        # In the master, before the fork; one board for all workers, those after a HUP too.
        self.app.board = getattr(self.app, "board", None) or Scoreboard()
        self.row: Row | None = self.app.board.claim()
        self.tmp.close()
        self.tmp = Heartbeat(self.cfg, self, self.row, self._has_struck)
        self.crash_report = CrashReport()

    def _has_struck(self, tenant: str) -> bool:
        strikes: CrashBudget | None = getattr(self.app, "strikes", None)
        return strikes is not None and strikes.has_struck(tenant)

    def init_process(self) -> None:
        """Begin, in the new process."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        super().init_process()

    def load_wsgi(self) -> None:
        """Load the host, and let the heart beat meanwhile.

        Each tenant file that hangs costs 5 s, and a worker whose heart stands still for `timeout`
        is killed: seven such files would stop the host for ever.
        """
        self.crash_report.enable()
        is_loaded = threading.Event()
        heart = threading.Thread(target=self._beat_until, args=(is_loaded,), name="heart")
        heart.start()
        try:
            super().load_wsgi()
            start = getattr(self.wsgi, "start", None)
            if start is not None:
                # An app that wants to know that its process serves now: our host.
                start("gunicorn", row=self.row, threads=self.cfg.threads)
        finally:
            is_loaded.set()
            heart.join()
        self.admission = getattr(self.wsgi, "admission", None)
        if self.admission is not None:
            self.room = WaitQueue(self.admission.share)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to stop; the app learns it before its last requests have finished."""
        stop = getattr(getattr(self, "wsgi", None), "stop", None)
        if stop is not None:
            stop()
        self._note_stopping()
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """End now."""
        self._note_stopping()
        super().handle_quit(sig, frame)

    def note_exit(self) -> None:
        """Note who may have ended this worker, and let another have its place on the board.

        In the master, when it is gone. Raises nothing: the master would end with all its workers.
        """
        if self.row is None:
            self.crash_report.close()
            return
        try:
            suspects, reason = blame(self.row, self.tmp, self.crash_report.thread())
            if suspects:
                app = self.app  # one for all workers, those after a HUP too
                app.strikes = getattr(app, "strikes", None) or CrashBudget(read_settings().data_dir)
                app.strikes.note(suspects, reason)
        except Exception:
            _logger.exception("worker.exit_not_judged")
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
        """Refuse a kept-alive connection's next request; it stays in the poller meanwhile."""
        tenant = None if self.admission is None else conn.tenant
        refusal = None if tenant is None else self.admission.refusal(tenant)
        if refusal is None or not self.alive:
            return False
        if not is_whole_request(head) or self.admission.whose(head) != tenant:
            return False
        data = render_response(refusal[0], head, refusal[1], keep_alive=True)
        self.admission.on_refusal(tenant, head, data)
        conn.set_timeout()
        self.keepalived_conns.remove(conn)
        self.keepalived_conns.append(conn)  # they are in the order of their time
        try:
            is_sent = conn.raw.send(data) == len(data)
        except OSError:
            is_sent = False
        if not is_sent:
            self.end_waiting(conn, self.keepalived_conns)
        return True

    def take_turn(self, conn: Connection) -> None:
        """Give the connection to a thread when it is its tenant's turn."""
        conn.tenant = None
        if self.room is not None and isinstance(conn, Connection):  # not under TLS, uncounted there
            if not self.admission.is_operators(conn.server):
                tenant = conn.tenant = self.admission.whose(conn.head)
                if (refusal := self._refusal(self.room, tenant)) is not None:
                    self._turn_away(conn, tenant, *refusal)
                    return
            if not self.room.arrive(conn.tenant, conn):
                return
        self.hand_over(conn)

    def _refusal(self, room: WaitQueue[Connection], tenant: str) -> Refusal | None:
        """Return what answers the tenant's next request at once, without a thread."""
        if tenant == LIVENESS:
            return None if room.may_run(tenant) else (self.admission.live, [])
        refusal: Refusal | None = self.admission.refusal(tenant)
        if refusal is None and room.is_full(tenant):
            return self.admission.busy(tenant), []
        return refusal

    def _turn_away(
        self,
        conn: Connection,
        tenant: str,
        problem: ProblemResponse,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Answer without a thread; the connection stays open where it is sure what follows."""
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
        if not is_sent:  # the client has gone, or does not read
            self.drop(conn)
        elif not is_kept:
            self.linger(conn)
        elif rest:
            self.method_queue.defer(self.await_head, conn, rest)  # after who is waiting now
        else:
            conn.head = b""
            self.keep(conn)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait for events, and no longer than the next request may wait for its turn."""
        left_s = None if self.room is None else self.room.left_s()
        super().wait_for_and_dispatch_events(timeout if left_s is None else min(timeout, left_s))
        if self.room is not None and left_s is not None:
            for conn in self.room.ready():
                self.hand_over(conn)
            for tenant, conn in self.room.expired():
                self._turn_away(conn, tenant, self.admission.busy(tenant))

    def end_turn(self, conn: TConn) -> None:
        """Let the next request of the tenant have its turn."""
        if self.room is None or not isinstance(conn, Connection):
            return
        others = self.room.end(conn.tenant)
        for other in others:
            self.hand_over(other)
        if not others and self.room.left_s() is not None:
            self.method_queue.defer(lambda: None)  # when is due what waits? a rest may have begun

    def _cap_keepalive(self, deadline: float) -> None:
        super()._cap_keepalive(deadline)
        if not self._is_given_up:
            self._note_stopping()  # it may have come to the end of its `max_requests`

    def handle(self, conn: TConn) -> Any:
        """Serve one request, in a thread; the main loop has found that it is its tenant's turn."""
        if self.room is not None and isinstance(conn, Connection):
            self.admission.let_in(conn.tenant)
        return super().handle(conn)

    # -- when all threads are stuck -------------------------------------------------------------

    def run(self) -> None:
        """Serve until the end; threads that are stuck are not waited for."""
        super().run()
        if self._is_given_up:
            os._exit(1)  # which is no orderly end: who holds the threads gets a strike

    def murder_pending(self) -> None:
        """End what has waited long enough; look now and then whether any thread is left."""
        super().murder_pending()
        now = time.monotonic()
        if now >= self._next_stuck_look and self.alive:
            self._next_stuck_look = now + STUCK_LOOK_S
            self._look_for_threads()

    def _look_for_threads(self) -> None:
        """Give up when each thread has a request that hangs in its app, over its deadline.

        What is queued is answered 503, in the main loop, and another worker comes.
        """
        count_held = getattr(getattr(self, "wsgi", None), "count_held_threads", lambda: 0)
        if count_held() < self.cfg.threads:
            return
        _logger.error("worker.given_up", extra={"stuck": self.cfg.threads})
        self._is_given_up, self.alive = True, False
        self.cfg.set("graceful_timeout", GIVE_UP_S)  # of this process
        getattr(self.wsgi, "stop", lambda: None)()
        for conn in self.tpool.shutdown():
            self.enqueue_req(conn)

    def enqueue_req(self, conn: TConn) -> None:
        """Give a request to a thread; where none will ever be free, refuse it."""
        if self._is_given_up and isinstance(conn, Connection):
            self.method_queue.defer(self._give_up, conn)
        else:
            super().enqueue_req(conn)

    def _give_up(self, conn: Connection) -> None:
        send_problem(conn.raw, BUSY)
        self.linger(conn)
