"""The gunicorn worker, which shares its threads fairly between tenants.

The worker is a subclass of gunicorn's public class `Worker`. `loop` polls, `protocol` follows each
connection, and the host's `admission` decides which requests run. The scoreboard in shared memory
shows the requests and builds in flight, so that the master knows the requests in flight of a dead
worker.
"""

import logging
import os
import socket
import sys
import threading
import time
from ipaddress import ip_address, ip_network
from typing import Any

from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import ThreadWorker

from tenantry.http.request_head import HeadLimits, HeadReader
from tenantry.observability.log_writer import STDERR
from tenantry.observability.scoreboard import Row, Scoreboard
from tenantry.server.admission import OpenAdmission
from tenantry.server.crash_budget import CrashBudget, blame
from tenantry.server.crash_report import CrashReport
from tenantry.server.environ import EnvironTemplate
from tenantry.server.gunicorn_api import custom_hook, why_not_ours
from tenantry.server.heartbeat import Heartbeat
from tenantry.server.protocol import HttpProtocol
from tenantry.server.serving import Serving
from tenantry.server.spool import SpoolBudget
from tenantry.settings import read_settings

STUCK_LOOK_S = 1.0
"""Seconds between two checks whether all threads are stuck."""

GIVE_UP_S = 2.0
"""Seconds for which a worker whose threads are all stuck still answers requests on open connections
with 503, before the worker ends."""

SWITCH_INTERVAL_S = 0.0005
"""Seconds that a computing thread keeps the interpreter lock while another thread waits for the
lock. While a tenant with 32 clients computed 50 ms per request without a pause, another tenant had
0.71 of its calm throughput and 1.5 times its calm p99. With Python's default of 5 ms, the other
tenant had 0.29 of its calm throughput and 4.8 times its calm p99; with 1 ms, 0.31 of its calm
throughput and 2 times its calm p99."""

SPARE_THREADS = 2
"""Number of threads in addition to the threads that run requests: the leader and its successor."""

_logger = logging.getLogger(__name__)


class TenantWorker(Worker):  # type: ignore[misc]
    """gunicorn's `worker_class`, created in the master and run in its own process.

    The main thread handles signals and watches the leader; it runs no tenant's code.
    """

    tmp: Heartbeat
    alive: bool

    def __new__(cls, *args: Any, **_: Any) -> Any:
        """Return a worker, or gunicorn's threaded worker if `why_not_ours` gives a reason."""
        app, cfg, log = args[3], args[5], args[6]
        reason = why_not_ours(cfg)
        if not reason:
            return super().__new__(cls)
        if getattr(app, "other_worker_reason", None) != reason:  # all workers share `app`
            app.other_worker_reason = reason
            log.warning("gunicorn's threaded worker serves instead of Tenantry's: %s.", reason)
        return ThreadWorker(*args)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._is_given_up = self._has_told_ready = False
        self._next_stuck_look = 0.0  # on the monotonic clock
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
        """Load the host, while another thread updates the heartbeat.

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

    def _beat_until(self, is_loaded: threading.Event) -> None:
        while not is_loaded.wait(1.0):
            self.notify()

    # -- serving ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the worker has to stop, and then let its requests end."""
        cfg = self.cfg
        admission = getattr(self.wsgi, "admission", None) or OpenAdmission(cfg.threads)
        folder = getattr(self.wsgi, "spool_folder", None)
        serving = Serving(SpoolBudget(folder), keeps_alive=bool(cfg.keepalive))
        limits = HeadLimits(
            cfg.limit_request_line or HeadLimits().line_bytes,
            cfg.limit_request_fields,
            cfg.limit_request_field_size or HeadLimits().field_bytes,
        )
        reader = HeadReader(limits, "refuse" if cfg.header_map == "refuse" else "drop")
        # First requests of tenants may exceed `threads`, but stay below twice `threads`
        # (`FairShare`).
        max_threads = 2 * cfg.threads + SPARE_THREADS
        app = getattr(admission, "app", self.wsgi)
        protocol = HttpProtocol(app, admission, serving, reader, self, max_threads=max_threads)
        let_wait: Any = getattr(self.wsgi, "let_requests_wait", None)
        if let_wait is not None:
            let_wait(protocol.loop.check_soon)
        protocol.loop.start([(one, self._template(one)) for one in self.sockets])
        protocol.loop.watch_leader(self._is_serving, self.PIPE[0])
        self._end(protocol)

    def _is_serving(self) -> bool:
        return bool(self.alive) and self._is_parent_alive()

    def _is_parent_alive(self) -> bool:
        if self.ppid == os.getppid():
            return True
        self.log.info("Parent changed, shutting down: %s", self)
        return False

    def _template(self, sock: socket.socket) -> EnvironTemplate:
        local = sock.getsockname()
        is_operators: Any = getattr(self.wsgi, "is_operators_listener", None)
        return EnvironTemplate(
            local,
            is_multiprocess=self.cfg.workers > 1,
            is_for_operators=is_operators is not None and is_operators(local),
            proxy_mode=self.cfg.proxy_protocol or "off",
            is_proxy_trusted=_TrustedPeers(self.cfg.proxy_allow_ips),
        )

    def _end(self, protocol: HttpProtocol) -> None:
        """Stop accepting, and wait until no connection is open or the time limit is reached."""
        if not self._is_given_up:
            self._note_stopping()  # the worker may have reached `max_requests`
        stop: Any = getattr(self.wsgi, "stop", None)
        if stop is not None:
            stop()
        loop = protocol.loop
        protocol.must_stop = True
        loop.check_soon()
        limit_s = GIVE_UP_S if self._is_given_up else self.cfg.graceful_timeout
        deadline = time.monotonic() + limit_s
        loop.watch_leader(
            lambda: not protocol.has_ended and time.monotonic() < deadline, self.PIPE[0]
        )
        for one in self.sockets:
            one.close()
        if self._is_given_up:
            STDERR.flush()
            os._exit(1)  # an abnormal exit gives strikes to the tenants of the stuck threads

    def request_hooks(self) -> tuple[Any, Any, bool] | None:
        """Return `pre_request`, `post_request` and whether gunicorn logs accesses, or None."""
        hooks = custom_hook(self.cfg, "pre_request"), custom_hook(self.cfg, "post_request")
        logs = bool(self.cfg.accesslog) or bool(getattr(self.cfg, "logconfig_dict", None))
        return (*hooks, logs) if any(hooks) or logs else None

    def end_soon(self) -> None:
        """Stop the worker, which has reached `max_requests`."""
        if self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False

    def on_check(self) -> None:
        """Update the heartbeat, and look for threads that hang."""
        self.notify()
        if not self._has_told_ready:
            self._tell_ready()
        now = time.monotonic()
        if now >= self._next_stuck_look and self.alive:
            self._next_stuck_look = now + STUCK_LOOK_S
            self._look_for_threads()

    def _tell_ready(self) -> None:
        """Log once that the worker has evaluated every tenant."""
        count_states = getattr(self.wsgi, "count_states", None)
        states = {} if count_states is None else count_states()
        if states is not None:
            self._has_told_ready = True
            _logger.info("worker.ready", extra={"tenants": sum(states.values()), **states})

    def _look_for_threads(self) -> None:
        """Stop the worker if every thread runs an overdue request that hangs in its app.

        The loop of a stopping worker answers 503 to waiting requests, and gunicorn starts another
        worker.
        """
        count_held = getattr(self.wsgi, "count_held_threads", lambda: 0)
        if count_held() >= self.cfg.threads:
            _logger.error("worker.given_up", extra={"stuck": self.cfg.threads})
            self._is_given_up, self.alive = True, False

    # -- the end ----------------------------------------------------------------------------------

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to stop the worker."""
        self._note_stopping()
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Stop the worker immediately."""
        self._note_stopping()
        super().handle_quit(sig, frame)

    def _note_stopping(self) -> None:
        if self.row is not None:
            self.row.stop()

    def note_exit(self) -> None:
        """Record the tenants that may have ended the worker, and free the worker's row.

        The master calls `note_exit` after the end of the worker process. `note_exit` raises
        nothing, because an exception would end the master and all workers.
        """
        if self.row is None:
            self.crash_report.close()
            return
        try:
            thread = self.crash_report.thread()
            suspects, reason = blame(self.row, self.tmp, thread)
            # If another process killed the worker, no tenant is at fault.
            is_own_end = thread is not None or self.crash_report.has_run_out_of_memory
            if suspects and (is_own_end or self.tmp.has_held_worker):
                app = self.app  # all workers share `app`, even after a HUP
                app.strikes = getattr(app, "strikes", None) or CrashBudget(read_settings().data_dir)
                app.strikes.note(suspects, reason)
        except Exception:
            _logger.exception("worker.blame_failed")
        finally:
            self.row.free()
            self.crash_report.close()


class _TrustedPeers:
    """Whether a peer may send a PROXY line: gunicorn's `proxy_allow_ips`."""

    def __init__(self, allowed: list[str]) -> None:
        self._is_any = "*" in allowed
        self._networks = [] if self._is_any else [ip_network(one) for one in allowed if one]

    def __call__(self, peer: Any) -> bool:
        """Whether the peer of a connection is trusted. Every peer on a Unix socket is trusted."""
        if self._is_any or not isinstance(peer, tuple):
            return True
        address = ip_address(peer[0])
        return any(address in network for network in self._networks)
