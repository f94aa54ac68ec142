"""The host: the WSGI application of one process, with all mounts and the host's own pages.

A request passes the parts of the host in the following order: edge → router → admission →
accounting → mount → instance → the layers of `app.stack` → the tenant's app.
"""

import gc
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING

from flask import Flask

from tenantry.app.factory import close_app, create_app
from tenantry.app.probe import check_app
from tenantry.app.process_resources import ProcessResources
from tenantry.app.stack import build_stack
from tenantry.app.tenant_context import context_apps
from tenantry.http.environ import IS_FOR_OPERATORS, TARGET
from tenantry.middleware.accounting import Accounting, OnRequestEnd
from tenantry.middleware.domain_page import DomainPage
from tenantry.middleware.edge import Edge
from tenantry.middleware.forwarded import ForwardedHeaders
from tenantry.middleware.host_pages import HostPages, MountStatus
from tenantry.middleware.in_flight import RequestLimits
from tenantry.middleware.start_wait import StartWait
from tenantry.migrations.guard import forbid_upgrades, upgrade_default_database
from tenantry.observability.access_log import AccessLog
from tenantry.observability.control_socket import ControlSocket
from tenantry.observability.log_writer import STDERR
from tenantry.observability.logging import configure_logging
from tenantry.observability.prometheus import MetricsPage
from tenantry.observability.redaction import secret_scope
from tenantry.observability.scoreboard import Row, Scoreboard
from tenantry.observability.usage_counters import UsageCounters, counters_folder
from tenantry.observability.usage_store import collect_periodically
from tenantry.private_code.generations import use_newest_generation
from tenantry.reload.file_events import watch_folder
from tenantry.reload.follower import Follower
from tenantry.reload.warm_start import accepted_by_siblings, build_as_siblings
from tenantry.report import HostReport
from tenantry.routing.instance import Instance
from tenantry.routing.mount import Mount
from tenantry.routing.router import Router
from tenantry.server.admission import TenantAdmission
from tenantry.server.spool import spool_folder
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.folder import TenantsFolder
from tenantry.tenants.model import Tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

START_PATIENCE_S = 0.5
"""Seconds that a starting process waits for the validation of every tenant file, enough for about
fifty tenants. With more tenants, the process starts to serve before every tenant file is
validated."""

SIBLINGS_PATIENCE_S = 2.0
"""Seconds that a starting process waits for the validation of every tenant file while other workers
serve. On an overloaded machine, a worker that replaced a dead worker refused requests that the
other workers could answer."""

_logger = logging.getLogger(__name__)


class Host:
    """The WSGI application that a server runs. A host lives as long as its process.

    Each process that serves calls `start()` once. A forked process that did not call `start()`
    starts the host at its first request. `close()` ends the threads and instances of the host.

    Args:
        settings: the host's settings.
        on_request_end: called with the record of each request that has ended, including requests
            that admission refused before a thread ran them.
        is_inspecting: whether a command inspects tenants, so that builds run no migrations,
            and tenant files create no secrets.
    """

    def __init__(
        self,
        settings: HostSettings,
        on_request_end: OnRequestEnd | None = None,
        *,
        is_inspecting: bool = False,
    ) -> None:
        self.settings = settings
        self._is_inspecting = is_inspecting
        self._on_request_end = on_request_end
        self._lock = threading.Lock()  # protects the start of the host, and the control socket
        # Process IDs at the start of the host and of the control socket.
        self._pid = self._control_socket_pid = 0
        self._server = ""
        self._server_threads: int | None = None
        self._background: list[threading.Thread] = []
        self._closing = threading.Event()
        self._is_stopping = self._has_frozen = False
        self._control_socket: ControlSocket | None = None
        self.usage = UsageCounters()
        self._unknown = HostPages(self.status, self._is_ready)
        self.router = Router(fallback=self._unknown)
        edge = Edge(
            self.router.route,
            self._operators_pages(),
            settings.admin_address,
            admin_hosts=settings.admin_hosts,
            forwarded=_forwarded_headers(settings),
        )
        self.is_operators_listener = edge.is_admin
        self._route = edge.route
        self.spool_folder = spool_folder(settings.data_dir)
        self.follower = self._new_follower()
        self._begin_with(ProcessResources(settings, self.usage))

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer one request."""
        if self._pid != os.getpid():
            self._follow()
            self._open_control_socket()
        if TARGET not in environ:  # under Tenantry's worker, `admission` has routed the request
            self._mark_operators(environ)
            self._route(environ)
        return self._accounting(environ, start_response)

    def _mark_operators(self, environ: "WSGIEnvironment") -> None:
        """Mark a request on the operators' listener under gunicorn's own worker."""
        # The socket's own address identifies the listener, because on a Unix socket, `SERVER_PORT`
        # comes from the `Host` header.
        connection = environ.get("gunicorn.socket")
        if connection is not None and self.is_operators_listener(connection.getsockname()):
            environ[IS_FOR_OPERATORS] = True

    def _operators_pages(self) -> HostPages:
        metrics = MetricsPage(self.settings.data_dir, self._in_flight)
        domains = DomainPage(lambda: self.router.names, self.settings.trusted_hosts)
        return HostPages(
            self.status,
            self._is_ready,
            is_for_operators=True,
            more={"/-/metrics": metrics, "/-/domain": domains},
        )

    # -- start and stop -------------------------------------------------------------------------

    def start(
        self, server: str = "", *, row: Row | None = None, threads: int | None = None
    ) -> None:
        """Follow the tenants folder in this process. Call `start` before the first request.

        When `start` returns, this process has read the tenants folder and built the tenants that
        other workers have built, unless a time limit has passed.

        Args:
            server: the name of the server that runs this process, for `tenantry restart`.
            row: this process's row on the server's scoreboard; if None, the process creates its own
                scoreboard.
            threads: the number of requests that the server runs at once; None if unknown.
        """
        self._server, self._server_threads = server, threads
        self._follow(row)
        build_as_siblings(self.settings.data_dir, self.router)
        self._open_control_socket()

    def let_requests_wait(self, wake: Callable[[], None]) -> None:
        """Let requests wait for their tenant in the server's wait queue instead of in a thread.

        Args:
            wake: called on any thread when waiting requests may be able to continue.
        """
        self._accounting.start_wait = StartWait(self.router.route, self._unknown, self._is_ready)
        self.follower.on_progress = wake

    def stop(self) -> None:
        """Record that this process is about to end, so new workers no longer ask this process."""
        self._is_stopping = True

    def close(self) -> None:
        """Stop following the tenants folder and close every instance. Idempotent."""
        self._closing.set()
        context_apps(os.getpid()).lend = None
        self.follower.stop()
        for thread in self._background:
            thread.join()
        if self._has_frozen:
            gc.unfreeze()
        self.follower.close()
        if self._control_socket is not None:
            self._control_socket.close()
        for mount in self.router.mounts:
            mount.close()
        self.usage.close()
        self.resources.close()
        STDERR.close()

    def load(self) -> None:
        """Validate the tenants folder once, on the calling thread, and ignore later changes."""
        self._pid = os.getpid()
        self.follower.catch_up()

    def serve_only(self, tenants: Iterable[Tenant]) -> list[Mount]:
        """Serve only `tenants`, without a tenants folder; return their mounts in the same order.

        Commands that only inspect tenants call `serve_only`: mounts start idle, and builds run no
        migrations.
        """
        build = partial(self.build, is_migrating=False)
        self._pid = os.getpid()
        mounts = []
        for tenant in tenants:
            limits_of = partial(RequestLimits.of, settings=self.settings)
            mount = Mount(tenant.name, tenant.address, build, limits_of=limits_of)
            mount.accept(tenant)
            mounts.append(mount)
        self.router.replace(mounts)
        return mounts

    def _follow(self, row: Row | None = None) -> None:
        with self._lock:
            if self._pid == os.getpid():
                return
            if self._pid:
                self._begin_in_fork()
            row = row or Scoreboard().claim_row()
            threads = self._server_threads
            self._begin_with(ProcessResources(self.settings, self.usage, threads=threads, row=row))
            # After this assignment, other threads do not wait for the start.
            self._pid = os.getpid()
            accepted = accepted_by_siblings(self.settings.data_dir, self.settings.only)
            self.follower.prefer(accepted)
            self.follower.on_growth = self._freeze
            self.follower.on_evicted = partial(self.usage.add, sleeps=1)
            self.usage.open(counters_folder(self.settings.data_dir))
            self._start_background()
            context_apps(os.getpid()).lend = self._lend
        self.follower.is_ready.wait(SIBLINGS_PATIENCE_S if accepted else START_PATIENCE_S)
        self._check_deadline_action()

    def _begin_in_fork(self) -> None:
        """Reset the host in a forked process, where the threads of the parent do not run."""
        self.router.replace(())
        self.follower = self._new_follower()
        self._is_stopping = False
        self.usage.reset_after_fork()
        if self._control_socket is not None:
            self._control_socket.leave_to_parent()
            self._control_socket = None

    def _begin_with(self, resources: ProcessResources) -> None:
        self.resources = resources
        self.report = HostReport(
            self.router,
            self.follower,
            resources,
            lambda: self._is_stopping,
            only=self.settings.only,
            server=self._server,
        )
        in_flight = resources.in_flight
        self._accounting = Accounting(in_flight, self.usage, self._on_request_end)
        # Tenantry's gunicorn worker reads `admission` after `start`, and asks `admission` before a
        # thread runs a request.
        self.admission = TenantAdmission(
            self._route,
            self._accounting,
            in_flight,
            resources.over,
            resources.known_over,
            guarded=resources.guarded,
        )

    def _new_follower(self) -> Follower:
        folder = TenantsFolder(self.settings.tenants_dir, self.settings.only)
        follower = Follower(folder, self.settings, self.router, self.build)
        if self._is_inspecting:
            follower.throw_secrets_away()
        return follower

    def _start_background(self) -> None:
        """Start the background threads of the host, which run until `close`."""
        follower, closing, resources = self.follower, self._closing, self.resources
        targets: dict[str, Callable[[], None]] = {
            "follower": follower.run,
            "file-events": lambda: watch_folder(
                self.settings.tenants_dir,
                closing,
                follower.scan_soon,
                follower.set_events_reliable,
            ),
            "deadlines": lambda: resources.watchdog.watch(closing),
            "usage": lambda: collect_periodically(self.settings.data_dir, closing),
        }
        self._background = [
            threading.Thread(target=target, name=f"tenantry-{name}", daemon=True)
            for name, target in targets.items()
        ]
        for thread in self._background:
            thread.start()
        STDERR.start()

    def _freeze(self) -> None:
        """Exclude long-lived objects from garbage collection.

        A full collection takes 1.1 s with 10,000 apps.
        """
        self._has_frozen = True
        gc.collect()  # the call collects only objects created since the last freeze
        gc.freeze()

    def _check_deadline_action(self) -> None:
        """Warn if `DEADLINE_ACTION = "answer"` only reports, without Tenantry's worker."""
        if self._server == "gunicorn":
            return
        served = [mount.tenant for mount in self.router.mounts if mount.tenant is not None]
        tenants = [tenant.name for tenant in served if tenant.deadline_action == "answer"]
        if tenants or self.settings.deadline_action == "answer":
            reason = "only Tenantry's gunicorn worker can answer; overdue requests are reported"
            facts = {"tenants": tenants or "all", "reason": reason}
            _logger.warning("deadline.answer_unavailable", extra=facts)

    # -- build ----------------------------------------------------------------------------------

    def build(self, tenant: Tenant, *, is_migrating: bool = True) -> Instance:
        """Build and check the app of one tenant, and return an instance: the app inside its layers.

        Raises:
            Exception: any exception that the app's endpoints raise, on import or at the check.
        """
        begun_ns = time.perf_counter_ns()
        is_good = False
        resources = self.resources
        row = resources.row
        cell = None if row is None else row.enter(tenant.name, is_build=True)
        try:
            app = self._checked_app(tenant, resources, is_migrating=is_migrating)
            is_good = True
        finally:
            if row is not None and cell is not None:
                row.leave(cell)
            took_ns = time.perf_counter_ns() - begun_ns
            self.usage.add(tenant.name, build_ns=took_ns, builds=int(is_good))
        stack = build_stack(app, tenant, self.settings, resources)
        # A bound method takes a quarter of a closure's memory; thousands of tenants can have an
        # instance.
        close = MethodType(close_app, app)
        return Instance(stack.wsgi, close, app, head_checks=stack.head_checks)

    def _checked_app(
        self, tenant: Tenant, resources: ProcessResources, *, is_migrating: bool
    ) -> Flask:
        app = create_app(
            tenant,
            data_dir=self.settings.data_dir,
            budget=resources.budget,
            decoding_memory=resources.decoding_memory,
            note_query=resources.note_query,
            sources=resources.sources,
        )
        try:
            with secret_scope(app.config):
                if is_migrating and not self._is_inspecting:
                    upgrade_default_database(app)
                else:
                    forbid_upgrades(app)
                check_app(app)
        except BaseException:
            close_app(app)
            raise
        return app

    def _lend(self, name: str) -> Instance | None:
        """Return the instance of a tenant with a lease, for `tenantry.tenant` in this process."""
        mounts = [mount for mount in self.router.mounts if mount.name == name]
        if not mounts or mounts[0].ensure_instance() is not None:
            return None
        instance = mounts[0].instance
        return instance if instance is not None and instance.begin_lease() else None

    # -- what this process reports --------------------------------------------------------------

    def status(self) -> list[MountStatus]:
        """Return the state of every mount, sorted by tenant name."""
        return self.report.statuses()

    def count_held_threads(self) -> int:
        """Return the number of threads whose request hangs in its app."""
        return self.resources.watchdog.held_threads()

    def _in_flight(self) -> Mapping[str, int]:
        return self.resources.count_in_flight()

    def _is_ready(self) -> bool:
        return self.report.is_ready

    def count_states(self) -> Mapping[str, int] | None:
        """Return the number of tenants in each state; None until every tenant is evaluated."""
        if not self._is_ready():
            return None
        return Counter(mount.state for mount in self.status())

    def _open_control_socket(self) -> None:
        with self._lock:
            if self._control_socket_pid == os.getpid():
                return
            self._control_socket_pid = os.getpid()
            try:
                self._control_socket = ControlSocket(self.settings.data_dir, self.report.commands)
            except (
                OSError
            ) as error:  # the process serves, but `tenantry list` cannot see the process
                reason = f"cannot open the control socket: {error}"
                _logger.error("control_socket.open_failed", extra={"reason": reason})


def create_host(settings: HostSettings | None = None, *, is_serving: bool = False) -> Host:
    """Set up logging, and return the host of this process before its start.

    Args:
        settings: the host's settings; if None, the settings from the environment.
        is_serving: whether requests come from clients, so that the log has a line for each request.
            A command that only inspects tenants logs only warnings, unless the log level is
            `debug`.

    Raises:
        SettingsError: a `TENANTRY_…` variable is unknown or has a wrong type.
    """
    settings = settings or read_settings()
    is_quiet = not is_serving and settings.log_level == "info"
    configure_logging(settings.log_format, "warning" if is_quiet else settings.log_level)
    if not is_serving or settings.log_level not in {"debug", "info"}:
        return Host(settings, is_inspecting=not is_serving)
    return Host(settings, AccessLog(settings.log_format))


def use_code_snapshot(settings: HostSettings) -> None:
    """Let this process read tenants' Python files as they were when the server started."""
    try:
        use_newest_generation(settings.data_dir, settings.folders_without_code)
    except OSError as error:
        facts = {"reason": f"cannot copy tenants' code: {error}; new code takes effect at once"}
        _logger.error("code.snapshot_failed", extra=facts)


def _forwarded_headers(settings: HostSettings) -> ForwardedHeaders | None:
    if not settings.trusted_proxies:
        return None
    return ForwardedHeaders(settings.trusted_proxies, settings.trusted_headers)
