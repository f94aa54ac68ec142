"""Start wait: requests wait without a thread until their tenant can answer.

A tenant cannot answer while its file is validated or its instance is built. While a process starts,
a path without a tenant may belong to a tenant whose address is not known yet. A server that can let
requests wait without a thread asks `StartWait` before the server runs a request.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tenantry.http.environ import MAX_WAIT, START_WAIT_S, TARGET, TENANT

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

HOST_PAGES = "/-/"
"""The prefix of the paths that belong to the host."""


class StartWait:
    """Says whether a request has to wait for its tenant. Only the server's loop uses this class.

    Args:
        route: finds the app that answers a request, as `Router.route` does.
        unknown: what `route` finds for a path without a tenant.
        is_all_known: returns whether every tenant file has been validated once.
    """

    def __init__(
        self,
        route: "Callable[[WSGIEnvironment], WSGIApplication]",
        unknown: "WSGIApplication",
        is_all_known: Callable[[], bool],
    ) -> None:
        self._route = route
        self._unknown = unknown
        self._is_all_known = is_all_known
        # This dict contains the mounts of tenants that could not answer their last request.
        self._starting: dict[str, Any] = {}

    def must_wait(self, environ: "WSGIEnvironment") -> bool:
        """Whether a request has to wait.

        The call starts the validation or the build that the request waits for.
        """
        target: Any = environ[TARGET]
        tenant = environ.get(TENANT, "")
        if not tenant:
            return target is self._unknown and self._must_wait_for_tenants(environ)
        wait_s = target.wait_s()
        if wait_s <= 0:
            self._starting.pop(tenant, None)
            return False
        self._starting[tenant] = target
        environ[MAX_WAIT] = wait_s
        return True

    def _must_wait_for_tenants(self, environ: "WSGIEnvironment") -> bool:
        if environ.get("PATH_INFO", "").startswith(HOST_PAGES):
            return False
        environ[TARGET] = self._route(environ)
        environ[MAX_WAIT] = START_WAIT_S
        return environ[TARGET] is self._unknown and not self._is_all_known()

    def is_starting(self, tenant: str) -> bool:
        """Whether a request that has waited too long was waiting for the tenant's instance."""
        mount = self._starting.get(tenant)
        return mount is not None and mount.instance is None
