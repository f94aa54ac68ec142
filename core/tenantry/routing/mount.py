"""A mount: the address of one tenant, and the instance that serves the tenant.

The first request to a mount starts the build of the instance; a mount has at most one such build at
a time. When the tenant file changes, the follower replaces the instance in one assignment.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from contextvars import Context
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

from tenantry.errors import Problem
from tenantry.http.environ import MATCHED_PAIR, START_WAIT_S
from tenantry.http.problem import ProblemResponse, Refusal
from tenantry.routing.build_failure import BuildFailure
from tenantry.routing.build_pool import BuildPool, PendingBuild
from tenantry.routing.instance import Instance
from tenantry.routing.quarantine import MIN_RETRY_AFTER_S, Quarantine
from tenantry.tenants.address import Address, Pair
from tenantry.tenants.model import Tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

State = Literal["idle", "serving", "stale", "failed", "maintenance"]

FILE_RETRY_AFTER_S = 30
"""`Retry-After` in seconds for a tenant whose file is rejected. An operator has to fix the file."""

MAINTENANCE_RETRY_AFTER_S = 120
"""`Retry-After` in seconds for a tenant in maintenance."""

_logger = logging.getLogger(__name__)


def _unavailable(detail: str, retry_after_s: float) -> ProblemResponse:
    seconds = math.ceil(max(1, retry_after_s))
    return ProblemResponse(HTTPStatus.SERVICE_UNAVAILABLE, detail, retry_after_s=seconds)


def _not_available(retry_after_s: float) -> ProblemResponse:
    return _unavailable("This application is not available.", retry_after_s)


STARTING = _unavailable("This application is starting.", 1)
"""The response to a request that has waited too long for the instance."""


class Mount:
    """The address and the state of one tenant, for as long as the tenant file exists.

    A mount is thread-safe. The follower first removes a mount from the routing, and then closes the
    mount.

    Args:
        name: the tenant's name.
        address: the address, or the URL prefix of a tenant without host names; None if it is not
            known until the tenant file is read.
        build: returns an instance of a tenant. `build` runs on a thread of `build_pool`, at most
            once at a time, and may raise any exception.
        clock: returns monotonic seconds, for the pause after a failed build.
        wait_for_validation: called when a request arrives before the tenant file is validated.
            Returns after the validation, or when the request has waited long enough.
        ask_for_validation: requests the validation without waiting, and returns the seconds for
            which a request may wait for it.
        note_built: called with the mount when the mount gets a new instance.
        build_pool: the threads for first builds, which all mounts of a process share. If
            `build_pool` is None, the mount creates its own pool.
        limits_of: returns the limits of a tenant's requests, which the mount keeps as `limits`.
    """

    # Requests read the attributes without the lock, because each change replaces the whole value of
    # an attribute. A request that finds an instance must still get a lease from the instance. A
    # request that finds no instance looks again under the lock. `state` reads several attributes,
    # which may be from different moments.
    __slots__ = (
        "_ask_for_validation", "_build", "_build_pool", "_clock", "_failure", "_is_closed",
        "_limits_of", "_lock", "_note_built", "_pending_build", "_rejection",
        "_wait_for_validation", "_wanted", "digest", "fallback", "instance", "limits", "name",
        "operator_maintenance", "pair", "quarantine", "since", "tenant", "was_built",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        address: Address | str | None,
        build: Callable[[Tenant], Instance],
        *,
        clock: Callable[[], float] = time.monotonic,
        wait_for_validation: Callable[["Mount"], None] = lambda _: None,
        ask_for_validation: Callable[["Mount"], float] = lambda _: 0.0,
        note_built: Callable[["Mount"], None] = lambda _: None,
        build_pool: BuildPool | None = None,
        limits_of: Callable[[Tenant | None], Any] = lambda _: None,
    ) -> None:
        self.name = name
        self._wanted = Address(address) if isinstance(address, str) else address
        self.pair: Pair | None = None
        """The host name and the prefix at which the last accepted version answers."""
        self.tenant: Tenant | None = None
        """The last accepted version of the tenant file."""
        self.digest = ""
        """SHA-256 of the last validated version of the tenant file, accepted or rejected."""
        self.operator_maintenance: bool | str = False
        """Maintenance mode that an operator has set: True, or a message for the clients."""
        self.quarantine: Quarantine | None = None
        """The quarantine, which admits few requests to the tenant, or None if it is not parked."""
        self.since = time.time()
        """Time at which the newest tenant file was validated, in seconds since the epoch."""
        self.was_built = False
        """Whether the mount ever had an instance. A mount that had an instance accepts a new
        version of the file only after a successful build."""
        self.fallback: Tenant | None = None
        """The version that served before the process started, with the same prefix. The mount
        serves this version if the newer version cannot be built."""
        self._limits_of = limits_of
        self.limits = limits_of(None)
        """The limits of the requests to the mount. The mount does not interpret them."""
        self._build = build
        self._clock = clock
        self._wait_for_validation = wait_for_validation
        self._ask_for_validation = ask_for_validation
        self._note_built = note_built
        self._build_pool = build_pool or BuildPool()
        # The lock protects the following attributes. No thread holds the lock while it runs a
        # tenant's code.
        self._lock = threading.Lock()
        self._rejection = ""  # why the newest version of the file is not served
        self._failure: BuildFailure | None = None  # the last failed build of the accepted version
        self.instance: Instance | None = None
        """The instance that serves the tenant now, or None. Only the mount sets this attribute."""
        self._pending_build: PendingBuild | None = None
        self._is_closed = False

    @property
    def address(self) -> Address | None:
        """The address of the last accepted version, or else the address that the file asks for."""
        tenant = self.tenant
        return self._wanted if tenant is None else tenant.address

    @address.setter
    def address(self, address: Address | None) -> None:
        self._wanted = address

    @property
    def prefix(self) -> str | None:
        """The URL prefix, or None if the address is unknown."""
        return None if self.address is None else self.address.prefix

    # -- what operators see ---------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state of the mount, which determines the answer to a request."""
        if self.operator_maintenance or (self.tenant is not None and self.tenant.maintenance):
            return "maintenance"
        return "failed" if self.quarantine is not None else self.state_unless_parked

    @property
    def state_unless_parked(self) -> State:
        """The state of the mount without regard to quarantine and maintenance."""
        if self.tenant is None:
            return "failed" if self.reason else "idle"
        if self._failure is not None and self.instance is None:
            return "failed"
        if self.reason:
            return "stale"
        return "idle" if self.instance is None else "serving"

    @property
    def reason(self) -> str:
        """Why the newest version of the file is not served, or else why the last build failed."""
        return self._rejection or ("" if self._failure is None else self._failure.reason)

    @property
    def explanation(self) -> str:
        """The reason that operators see: why the tenant is parked, or else `reason`."""
        return self.reason if self.quarantine is None else self.quarantine.reason

    # -- requests -------------------------------------------------------------------------------

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer a request with the instance, or with 503 if there is no instance."""
        tenant, pair = self.tenant, self.pair
        instance, quarantine = self.instance, self.quarantine
        if self.operator_maintenance or (tenant is not None and tenant.maintenance):
            maintenance = self._maintenance()
            if maintenance is not None:
                return maintenance(environ, start_response)
        if quarantine is None:
            # This is the usual case, without another call. `_answer` handles all cases.
            if (
                instance is not None
                and environ.get(MATCHED_PAIR, pair) == pair
                and (body := instance.answer(environ, start_response)) is not None
            ):
                return body
            return self._answer(environ, start_response)
        trial = quarantine.begin_trial()
        if trial is None:
            return _not_available(quarantine.retry_after_s)(environ, start_response)
        return trial.answer(self._answer, environ, start_response)

    def refuse_by_head(self, environ: "WSGIEnvironment") -> Refusal | None:
        """Return the response that the head of a request already determines, or None.

        Builds a missing instance. A later call of the mount makes the same decision.
        """
        maintenance = self._maintenance()
        if maintenance is not None:
            return maintenance, []
        quarantine = self.quarantine
        if quarantine is not None:
            is_due = quarantine.retry_after_s <= MIN_RETRY_AFTER_S
            return None if is_due else (_not_available(quarantine.retry_after_s), [])
        if self.instance is None and (refusal := self.ensure_instance()) is not None:
            return refusal, []
        instance = self.instance
        if instance is None or instance.head_checks is None:
            return None
        return instance.head_checks.refuse(environ)

    def _maintenance(self) -> ProblemResponse | None:
        tenant = self.tenant
        maintenance = self.operator_maintenance or (tenant is not None and tenant.maintenance)
        if not maintenance:
            return None
        detail = maintenance if isinstance(maintenance, str) else "Down for maintenance."
        return _unavailable(detail, MAINTENANCE_RETRY_AFTER_S)

    def _answer(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        while True:
            tenant, instance = self.tenant, self.instance
            pair = environ.get(MATCHED_PAIR, self.pair)
            if tenant is not None and pair != self.pair and pair not in tenant.address.claims():
                # The tenant has moved to another address since the routing snapshot. In the next
                # snapshot, the address of this request may belong to another tenant.
                return STARTING(environ, start_response)
            if instance is None:
                refusal = self.ensure_instance()
                if refusal is not None:
                    return refusal(environ, start_response)
                continue
            body = instance.answer(environ, start_response)
            if body is not None:
                return body

    # -- first builds ---------------------------------------------------------------------------

    def wait_s(self) -> float:
        """Begin to build a missing instance, without waiting for the build.

        Return the seconds for which a request may wait for the instance; 0 if the mount can answer
        now. A server whose requests wait without a thread calls `wait_s` before it runs a request.
        """
        if self.instance is not None or self.quarantine is not None or self._maintenance():
            return 0.0
        if self.tenant is None:
            return 0.0 if self.reason else self._ask_for_validation(self)
        build = self._begin_build()
        if build is None or isinstance(build, ProblemResponse):
            return 0.0
        return build.started_at + START_WAIT_S - self._clock()

    def ensure_instance(self) -> ProblemResponse | None:
        """Wait until there is an instance. If the build takes too long or fails, return a 503."""
        if self.tenant is None and not self.reason:
            self._wait_for_validation(self)
        if self.tenant is None:
            return _not_available(FILE_RETRY_AFTER_S) if self.reason else STARTING
        build = self._begin_build()
        if build is None or isinstance(build, ProblemResponse):
            return build
        has_ended = self._build_pool.wait(build, age_s=self._clock() - build.started_at)
        return None if has_ended else STARTING

    def _begin_build(self) -> PendingBuild | ProblemResponse | None:
        """Return the running build, which this call starts if needed.

        If the instance exists, return None. If no build may start now, return a 503 response.
        """
        with self._lock:
            if self.instance is not None:  # another request's build has ended
                return None
            now = self._clock()
            pause_s = 0.0 if self._failure is None else self._failure.retry_at - now
            if self._is_closed or pause_s > 0:
                return _not_available(pause_s)
            if self._pending_build is not None:
                return self._pending_build
            build = self._pending_build = PendingBuild(now)
        self._build_pool.submit(partial(self._build_instance, build))
        return build

    def _build_instance(self, pending: PendingBuild) -> None:
        tenant = self.tenant
        instance: Instance | None = None
        error: BaseException | None = None
        try:
            if tenant is not None and not self._is_closed:
                # A new context keeps the context variables that an endpoint sets from staying on
                # the thread.
                instance = Context().run(self._build, tenant)
        except BaseException as raised:  # noqa: BLE001 - an import may raise SystemExit, too
            error = raised
        with self._lock:
            self._pending_build = None
            is_wanted = tenant is not None and self.tenant is tenant and not self._is_closed
            if tenant is not None and is_wanted and error is not None:
                now = self._clock()
                self._failure = BuildFailure.of(error, self._failure, now, tenant.blueprints)
                if self.fallback is not None:
                    self._fall_back(self.fallback, tenant, self._failure)
            elif is_wanted:
                self.fallback = None
                self._failure, self.was_built = None, True
                self.instance, instance = instance, None
        if self.instance is not None:
            self._note_built(self)
        if instance is not None:
            instance.retire()  # the tenant file has changed during the build
        if is_wanted and error is not None:
            _logger.error("tenant.build_failed", exc_info=error, extra={"tenant": self.name})
        pending.has_ended.set()
        self._build_pool.note_end()

    def _fall_back(self, last: Tenant, newest: Tenant, failure: BuildFailure) -> None:
        """Serve the version that served last. The caller must hold the lock."""
        self.fallback, self.was_built = None, True
        self._set_accepted(last)
        reason = str(Problem(newest.file, f"cannot be built: {failure.reason}"))
        self._set_validated(newest.digest, reason)

    # -- changes by the follower of the tenants folder ------------------------------------------

    def accept(self, tenant: Tenant) -> bool:
        """Serve `tenant`, a version of the tenant file, whose first request builds the instance.

        If the mount ever had an instance, `accept` does nothing and returns False, because the old
        version is known to work and the new version must be built first.
        """
        with self._lock:
            if self.was_built:
                return False
            self._set_accepted(tenant)
        return True

    def restore(self, tenant: Tenant) -> None:
        """Again serve `tenant`, the version that served before the process started.

        Because the version is known to work, a newer version must be built before it replaces
        `tenant`.
        """
        with self._lock:
            self.was_built = True
            self._set_accepted(tenant)

    def swap(self, tenant: Tenant, instance: Instance) -> Instance | None:
        """Serve `tenant` with `instance` from the next request on. Return the retired instance.

        The retired instance finishes its requests. If the mount is closed, it retires the new
        instance.
        """
        with self._lock:
            if self._is_closed:
                retired: Instance | None = instance
            else:
                retired, self.instance = self.instance, instance
                self.was_built = True
                self._set_accepted(tenant)
        self._note_built(self)
        if retired is not None:
            retired.retire()
        return retired

    def _set_accepted(self, tenant: Tenant) -> None:
        self.tenant, self.pair, self._wanted = tenant, tenant.address.canonical, None
        self.limits = self._limits_of(tenant)
        self._failure = None
        self._set_validated(tenant.digest, "")

    def reject(self, reason: str, digest: str) -> None:
        """Record why the newest version is not served. The old instance keeps serving."""
        with self._lock:
            self._set_validated(digest, reason)

    def clear_rejection(self) -> None:
        """Record that the tenant file is back at its accepted version, which needs no build."""
        with self._lock:
            self._failure = None
            self._set_validated("" if self.tenant is None else self.tenant.digest, "")

    def _set_validated(self, digest: str, rejection: str) -> None:
        self.digest, self._rejection, self.since = digest, rejection, time.time()

    def evict(self) -> Instance | None:
        """Retire and return the instance, or return None while a request is in flight."""
        with self._lock:
            instance = self.instance
            if instance is None or instance.leases:
                return None
            self.instance = None
        instance.retire()  # a request that has just got a lease finishes on the old instance
        return instance

    def release_instance(self) -> Instance | None:
        """Retire and return the instance, even with requests in flight.

        The next request builds a new instance.
        """
        with self._lock:
            instance, self.instance = self.instance, None
        if instance is not None:
            instance.retire()
        return instance

    def close(self) -> Instance | None:
        """Stop serving, and return the retired instance, or None without an instance.

        Idempotent.
        """
        with self._lock:
            self._is_closed = True
            instance, self.instance = self.instance, None
        if instance is not None:
            instance.retire()
        return instance
