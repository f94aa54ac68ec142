"""The host: the only room where the parts meet.

A request meets them in this order: (ProxyFix, if proxies are trusted) → metering → front door →
dispatcher → mount → lease → the layers around its tenant's app (`layers`) → the app.
"""

import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from tenantry.app.factory import check_app, close_app, create_app
from tenantry.app.process_resources import ProcessResources
from tenantry.app.stack import build_stack
from tenantry.middleware.accounting import Accounting, NoteRequest
from tenantry.middleware.edge import Edge
from tenantry.middleware.host_pages import HostPages, MountStatus
from tenantry.migrations.guard import bring_to_head
from tenantry.observability.access_log import AccessLog
from tenantry.observability.control_socket import ControlSocket
from tenantry.observability.logging import configure_logging
from tenantry.observability.prometheus import MetricsPage
from tenantry.observability.redaction import secret_scope
from tenantry.observability.scoreboard import Row, Scoreboard, tag
from tenantry.observability.usage_counters import UsageCounters, counters_folder
from tenantry.observability.usage_store import collect_periodically
from tenantry.reload.file_events import watch_folder
from tenantry.reload.follower import Follower, FollowerLimits
from tenantry.reload.warm_start import accepted_by_siblings, wake_as_siblings
from tenantry.report import HostReport
from tenantry.routing.instance import Instance
from tenantry.routing.mount import Mount
from tenantry.routing.router import Router
from tenantry.server.admission import Admission, NoteTurnedAway
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.folder import TenantsFolder
from tenantry.tenants.model import Tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

START_PATIENCE_S = 0.5
"""How long a process waits for the verdicts on all tenant files before it accepts connections:
enough for some fifty tenants. With more it opens its doors and judges the rest meanwhile."""

SIBLINGS_PATIENCE_S = 2.0
"""The same where other workers serve meanwhile: a new one in place of a dead one, on a machine that
has too much to do, turned away requests that they would have answered."""

_logger = logging.getLogger(__name__)


class Host:
    """Every mount of this process and the host's own pages; lives as long as the process.

    The host is the WSGI app to serve. It follows the tenants folder from `start()` on, which each
    process that serves calls once; a forked one that did not is started by its first request.
    `close()` ends all; whoever made the host calls it, if the process does not simply end.

    Args:
        settings: see `HostSettings`.
        note_request: told of each request that has ended; None for nobody.
        note_refusal: told of those that the door refused, which reach no layer.
    """

    def __init__(
        self,
        settings: HostSettings,
        note_request: NoteRequest | None = None,
        note_refusal: NoteTurnedAway | None = None,
    ) -> None:
        self.settings = settings
        self._note_refusal = note_refusal
        self._lock = threading.Lock()  # protects the start
        self._pid = self._telling_pid = 0
        self._server = ""
        self._threads_of_server: int | None = None
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._is_to_end = self._has_frozen = False
        self._status_socket: ControlSocket | None = None
        self.ledger = UsageCounters()
        self.router = Router(fallback=HostPages(self.status, self._is_ready))
        operators = HostPages(
            *(self.status, self._is_ready),
            is_for_operators=True,
            more={"/-/metrics": MetricsPage(settings.data_dir, self._in_flight)},
        )
        front = Edge(self.router, operators, settings.admin_address)
        self._is_admin = front.is_admin
        metered = Accounting(front, self.ledger, note_request)
        self._wsgi = _behind_proxies(metered, settings.trusted_proxies)
        self.follower = self._new_follower()
        self._begin_with(ProcessResources(settings, self.ledger))

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer one request."""
        if self._pid != os.getpid():
            self._follow()
            self._tell_operators()
        return self._wsgi(environ, start_response)

    # -- begin and end --------------------------------------------------------------------------

    def start(
        self, server: str = "", *, row: Row | None = None, threads: int | None = None
    ) -> None:
        """Follow the tenants folder in this process; returns when requests may come.

        Once in each process, before its first request.

        The folder is known then, and who is awake in other workers is awake here; or that takes
        longer than `START_PATIENCE_S` (`SIBLINGS_PATIENCE_S`) and `WARM_S`.

        Args:
            server: the name of who runs it, for `tenantry restart`.
            row: this process's place on the board of its server; None for a board of its own.
            threads: how many requests it runs at once; None where that is not known.
        """
        self._server, self._threads_of_server = server, threads
        self._follow(row)
        wake_as_siblings(self.settings.data_dir, lambda: self.router)
        self._tell_operators()

    def stop(self) -> None:
        """Note that this process is about to end: it is no sibling to learn from any more."""
        self._is_to_end = True

    def close(self) -> None:
        """Stop following, and close every instance. Idempotent."""
        self._stopping.set()
        self.follower.stop()
        for thread in self._threads:
            thread.join()
        if self._has_frozen:
            gc.unfreeze()
        self.follower.close()
        if self._status_socket is not None:
            self._status_socket.close()
        for mount in self.router.mounts:
            mount.close()
        self.ledger.close()
        self.shared.close()

    def load(self) -> None:
        """Judge the tenants folder once, on this thread, and follow it no further."""
        self._pid = os.getpid()
        self.follower.catch_up()

    def take(self, tenants: Iterable[Tenant]) -> list[Mount]:
        """Serve exactly these, from no folder; return their mounts, in that order, still idle.

        Their databases stay as they are: who looks at tenants migrates none.
        """
        build = partial(self.build, is_migrating=False)
        self._pid = os.getpid()
        mounts = []
        for tenant in tenants:
            mounts.append(Mount(tenant.name, tenant.url_prefix, build))
            mounts[-1].accept(tenant)
        self.router.replace(mounts)
        return mounts

    def _follow(self, row: Row | None = None) -> None:
        with self._lock:
            if self._pid == os.getpid():
                return
            if self._pid:  # started in the process that this one was forked from
                self._leave_to_parent()
            row = row or Scoreboard().claim()
            threads = self._threads_of_server
            self._begin_with(ProcessResources(self.settings, self.ledger, threads=threads, row=row))
            self._pid = os.getpid()  # from here on other threads do not wait for this one
            accepted = accepted_by_siblings(self.settings.data_dir, self.settings.only)
            self.follower.prefer(accepted)
            self.follower.call_when_settled(self._freeze)
            self.follower.call_when_asleep(self.ledger.note_sleep)
            self.ledger.open(counters_folder(self.settings.data_dir))
            self._start_threads()
        self.follower.is_ready.wait(SIBLINGS_PATIENCE_S if accepted else START_PATIENCE_S)
        self._check_deadline_action()

    def _check_deadline_action(self) -> None:
        """Warn where `DEADLINE_ACTION = "answer"` acts as `report`: not under Tenantry's worker."""
        if self._server == "gunicorn":
            return
        served = [mount.tenant for mount in self.router.mounts if mount.tenant is not None]
        tenants = [tenant.name for tenant in served if tenant.deadline_action == "answer"]
        if tenants or self.settings.deadline_action == "answer":
            reason = "only Tenantry's gunicorn worker can answer; overdue requests are reported"
            facts = {"tenants": tenants or "all", "reason": reason}
            _logger.warning("deadline.answer_unavailable", extra=facts)

    def _freeze(self) -> None:
        """Let the garbage collector look no more at what stays: over 10,000 apps it takes 1.1 s."""
        self._has_frozen = True
        gc.collect()  # of what came since the last time only
        gc.freeze()

    def _leave_to_parent(self) -> None:
        """Begin anew, in a process that was forked; what the parent had goes on in the parent."""
        self.router.replace(())
        self.follower = self._new_follower()
        self._is_to_end = False
        self.ledger.begin_anew()
        if self._status_socket is not None:
            self._status_socket.leave_to_parent()
            self._status_socket = None

    def _begin_with(self, shared: ProcessResources) -> None:
        """Begin, in this process: its tenants share this; its report and its door are about it."""
        self.shared = shared
        self.report = HostReport(
            *(self.router, self.follower, shared, lambda: self._is_to_end),
            only=self.settings.only,
            server=self._server,
        )
        # For a server that asks about requests before it runs them. It takes it after `start`.
        self.door = Admission(
            *(shared.share, self.router.at, self._is_admin),
            let_in=shared.slots.let_in,
            refusal=shared.known_over,
            note_turned_away=self._note_turned_away,
        )

    def _new_follower(self) -> Follower:
        settings = self.settings
        limits = FollowerLimits(
            settings.max_active, settings.idle_timeout_s, settings.drain_timeout_s
        )
        folder = TenantsFolder(settings.tenants_dir, settings.only)
        return Follower(folder, settings.data_dir, self.router, self.build, limits)

    def _start_threads(self) -> None:
        """Start what goes on beside the requests, until `close`."""
        follower, stopping, data_dir = self.follower, self._stopping, self.settings.data_dir
        shared = self.shared
        work: dict[str, Callable[[], None]] = {
            "follower": follower.run,
            "watch": lambda: watch_folder(
                *(self.settings.tenants_dir, stopping, lambda: follower.wake(look=True)),
                lambda are_sure: follower.trust_events(are_sure=are_sure),
            ),
            "deadlines": lambda: shared.requests.watch(stopping, shared.slots.note_running),
            "usage": lambda: collect_periodically(data_dir, stopping),
        }
        self._threads = [
            threading.Thread(target=target, name=f"tenantry-{name}", daemon=True)
            for name, target in work.items()
        ]
        for thread in self._threads:
            thread.start()

    # -- an instance ----------------------------------------------------------------------------

    def build(self, tenant: Tenant, *, is_migrating: bool = True) -> Instance:
        """Build the instance of one tenant: its app, checked, inside the layers that make it safe.

        Raises:
            Exception: whatever the app's endpoints raise, by themselves or at a first request.
        """
        begun_ns = time.perf_counter_ns()
        is_good = False
        shared = self.shared
        cell = None if shared.row is None else shared.row.enter(tag(tenant.name), is_build=True)
        try:
            app = self._built(tenant, shared, is_migrating=is_migrating)
            is_good = True
        finally:
            if shared.row is not None and cell is not None:
                shared.row.leave(cell)
            took_ns = time.perf_counter_ns() - begun_ns
            self.ledger.note_build(tenant.name, took_ns, is_good=is_good)
        # A bound method takes a quarter of the memory of a closure: thousands may be awake.
        wsgi = build_stack(app, tenant, self.settings, shared)
        return Instance(wsgi, MethodType(close_app, app), app)

    def _built(self, tenant: Tenant, shared: ProcessResources, *, is_migrating: bool) -> Flask:
        app = create_app(
            tenant,
            data_dir=self.settings.data_dir,
            budget=shared.budget,
            decoding_memory=shared.decoding_memory,
            note_query=shared.note_query,
        )
        try:
            with secret_scope(app.config):
                if is_migrating:
                    bring_to_head(app)
                check_app(app)
        except BaseException:
            close_app(app)
            raise
        return app

    # -- what others are told -------------------------------------------------------------------

    def status(self) -> list[MountStatus]:
        """Return every mount's state, in the order of names."""
        return self.report.statuses()

    def count_held_threads(self) -> int:
        """Return how many threads of this process are held by apps that have hung."""
        return self.shared.requests.held_threads()

    def _in_flight(self) -> Mapping[str, int]:
        return self.shared.in_flight()

    def _is_ready(self) -> bool:
        return self.report.is_ready

    def _note_turned_away(self, tenant: str, head: bytes, answer: bytes) -> None:
        bytes_out = len(answer) - answer.find(b"\r\n\r\n") - 4
        self.ledger.note_request(tenant, False, True, 0, bytes_out, 0, 0)
        if self._note_refusal is not None:
            self._note_refusal(tenant, head, answer)

    def _tell_operators(self) -> None:
        with self._lock:
            if self._telling_pid == os.getpid():
                return
            self._telling_pid = os.getpid()
            try:
                self._status_socket = ControlSocket(self.settings.data_dir, self.report.answers)
            except OSError as error:  # a full disk: serving goes on, unseen by `tenantry list`
                _logger.error("status.not_told", extra={"reason": str(error)})


def create_host(settings: HostSettings | None = None, *, is_serving: bool = False) -> Host:
    """Set up logging and return the host of this process, not started yet.

    Args:
        settings: those of the environment when None.
        is_serving: whether requests come from clients: then each is a line in the log.

    Raises:
        SettingsError: a `TENANTRY_…` variable is unknown or ill-typed.
    """
    settings = settings or read_settings()
    configure_logging(settings.log_format, settings.log_level)
    if not is_serving or settings.log_level not in {"debug", "info"}:
        return Host(settings)
    lines = AccessLog(settings.log_format)
    return Host(settings, lines, lines.turned_away)


def _behind_proxies(app: "WSGIApplication", count: int) -> "WSGIApplication":
    if not count:
        return app
    return ProxyFix(app, x_for=count, x_proto=count, x_host=count, x_port=count, x_prefix=count)
