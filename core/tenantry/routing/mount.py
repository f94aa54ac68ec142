"""A mount: the address of one tenant, and the instance that serves it now.

The first request builds the instance, and there is at most one such build at a time. The follower
of the tenants folder replaces the instance by one assignment.
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

from tenantry.http.environ import PATH_TAIL, TENANT
from tenantry.http.problem import ProblemResponse
from tenantry.routing.build_failure import BuildFailure
from tenantry.routing.build_pool import BuildPool, PendingBuild
from tenantry.routing.instance import Instance
from tenantry.routing.quarantine import Quarantine
from tenantry.tenants.model import Tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

State = Literal["idle", "serving", "stale", "failed", "maintenance"]

FILE_RETRY_AFTER_S = 30
"""`Retry-After` for a rejected file: an operator has to fix it."""

MAINTENANCE_RETRY_AFTER_S = 120
"""`Retry-After` during maintenance."""

_logger = logging.getLogger(__name__)


def _unavailable(detail: str, retry_after_s: float) -> ProblemResponse:
    seconds = math.ceil(max(1, retry_after_s))
    return ProblemResponse(HTTPStatus.SERVICE_UNAVAILABLE, detail, retry_after_s=seconds)


def _not_available(retry_after_s: float) -> ProblemResponse:
    return _unavailable("This application is not available.", retry_after_s)


_STARTING = _unavailable("This application is starting.", 1)


class Mount:
    """The address of a tenant, from when its file appears until the file disappears.

    Thread-safe. The follower closes it when it has left the routing.

    Args:
        name: the tenant's name.
        prefix: the URL prefix, as far as it is known before the file has been read.
        build: returns an instance of a tenant. It runs on a thread of `build_pool`, at most once at
            a time, and may raise anything.
        clock: monotonic seconds, for the pause after a failed build.
        wait_for_validation: called by a request if the file has not been validated yet. Returns
            when it has been, or when the request has waited long enough.
        note_built: called with the mount when it has a new instance.
        build_pool: shared by the mounts of a process. By default, the mount has its own.
    """

    # Requests read the attributes without the lock. Each is one reference, which is replaced as a
    # whole. A request that finds an instance must still get a lease from it; a request that finds
    # none looks again under the lock. `state` reads several attributes and can mix two moments.
    __slots__ = (
        "_build", "_build_pool", "_clock", "_failure", "_instance", "_is_closed", "_lock",
        "_note_built", "_pending_build", "_rejection", "_wait_for_validation", "digest", "name",
        "operator_maintenance", "prefix", "quarantine", "since", "tenant", "was_built",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        prefix: str | None,
        build: Callable[[Tenant], Instance],
        *,
        clock: Callable[[], float] = time.monotonic,
        wait_for_validation: Callable[["Mount"], None] = lambda _: None,
        note_built: Callable[["Mount"], None] = lambda _: None,
        build_pool: BuildPool | None = None,
    ) -> None:
        self.name = name
        self.prefix = prefix
        self.tenant: Tenant | None = None
        """The last accepted content of the file."""
        self.digest = ""
        """SHA-256 of the content that was validated last, accepted or not."""
        self.operator_maintenance: bool | str = False
        """Maintenance mode set by an operator: True, or a message for the clients."""
        self.quarantine: Quarantine | None = None
        """Admits few requests while the tenant is parked; None if it is not."""
        self.since = time.time()
        """When the newest content was validated, in seconds since the epoch."""
        self.was_built = False
        """Whether there was ever an instance. From then on, only built content is accepted."""
        self._build = build
        self._clock = clock
        self._wait_for_validation = wait_for_validation
        self._note_built = note_built
        self._build_pool = build_pool or BuildPool()
        self._lock = threading.Lock()  # protects everything below; not held while user code runs
        self._rejection = ""  # why the newest content is not served
        self._failure: BuildFailure | None = None  # of the accepted content
        self._instance: Instance | None = None
        self._pending_build: PendingBuild | None = None
        self._is_closed = False

    # -- what operators see ---------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What the mount would do with a request now."""
        if self.operator_maintenance or (self.tenant is not None and self.tenant.maintenance):
            return "maintenance"
        return "failed" if self.quarantine is not None else self.state_unless_parked

    @property
    def state_unless_parked(self) -> State:
        """The state without quarantine and maintenance."""
        if self.tenant is None:
            return "failed" if self.reason else "idle"
        if self._failure is not None and self._instance is None:
            return "failed"
        if self.reason:
            return "stale"
        return "idle" if self._instance is None else "serving"

    @property
    def reason(self) -> str:
        """Why the newest content is not served, or else why the last build failed."""
        return self._rejection or ("" if self._failure is None else self._failure.reason)

    @property
    def explanation(self) -> str:
        """Why the mount is in its state: why the tenant is parked, or the `reason`."""
        return self.reason if self.quarantine is None else self.quarantine.reason

    @property
    def instance(self) -> Instance | None:
        """The instance that serves now."""
        return self._instance

    # -- requests -------------------------------------------------------------------------------

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer with the instance; 503 if there is none."""
        environ["PATH_INFO"] += environ.pop(PATH_TAIL, "")
        environ[TENANT] = self.name
        tenant, quarantine = self.tenant, self.quarantine
        maintenance = self.operator_maintenance or (tenant is not None and tenant.maintenance)
        if maintenance:
            detail = maintenance if isinstance(maintenance, str) else "Down for maintenance."
            return _unavailable(detail, MAINTENANCE_RETRY_AFTER_S)(environ, start_response)
        if quarantine is None:
            return self._answer(environ, start_response)
        trial = quarantine.begin_trial()
        if trial is None:
            return _not_available(quarantine.retry_after_s)(environ, start_response)
        return trial.answer(self._answer, environ, start_response)

    def _answer(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        while True:
            tenant, instance = self.tenant, self._instance
            prefix = environ.get("SCRIPT_NAME", "")
            if tenant is not None and not prefix.endswith(tenant.url_prefix):
                # The file has been read since, and claims another prefix. This one may belong to
                # another tenant, which the next routing snapshot knows.
                return _STARTING(environ, start_response)
            if instance is None:
                refusal = self.ensure_instance()
                if refusal is not None:
                    return refusal(environ, start_response)
                continue
            body = instance.answer(environ, start_response)
            if body is not None:
                return body

    # -- first builds ---------------------------------------------------------------------------

    def ensure_instance(self) -> ProblemResponse | None:
        """Start a build if there is no instance, and wait for it. Return a 503 if it is late."""
        if self.tenant is None and not self.reason:
            self._wait_for_validation(self)
        if self.tenant is None:
            return _not_available(FILE_RETRY_AFTER_S) if self.reason else _STARTING
        with self._lock:
            if self._instance is not None:  # another request built it in the meantime
                return None
            now = self._clock()
            pause_s = 0.0 if self._failure is None else self._failure.retry_at - now
            if self._is_closed or pause_s > 0:
                return _not_available(pause_s)
            is_first = self._pending_build is None
            build = self._pending_build = self._pending_build or PendingBuild(now)
        if is_first:
            self._build_pool.submit(partial(self._build_instance, build))
        has_ended = self._build_pool.wait(build, age_s=now - build.started_at)
        return None if has_ended else _STARTING

    def _build_instance(self, pending: PendingBuild) -> None:
        tenant = self.tenant
        instance: Instance | None = None
        error: BaseException | None = None
        try:
            if tenant is not None and not self._is_closed:
                # A context of its own: what an endpoint sets while imported stays off this thread.
                instance = Context().run(self._build, tenant)
        except BaseException as raised:  # noqa: BLE001 - an import may raise SystemExit, too
            error = raised
        with self._lock:
            self._pending_build = None
            is_wanted = tenant is not None and self.tenant is tenant and not self._is_closed
            if tenant is not None and is_wanted and error is not None:
                now = self._clock()
                self._failure = BuildFailure.of(error, self._failure, now, tenant.blueprints)
            elif is_wanted:
                self._failure, self.was_built = None, True
                self._instance, instance = instance, None
        if self._instance is not None:
            self._note_built(self)
        if instance is not None:
            instance.retire()  # the file changed while its old content was built
        if is_wanted and error is not None:
            _logger.error("tenant.build_failed", exc_info=error, extra={"tenant": self.name})
        pending.has_ended.set()

    # -- changes by the follower of the tenants folder ------------------------------------------

    def accept(self, tenant: Tenant) -> bool:
        """Serve `tenant` from the next request on, which builds it.

        Returns False, and does nothing, if the mount had an instance before: the old content is
        known to build, and the new content is not.
        """
        with self._lock:
            if self.was_built:
                return False
            self._set_accepted(tenant)
        return True

    def swap(self, tenant: Tenant, instance: Instance) -> Instance | None:
        """Serve `tenant` with `instance` from the next request on. Return the retired instance.

        The retired instance finishes its requests. If the mount is closed, it retires the new one.
        """
        with self._lock:
            if self._is_closed:
                retired: Instance | None = instance
            else:
                retired, self._instance = self._instance, instance
                self.was_built = True
                self._set_accepted(tenant)
        self._note_built(self)
        if retired is not None:
            retired.retire()
        return retired

    def _set_accepted(self, tenant: Tenant) -> None:
        self.tenant, self.prefix = tenant, tenant.url_prefix
        self._failure = None
        self._set_validated(tenant.digest, "")

    def reject(self, reason: str, digest: str) -> None:
        """Note why the newest content is not served. The instance keeps serving."""
        with self._lock:
            self._set_validated(digest, reason)

    def clear_rejection(self) -> None:
        """Note that the newest content is the accepted one again, so nothing has to be built."""
        with self._lock:
            self._failure = None
            self._set_validated("" if self.tenant is None else self.tenant.digest, "")

    def _set_validated(self, digest: str, rejection: str) -> None:
        self.digest, self._rejection, self.since = digest, rejection, time.time()

    def evict(self) -> Instance | None:
        """Retire and return the instance if no request is in flight. The next request builds."""
        with self._lock:
            instance = self._instance
            if instance is None or instance.leases:
                return None
            self._instance = None
        instance.retire()  # a request that got a lease just now finishes on it
        return instance

    def close(self) -> Instance | None:
        """Stop serving, and return the retired instance if there was one. Idempotent."""
        with self._lock:
            self._is_closed = True
            instance, self._instance = self._instance, None
        if instance is not None:
            instance.retire()
        return instance
