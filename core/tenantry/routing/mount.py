"""Mounts: which instance answers under which URL prefix. Knows WSGI, not Flask.

Three things are kept apart: what the folder says (`catalogue`), the routing (`Router`: an
immutable map, replaced whole, read without a lock) and the live instances (`Mount`: built for the
first request, one build of a mount at a time; replaced by one assignment).
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from contextvars import Context
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

from werkzeug.middleware.dispatcher import DispatcherMiddleware

from tenantry.grammar import PREFIX_SEGMENTS
from tenantry.http.environ import TENANT
from tenantry.http.problem import ProblemResponse
from tenantry.observability.redaction import redact_in_scope
from tenantry.routing.build_pool import Building, BuildPool
from tenantry.routing.instance import Instance
from tenantry.routing.quarantine import Quarantine
from tenantry.tenants.model import Tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

State = Literal["idle", "serving", "stale", "failed", "maintenance"]

FIRST_BACK_OFF_S = 1.0
"""Pause after the first failed build: a database that restarts is back in about that time."""

MAX_BACK_OFF_S = 60.0
"""Pauses double up to this: a mended dependency is noticed within a minute."""

FILE_RETRY_AFTER_S = 30
"""What clients of a rejected file are told: an operator has to mend it."""

MAINTENANCE_RETRY_AFTER_S = 120
"""What clients are told during maintenance."""

_TAIL = "tenantry.path_tail"
_NEVER = -math.inf  # one for all: a number of its own costs each of 10,000 mounts 24 bytes
_STARTING = "This application is starting."
_NOT_AVAILABLE = "This application is not available."

_logger = logging.getLogger(__name__)


def unavailable(detail: str, retry_after_s: float) -> ProblemResponse:
    """Return a 503 that tells the client when to come again."""
    seconds = math.ceil(max(1, retry_after_s))
    return ProblemResponse(HTTPStatus.SERVICE_UNAVAILABLE, detail, retry_after_s=seconds)


class Mount:
    """A tenant's place, from the appearance of its file to the file's disappearance.

    Args:
        name: the tenant's name.
        prefix: where it will be, as far as that is known before the file has been read.
        build: makes an instance of a tenant. Called at most once at a time, on a thread of
            `first_builds`; it may raise anything.
        clock: seconds, for the back-off.
        await_verdict: called by a request for a tenant whose file has not been judged yet; returns
            when it has been, or when the request has waited long enough.
        note_awake: called whenever it has a new instance, on the thread that gave it.
        first_builds: what the mounts of a process share to build; None for some of its own.
    """

    # Requests read `_instance`, `tenant`, `operator_maintenance`, `parked` and the reasons without
    # the lock. Each is one reference, replaced whole; who finds an instance must still get its
    # lease, and who finds none asks again under the lock. `state` reads several: it may mix two
    # moments.
    __slots__ = (
        "_await_verdict",
        "_build",
        "_building",
        "_clock",
        "_failure",
        "_failures",
        "_first_builds",
        "_instance",
        "_is_closed",
        "_lock",
        "_note_awake",
        "_rejection",
        "_retry_at",
        "digest",
        "has_served",
        "name",
        "operator_maintenance",
        "parked",
        "prefix",
        "since",
        "tenant",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        prefix: str | None,
        build: Callable[[Tenant], Instance],
        *,
        clock: Callable[[], float] = time.monotonic,
        await_verdict: Callable[["Mount"], None] = lambda _: None,
        note_awake: Callable[["Mount"], None] = lambda _: None,
        first_builds: BuildPool | None = None,
    ) -> None:
        self.name = name
        self.prefix = prefix
        self.tenant: Tenant | None = None
        """The last accepted content of the file."""
        self.digest = ""
        """SHA-256 of the file's content that was judged last, accepted or not."""
        self._rejection = ""  # why the newest content is not served
        self._failure = ""  # why the last build, of the accepted content, failed
        self.operator_maintenance: bool | str = False
        """Maintenance that an operator switched on beside the file: true or a message."""
        self.parked: Quarantine | None = None
        """What lets few requests through, for it ended workers; None for most."""
        self.since = time.time()
        """When the newest content was judged (seconds since the epoch)."""
        self.has_served = False
        """Whether an instance of it was ever built: then no content replaces it unbuilt."""
        self._build = build
        self._clock = clock
        self._await_verdict = await_verdict
        self._note_awake = note_awake
        self._first_builds = first_builds or BuildPool()
        self._lock = threading.Lock()  # protects everything below; never held while user code runs
        self._instance: Instance | None = None
        self._building: Building | None = None
        self._failures = 0
        self._retry_at = _NEVER
        self._is_closed = False

    @property
    def state(self) -> State:
        """What it would do with a request now."""
        if self._maintenance():
            return "maintenance"
        return "failed" if self.parked is not None else self.own_state

    @property
    def own_state(self) -> State:
        """What it would do if no operator, and no quarantine, kept requests away."""
        if self.tenant is None:
            return "failed" if self.reason else "idle"
        if self._failures and self._instance is None:
            return "failed"
        if self.reason:
            return "stale"
        return "idle" if self._instance is None else "serving"

    @property
    def reason(self) -> str:
        """Why the newest content was rejected, or else the last build failed."""
        return self._rejection or self._failure

    @property
    def explanation(self) -> str:
        """Why it is in its state: parked, or the `reason`."""
        return self.reason if self.parked is None else self.parked.reason

    @property
    def instance(self) -> Instance | None:
        """The instance that serves now."""
        return self._instance

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer with the instance, built now if there is none; 503 if it cannot be had."""
        environ["PATH_INFO"] += environ.pop(_TAIL, "")
        environ[TENANT] = self.name
        if maintenance := self._maintenance():
            detail = maintenance if isinstance(maintenance, str) else "Down for maintenance."
            return unavailable(detail, MAINTENANCE_RETRY_AFTER_S)(environ, start_response)
        if parked := self.parked:
            tried = parked.begin_try()
            if tried is None:
                return unavailable(_NOT_AVAILABLE, parked.left_s)(environ, start_response)
            return tried.answer(self._answer, environ, start_response)
        return self._answer(environ, start_response)

    def _answer(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        while True:
            if self._is_elsewhere(environ):
                return unavailable(_STARTING, 1)(environ, start_response)
            instance = self._instance
            if instance is None:
                refusal = self.wake()
                if refusal is not None:
                    return refusal(environ, start_response)
            elif instance.lease():
                return instance.answer(environ, start_response)

    def _is_elsewhere(self, environ: "WSGIEnvironment") -> bool:
        """Whether the request came by a prefix that the file, read meanwhile, does not claim.

        It may be another tenant's; the next routing knows.
        """
        tenant, place = self.tenant, environ.get("SCRIPT_NAME", "")
        return tenant is not None and not place.endswith(tenant.url_prefix)

    def _maintenance(self) -> bool | str:
        return self.operator_maintenance or (self.tenant is not None and self.tenant.maintenance)

    def wake(self) -> ProblemResponse | None:
        """Have an instance built if there is none; return the 503 to answer if it cannot be had."""
        if self.tenant is None and not self.reason:
            self._await_verdict(self)
        if self.tenant is None:
            if self.reason:
                return unavailable(_NOT_AVAILABLE, FILE_RETRY_AFTER_S)
            return unavailable(_STARTING, 1)
        with self._lock:
            if self._instance is not None:  # another request built it meanwhile
                return None
            left_s = self._retry_at - self._clock()
            if self._is_closed or left_s > 0:
                return unavailable(_NOT_AVAILABLE, left_s)
            building, now = self._building, self._clock()
            if building is None:
                mine = self._building = Building(now)
        if building is None:
            building = mine
            self._first_builds.begin(partial(self._build_now, mine))
        if self._first_builds.wait(building, now - building.since):
            return None
        return unavailable(_STARTING, 1)

    def _build_now(self, building: Building) -> None:
        instance: Instance | None = None
        failure: BaseException | None = None
        tenant = self.tenant
        try:
            if tenant is not None and not self._is_closed:
                # In a context of its own: what an endpoint's import sets is not this thread's.
                instance = Context().run(self._build, tenant)
        except BaseException as error:  # noqa: BLE001 - SystemExit of an endpoint's import too
            failure = error
        with self._lock:
            self._building = None
            is_wanted = tenant is not None and self.tenant is tenant and not self._is_closed
            if is_wanted and failure is None:
                self._instance, instance = instance, None
                self._note_success()
            elif is_wanted and failure is not None:
                self._note_failure(failure)
        if self._instance is not None:
            self._note_awake(self)
        if instance is not None:
            instance.retire()  # the file changed while its old content was built
        if is_wanted and failure is not None:
            _logger.error("tenant.build_failed", exc_info=failure, extra={"tenant": self.name})
        building.is_over.set()

    def _note_success(self) -> None:
        self.has_served = True
        self._forget_failures()

    def _forget_failures(self) -> None:
        self._failures, self._retry_at, self._failure = 0, _NEVER, ""

    def _note_failure(self, error: BaseException) -> None:
        pause_s = min(FIRST_BACK_OFF_S * 2**self._failures, MAX_BACK_OFF_S)
        self._failures += 1
        self._retry_at = self._clock() + pause_s
        self._failure = error_text(error)

    # -- what the follower of the tenants folder does with it -----------------------------------

    def accept(self, tenant: Tenant) -> bool:
        """Serve `tenant` from the next request on, which builds it.

        False, and nothing is done, if the mount has served: its old content is known to build,
        the new one is not.
        """
        with self._lock:
            if self.has_served:
                return False
            self._note_accepted(tenant)
        return True

    def swap(self, tenant: Tenant, instance: Instance) -> Instance | None:
        """Serve `tenant` by `instance` from the next request on; return who is retired for it.

        The requests of the retired one finish. A closed mount retires the new one.
        """
        with self._lock:
            if self._is_closed:
                old: Instance | None = instance
            else:
                old, self._instance = self._instance, instance
                self.has_served = True
                self._note_accepted(tenant)
        self._note_awake(self)
        if old is not None:
            old.retire()
        return old

    def _note_accepted(self, tenant: Tenant) -> None:
        self.tenant, self.prefix = tenant, tenant.url_prefix
        self._note_judged(tenant.digest, "")
        self._forget_failures()

    def confirm(self) -> None:
        """Note that the newest content is the accepted one again: nothing has to be built."""
        with self._lock:
            self._note_judged("" if self.tenant is None else self.tenant.digest, "")
            self._forget_failures()

    def reject(self, reason: str, digest: str) -> None:
        """Note why the newest content is not served; what is served stays."""
        with self._lock:
            self._note_judged(digest, reason)

    def _note_judged(self, digest: str, rejection: str) -> None:
        self.digest, self._rejection, self.since = digest, rejection, time.time()

    def sleep(self) -> Instance | None:
        """Let the instance go, and return it, if no request is in flight; the next one builds."""
        with self._lock:
            instance = self._instance
            if instance is None or instance.leases:
                return None
            self._instance = None
        instance.retire()  # a request that took it just now finishes on it
        return instance

    def close(self) -> Instance | None:
        """Serve no more, and return the retired instance if there was one. Idempotent."""
        with self._lock:
            self._is_closed = True
            instance, self._instance = self._instance, None
        if instance is not None:
            instance.retire()
        return instance


def error_text(error: BaseException) -> str:
    """Return an exception's text on one line, without secrets, or its type where it has none."""
    try:
        text = " ".join(str(error).split())
        return redact_in_scope(text, error) or type(error).__name__
    except BaseException:  # noqa: BLE001 - whoever wrote the exception may have wronged its text too
        return type(error).__name__


class Router:
    """The routing snapshot: Werkzeug's dispatcher over an immutable map, replaced whole.

    A request reads the reference once, so it sees one snapshot however the map changes meanwhile.
    """

    def __init__(self, fallback: "WSGIApplication") -> None:
        self._fallback = fallback
        self._placed: tuple[Mount, ...] = ()
        self._routes: dict[str, Mount] = {}
        self._dispatch = DispatcherMiddleware(self._whole_path, {})

    @property
    def all(self) -> tuple[Mount, ...]:
        """Every mount, in the order of names."""
        return tuple(sorted(self._placed, key=lambda mount: mount.name))

    def replace(self, mounts: Iterable[Mount]) -> None:
        """Route to `mounts` from the next request on; closes nothing.

        Of two at one prefix the last is routed to.
        """
        self._placed = tuple(mounts)
        routes = {mount.prefix: mount for mount in self._placed if mount.prefix is not None}
        self._dispatch = DispatcherMiddleware(self._whole_path, dict(routes))
        self._routes = routes

    def at(self, prefix: str) -> Mount | None:
        """Return the mount at exactly this prefix."""
        return self._routes.get(prefix)

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer with the mount whose prefix is a whole-segment prefix of the path, or the host."""
        parts = environ.get("PATH_INFO", "").split("/", PREFIX_SEGMENTS + 1)
        if parts[0]:  # `OPTIONS *`, an authority: no path
            return self._fallback(environ, start_response)
        if len(parts) > PREFIX_SEGMENTS + 1:
            environ[_TAIL] = "/" + parts.pop()
            environ["PATH_INFO"] = "/".join(parts)
        return self._dispatch(environ, start_response)

    def _whole_path(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        environ["PATH_INFO"] += environ.pop(_TAIL, "")
        return self._fallback(environ, start_response)
