"""The host: the only room where the parts meet.

A request meets them in this order: (ProxyFix, if proxies are trusted) → metering → front door →
dispatcher → mount → lease → slot → rate (of a tenant that has one) → deadlines → containment → log
context → trusted hosts → client gate (of a tenant that has clients) → body limit → confined cookies
→ the tenant's Flask app.
"""

import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from config.settings import HostSettings, read_settings
from core.app_factory import check_app, close_app, create_app, endpoint_finder
from core.board import Board, Row, tag
from core.clients import ClientGate, Verify
from core.connections import ConnectionBudget
from core.containment import Containment
from core.cookies import ConfinedCookies
from core.database import database_of
from core.deadlines import Deadlines, Requests
from core.door import Door, NoteTurnedAway, Refusal
from core.folder import TenantsFolder
from core.front import FrontDoor, TrustedHosts
from core.gate import bring_to_head, told_of
from core.hiding import hiding
from core.host_pages import HostPages, MountStatus
from core.instance import Instance
from core.ledger import Ledger, ledgers_folder
from core.levers import Levers
from core.limits import BodyLimit
from core.metering import Metering, NoteRequest
from core.metrics import MetricsPage
from core.mounts import Mount, Mounts
from core.openid_values import OpenId
from core.plan import describe
from core.reload import Follower, Limits
from core.request_line import RequestLines
from core.share import FairShare
from core.slots import SlotGate, Slots
from core.status import StatusSocket
from core.telemetry import LogContext, configure_logging
from core.tenant import Tenant
from core.usage import keep_folding
from core.visit import current
from core.warm_start import accepted_by_siblings, wake_as_siblings
from core.watch import watch_folder

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from core.rates import Rates

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
        self._lock = threading.Lock()  # protects the start, and the first look at rates
        self._pid = self._telling_pid = 0
        self._server = ""
        self._threads_of_server: int | None = None
        self._row: Row | None = None
        self._slots = Slots(FairShare(None))
        self._rates: Rates | None = None
        self._is_stopping = False
        self._budget = ConnectionBudget(settings.db_connections)
        self.ledger = Ledger()
        self._requests = Requests(note_overdue=self.ledger.note_overdue)
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._note_query = partial(_note_query, self.ledger)  # one for all apps
        self._status_socket: StatusSocket | None = None
        self._token_checks: WeakValueDictionary[tuple[str, str, OpenId], Verify] = (
            WeakValueDictionary()
        )
        self.mounts = Mounts(fallback=HostPages(self.status, self._is_ready))
        self.follower = self._new_follower()
        operators = HostPages(
            *(self.status, self._is_ready),
            is_for_operators=True,
            more={"/-/metrics": MetricsPage(settings.data_dir, self._in_flight)},
        )
        front = FrontDoor(self.mounts, operators, settings.admin_address)
        self._is_admin = front.is_admin
        self.door: Door | None = None
        """For a server that asks about requests before it runs them; from `start` on."""
        metered = Metering(front, self.ledger, note_request)
        self._wsgi = _behind_proxies(metered, settings.trusted_proxies)

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer one request."""
        if self._pid != os.getpid():
            self._follow()
            self._tell_operators()
        return self._wsgi(environ, start_response)

    def start(
        self, server: str = "", *, row: Row | None = None, threads: int | None = None
    ) -> None:
        """Follow the tenants folder in this process; returns when requests may come.

        The folder is known then, and who is awake in other workers is awake here; or that takes
        longer than `START_PATIENCE_S` (`SIBLINGS_PATIENCE_S`) and `WARM_S`.

        Args:
            server: the name of who runs it, for `tenantry restart`.
            row: this process's place on the board of its server; None for a board of its own.
            threads: how many requests it runs at once; None where that is not known.
        """
        self._server, self._row, self._threads_of_server = server, row, threads
        self._follow()
        wake_as_siblings(self.settings.data_dir, lambda: self.mounts)
        self._tell_operators()

    def stop(self) -> None:
        """Note that this process is about to end: it is no sibling to learn from any more."""
        self._is_stopping = True

    def count_held_threads(self) -> int:
        """Return how many threads of this process are held by apps that have hung."""
        return self._requests.held_threads()

    def _follow(self) -> None:
        with self._lock:
            if self._pid == os.getpid():
                return
            if self._pid:  # started in the process that this one was forked from
                self.mounts.replace(())
                self._budget = ConnectionBudget(self.settings.db_connections)
                self.follower = self._new_follower()
                self._row, self._rates = None, None
                self._requests = Requests(note_overdue=self.ledger.note_overdue)
                self.ledger.begin_anew()
            self._pid = os.getpid()
            self._row = self._row or Board().claim()
            share = FairShare(self._threads_of_server)
            self._slots = Slots(share, self._row)
            self.door = Door(
                *(share, self.mounts.at, self._is_admin),
                let_in=self._slots.let_in,
                refusal=self._known_over,
                note_turned_away=self._note_turned_away,
            )
            folder = self.settings.tenants_dir
            follower = self.follower
            accepted = accepted_by_siblings(self.settings.data_dir, self.settings.only)
            follower.prefer(accepted)
            follower.call_when_settled(_freeze)
            follower.call_when_asleep(self.ledger.note_sleep)
            self.ledger.open(ledgers_folder(self.settings.data_dir))
            arguments = (
                *(folder, self._stopping, lambda: follower.wake(look=True)),
                lambda are_sure: follower.trust_events(are_sure=are_sure),
            )
            self._threads = [
                threading.Thread(target=self.follower.run, name="tenantry-follower", daemon=True),
                threading.Thread(
                    target=watch_folder, args=arguments, name="tenantry-watch", daemon=True
                ),
                threading.Thread(
                    target=self._requests.watch,
                    args=(self._stopping, self._slots.note_running),
                    name="tenantry-deadlines",
                    daemon=True,
                ),
                threading.Thread(
                    target=keep_folding,
                    args=(self.settings.data_dir, self._stopping),
                    name="tenantry-usage",
                    daemon=True,
                ),
            ]
            for thread in self._threads:
                thread.start()
        self.follower.is_ready.wait(SIBLINGS_PATIENCE_S if accepted else START_PATIENCE_S)

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
        self.mounts.replace(mounts)
        return mounts

    def build(self, tenant: Tenant, *, is_migrating: bool = True) -> Instance:
        """Build the instance of one tenant: its app, checked, inside the layers that make it safe.

        Raises:
            Exception: whatever the app's endpoints raise, by themselves or at a first request.
        """
        begun_ns = time.perf_counter_ns()
        is_good = False
        row = self._row
        cell = None if row is None else row.enter(tag(tenant.name), is_build=True)
        try:
            app = self._built(tenant, is_migrating=is_migrating)
            is_good = True
        finally:
            if row is not None and cell is not None:
                row.leave(cell)
            took_ns = time.perf_counter_ns() - begun_ns
            self.ledger.note_build(tenant.name, took_ns, is_good=is_good)
        # A bound method takes a quarter of the memory of a closure: thousands may be awake.
        return Instance(self._layers(tenant, app), MethodType(close_app, app), app)

    def _built(self, tenant: Tenant, *, is_migrating: bool) -> Flask:
        app = create_app(
            tenant,
            data_dir=self.settings.data_dir,
            budget=self._budget,
            note_query=self._note_query,
        )
        try:
            with hiding(app.config):
                if is_migrating:
                    bring_to_head(app)
                check_app(app)
        except BaseException:
            close_app(app)
            raise
        return app

    def _layers(self, tenant: Tenant, app: Flask) -> "WSGIApplication":
        names, most = tenant.trusted_hosts, tenant.max_concurrent_requests
        logger = logging.getLogger(f"tenant.{tenant.name}")
        outermost_first: list[Callable[[WSGIApplication], WSGIApplication]] = [
            partial(
                SlotGate,
                slots=self._slots,
                tenant=tenant.name,
                most=self.settings.max_concurrent_requests if most is None else most,
            ),
            *self._rate_gates(tenant),
            partial(
                Deadlines,
                requests=self._requests,
                tenant=tenant.name,
                deadline_s=tenant.deadline_s or self.settings.deadline_s,
                find_uses=self._find_uses(tenant, app),
            ),
            partial(Containment, logger=logger),
            partial(LogContext, tenant=tenant.name, config=app.config),
            partial(TrustedHosts, names=self.settings.trusted_hosts if names is None else names),
            *self._gates(tenant, app),
            partial(BodyLimit, max_bytes=tenant.max_content_length),
            partial(ConfinedCookies, logger=logger),
        ]
        wsgi: WSGIApplication = app
        for layer in reversed(outermost_first):
            wsgi = layer(wsgi)
        return wsgi

    def _find_uses(
        self, tenant: Tenant, app: Flask
    ) -> Callable[[int], Iterable[Callable[[], None]]] | None:
        """Return what tells which queries to cancel; None where requests are not interrupted."""
        action = tenant.deadline_action or self.settings.deadline_action
        return database_of(app).uses_of if action == "interrupt" else None

    def _rate_gates(self, tenant: Tenant) -> list[Callable[["WSGIApplication"], "WSGIApplication"]]:
        """Return the layer that counts requests; none where they are not limited."""
        if tenant.rate_limit is None:
            return []
        from core.rates import RateGate, Rates  # noqa: PLC0415 - 0.3 s, for who needs it

        with self._lock:
            if self._rates is None:
                url = self.settings.rate_limit_storage
                processes = self._row.board.processes if self._row else lambda: 1
                self._rates = Rates(url, processes, note_uncounted=self.ledger.note_uncounted)
        name, rate = tenant.name, tenant.rate_limit
        return [partial(RateGate, rates=self._rates, tenant=name, rate=rate)]

    def _note_turned_away(self, tenant: str, head: bytes, answer: bytes) -> None:
        bytes_out = len(answer) - answer.find(b"\r\n\r\n") - 4
        self.ledger.note_request(tenant, False, True, 0, bytes_out, 0, 0)
        if self._note_refusal is not None:
            self._note_refusal(tenant, head, answer)

    def _known_over(self, tenant: str) -> Refusal | None:
        return None if self._rates is None else self._rates.known_over(tenant)

    def _gates(
        self, tenant: Tenant, app: Flask
    ) -> list[Callable[["WSGIApplication"], "WSGIApplication"]]:
        """Return the layer that lets only clients in; none where the tenant is open."""
        if tenant.clients is None and tenant.oidc is None:
            return []
        gate = partial(
            ClientGate,
            realm=tenant.url_prefix,
            clients=tenant.clients,
            verify=self._token_check(tenant),
            endpoint_of=endpoint_finder(app, tenant),
        )
        return [gate]

    def _token_check(self, tenant: Tenant) -> Verify | None:
        """Return the check of a tenant's tokens; a rebuilt instance goes on with the same keys."""
        if tenant.oidc is None:
            return None
        from core.oidc import TokenCheck  # noqa: PLC0415 - 10 MiB, for who needs it

        known = tenant.name, repr(tenant.oidc), tenant.oidc  # 1 and True are equal; claims are not
        # Two builds at once may make two: then the keys are read twice.
        check = self._token_checks.get(known) or TokenCheck(tenant.oidc, tenant.name)
        self._token_checks[known] = check
        return check

    def status(self) -> list[MountStatus]:
        """Return every mount's state, in the order of names."""
        stuck = self._requests.stuck()
        return [_status(mount, stuck[mount.name]) for mount in self.mounts.all]

    def tell(self) -> dict[str, Any]:
        """Return what `tenantry list` asks of this process, as JSON takes it."""
        return {
            "master": os.getppid(),
            "is_ready": self._is_ready(),
            "only": self.settings.only,
            "server": self._server,
            "in_flight": self._slots.in_use(),
            "uncounted": 0 if self._rates is None else self._rates.unanswered_total,
            "mounts": [*self._told_mounts(), *self._told_off()],
        }

    def _in_flight(self) -> Mapping[str, int]:
        """Return how many requests of each tenant are in flight, in all processes of the server."""
        return self._slots.in_use() if self._row is None else self._row.board.in_flight()

    def tell_load(self) -> dict[str, Any]:
        """Return what `tenantry top` asks of this process."""
        return {"in_flight": self._slots.in_use(), "stuck": self._requests.stuck()}

    def tell_ready(self) -> dict[str, Any]:
        """Return what `tenantry restart` asks again and again: cheap with any number of tenants."""
        return {"master": os.getppid(), "is_ready": self._is_ready()}

    def tell_accepted(self) -> dict[str, Any]:
        """Return the digests of all that is accepted here, for workers that start meanwhile."""
        tenants = [mount.tenant for mount in self.mounts.all] if self._is_ready() else []
        accepted = {tenant.name: tenant.digest for tenant in tenants if tenant is not None}
        return {"only": self.settings.only, "accepted": accepted}

    def tell_awake(self) -> dict[str, Any]:
        """Return the names of the tenants that are built here, the last used first."""
        pairs = [(mount.instance, mount.name) for mount in self.mounts.all]
        awake = [(one.used_at, name) for one, name in pairs if one is not None]
        return {"names": [] if self._is_stopping else [n for _, n in sorted(awake, reverse=True)]}

    def _told_mounts(self) -> Iterator[dict[str, Any]]:
        stuck = self._requests.stuck()
        for mount in self.mounts.all:
            told = asdict(_status(mount, stuck[mount.name]))
            yield told | {"levers": asdict(_levers(mount))}

    def _told_off(self) -> Iterator[dict[str, Any]]:
        for one in self.follower.off:
            place = one.name, one.prefix, "disabled", one.reason, 0.0, one.digest, one.endpoints
            yield asdict(MountStatus(*place)) | {"levers": asdict(one.levers)}

    def tell_plan(self, salt: str) -> dict[str, Any]:
        """Return what `tenantry plan` compares with: a description of every tenant served."""
        tenants = [mount.tenant for mount in self.mounts.all if mount.tenant is not None]
        descriptions = {tenant.name: describe(tenant, salt) for tenant in tenants}
        return {"is_ready": self._is_ready(), "tenants": descriptions}

    def _tell_operators(self) -> None:
        answers: dict[str, Callable[..., Any]] = {
            "list": self.tell, "plan": self.tell_plan,
            "ready": self.tell_ready, "awake": self.tell_awake, "accepted": self.tell_accepted,
            "load": self.tell_load,
        }  # fmt: skip
        with self._lock:
            if self._telling_pid == os.getpid():
                return
            self._telling_pid = os.getpid()
            try:
                self._status_socket = StatusSocket(self.settings.data_dir, answers)
            except OSError as error:  # a full disk: serving goes on, unseen by `tenantry list`
                _logger.error("status.not_told", extra={"reason": str(error)})

    def close(self) -> None:
        """Stop following, and close every instance. Idempotent."""
        self._stopping.set()
        self.follower.stop()
        for thread in self._threads:
            thread.join()
        gc.unfreeze()
        self.follower.close()
        if self._status_socket is not None:
            self._status_socket.close()
        for mount in self.mounts.all:
            mount.close()
        self.ledger.close()
        if self._rates is not None:
            self._rates.close()

    def _is_ready(self) -> bool:
        return self.follower.is_ready.is_set()

    def _new_follower(self) -> Follower:
        settings = self.settings
        limits = Limits(settings.max_active, settings.idle_timeout_s, settings.drain_timeout_s)
        folder = TenantsFolder(settings.tenants_dir, settings.only)
        return Follower(folder, settings.data_dir, self.mounts, self.build, limits)


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
    lines = RequestLines(settings.log_format)
    return Host(settings, lines, lines.turned_away)


def _note_query(ledger: Ledger, tenant: str, took_ns: int) -> None:
    """Count a query for its tenant and, if a request made it, for that."""
    ledger.note_query(tenant, took_ns)
    visit = current.get()
    if visit is not None:
        visit.queries += 1
        visit.database_ns += took_ns


def _freeze() -> None:
    """Let the garbage collector look no more at what stays: over 10,000 apps it takes 1.1 s."""
    gc.collect()  # of what came since the last time only
    gc.freeze()


def _status(mount: Mount, stuck: int) -> MountStatus:
    instance = mount.instance
    app = None if instance is None or instance.app is None else instance.app()
    return MountStatus(
        name=mount.name,
        prefix=mount.prefix or "",
        state=mount.state,
        reason=mount.explanation,
        since=mount.since,
        digest=mount.digest,
        endpoints=() if mount.tenant is None else mount.tenant.blueprints,
        database=told_of(app),
        stuck=stuck,
        is_parked=mount.parked is not None and mount.own_state != "failed",
    )


def _levers(mount: Mount) -> Levers:
    """Return the levers that a mount follows."""
    if mount.parked is None:
        return Levers(mount.lever)
    return Levers(mount.lever, parked=mount.parked.reason, times_parked=mount.parked.times)


def _behind_proxies(app: "WSGIApplication", count: int) -> "WSGIApplication":
    if not count:
        return app
    return ProxyFix(app, x_for=count, x_proto=count, x_host=count, x_port=count, x_prefix=count)
