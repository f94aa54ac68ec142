"""Admission: decides which requests the server runs, and records when a request has ended.

`TenantAdmission` decides which tenant's requests may run. `OpenAdmission` is for any WSGI
application other than the host. Every method except `refusal` is a fast look-up. `is_quick` says
whether a call of `refusal` is fast.
"""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from tenantry.http.environ import REQUEST_ID, TARGET
from tenantry.http.problem import ProblemResponse, Refusal
from tenantry.http.request_id import new_request_id
from tenantry.middleware.accounting import Accounting
from tenantry.middleware.in_flight import TENANT_BUSY, RequestsInFlight
from tenantry.routing.mount import STARTING, Mount

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

HOST_BUSY = ProblemResponse(
    HTTPStatus.SERVICE_UNAVAILABLE, "The server is busy; try again.", retry_after_s=1
)


class Admission(Protocol):
    """Decides which requests run. `enter`, `leave` and `refusal` are thread-safe."""

    over: Mapping[str, object]
    guarded: Mapping[str, object]
    """The tenants for which `known_refusal` may return a response are in `over` or in `guarded`."""

    def route(self, environ: "WSGIEnvironment", _: object, /) -> Any:
        """Find the app that answers a request.

        Return the tenant; None for a request of operators.
        """

    def reads_body(self, environ: "WSGIEnvironment") -> bool:
        """Whether the app that answers reads the body of the request."""

    def is_quick(self, environ: "WSGIEnvironment") -> bool:
        """Whether `refusal` waits for nothing and computes little."""

    def refusal(self, environ: "WSGIEnvironment") -> Refusal | None:
        """Return the response that the head of a request already determines, or None."""

    def known_refusal(self, environ: "WSGIEnvironment") -> Refusal | None:
        """Return the response to a request that must not take a place in flight, or None."""

    def max_body_bytes(self, environ: "WSGIEnvironment") -> int | None:
        """Return the maximum size of a request body; None for no maximum."""

    def enter(self, environ: "WSGIEnvironment") -> Any:
        """Return the record of a request that may run now, or None if it has to wait.

        The record has three attributes: `is_in_flight`; `is_over`, whether the tenant already has
        its maximum number of requests in flight; and `is_quick`, whether the request is likely to
        be short.
        """

    def leave(self, record: Any) -> None:
        """Record that a request has ended. Idempotent."""

    def rest_s(self, tenant: str) -> float:
        """Return the seconds until a tenant's pause ends; 0 without a pause."""

    def busy(self, tenant: str) -> Refusal:
        """Return the response to a request that has waited too long."""

    def note_refusal(
        self,
        environ: "WSGIEnvironment",
        tenant: str | None,
        problem: ProblemResponse,
        sent_bytes: int,
    ) -> None:
        """Count and log a request that the server has answered itself."""


class TenantAdmission:
    """Decides which tenant's requests may run.

    Args:
        route: finds the app that answers a request, and puts it into the environ as `TARGET`.
        accounting: opens and settles the records of requests.
        in_flight: the requests in flight of this process.
        over: contains the tenants that may be over their rate.
        known_over: returns the response that every request of a tenant over its rate gets, or None.
        guarded: contains the tenants that may have keys.
    """

    def __init__(
        self,
        route: "Callable[[WSGIEnvironment, Any], Any]",
        accounting: Accounting,
        in_flight: RequestsInFlight,
        over: Mapping[str, object],
        known_over: Callable[[str], Refusal | None],
        *,
        guarded: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        self.app = accounting
        """The WSGI app that runs the admitted requests."""
        self.route = route
        self._in_flight = in_flight
        self._known_over = known_over
        self.over = over
        self.guarded = guarded
        self.enter = accounting.enter
        self.leave = in_flight.leave

    def reads_body(self, environ: "WSGIEnvironment") -> bool:
        """Whether a mount answers; the host's pages read no body."""
        return type(environ[TARGET]) is Mount

    def is_quick(self, environ: "WSGIEnvironment") -> bool:
        """Whether the mount needs no build, and its checks wait for nothing."""
        instance = environ[TARGET].instance
        if instance is None:
            return False
        return instance.head_checks is None or instance.head_checks.is_quick

    def refusal(self, environ: "WSGIEnvironment") -> Refusal | None:
        """Return the response that the mount gives to the head of a request, or None."""
        refusal: Refusal | None = environ[TARGET].refuse_by_head(environ)
        return refusal

    def known_refusal(self, environ: "WSGIEnvironment") -> Refusal | None:
        """Return the 401 to a request without a known key, or the 429 of a tenant over its rate.

        If the tenant has keys, its rate counts only requests with a key.
        """
        mount = environ[TARGET]
        instance = mount.instance
        if instance is not None and instance.head_checks is not None:
            is_stranger = instance.head_checks.is_stranger
            if is_stranger is not None:
                return self.refusal(environ) if is_stranger(environ) else None
        if mount.name not in self.over or mount.tenant is None:
            return None
        if mount.tenant.clients is not None or mount.tenant.oidc is not None:
            return None
        return self._known_over(mount.name)

    def max_body_bytes(self, environ: "WSGIEnvironment") -> int | None:
        """Return the tenant's `MAX_CONTENT_LENGTH`."""
        tenant = environ[TARGET].tenant
        return None if tenant is None else int(tenant.max_content_length)

    def rest_s(self, tenant: str) -> float:
        """Return the seconds until the end of the pause of a tenant that computes a lot."""
        return self._in_flight.share.rest_s(tenant)

    def busy(self, tenant: str) -> Refusal:
        """Return a 503 that says whether the tenant is starting or busy, or the host is busy."""
        start_wait = self.app.start_wait
        if start_wait is not None and start_wait.is_starting(tenant):
            return STARTING, []
        return (TENANT_BUSY if tenant else HOST_BUSY), []

    def note_refusal(
        self,
        environ: "WSGIEnvironment",
        tenant: str | None,
        problem: ProblemResponse,
        sent_bytes: int,
    ) -> None:
        """Count and log a request that the server has answered itself."""
        del tenant
        self.app.note_refusal(environ, problem, sent_bytes)


class OpenAdmission:
    """Admits `threads` requests at once, and refuses none, for applications other than the host."""

    over: Mapping[str, object] = {}
    guarded: Mapping[str, object] = {}

    def __init__(self, threads: int) -> None:
        self._free = [_Token() for _ in range(threads)]  # `append` and `pop` are atomic

    def route(self, environ: "WSGIEnvironment", _: object, /) -> str | None:
        """Return one tenant for all requests."""
        environ[REQUEST_ID] = new_request_id()
        return ""

    def reads_body(self, environ: "WSGIEnvironment") -> bool:
        """Return True."""
        del environ
        return True

    is_quick = reads_body

    def refusal(self, environ: "WSGIEnvironment") -> Refusal | None:
        """Return None."""
        del environ
        return None

    known_refusal = refusal

    def max_body_bytes(self, environ: "WSGIEnvironment") -> int | None:
        """Return None."""
        del environ
        return None

    def enter(self, environ: "WSGIEnvironment") -> "_Token | None":
        """Return one of `threads` tokens, or None."""
        del environ
        try:
            token = self._free.pop()
        except IndexError:
            return None
        token.is_in_flight = True
        return token

    def leave(self, record: "_Token") -> None:
        """Give a token back."""
        if record.is_in_flight:
            record.is_in_flight = False
            self._free.append(record)

    def rest_s(self, tenant: str) -> float:
        """Return 0."""
        del tenant
        return 0.0

    def busy(self, tenant: str) -> Refusal:
        """Return a 503."""
        del tenant
        return HOST_BUSY, []

    def note_refusal(self, *_: object) -> None:
        """Do nothing."""


class _Token:
    """The permission to run one request."""

    is_quick = True
    is_over = False
    is_in_flight = False
