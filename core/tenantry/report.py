"""The state of one host process, for `tenantry` commands and for the host's own pages."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from tenantry.app.process_resources import ProcessResources
from tenantry.middleware.host_pages import MountStatus
from tenantry.migrations.guard import database_problem
from tenantry.private_code.generations import host_name
from tenantry.reload.follower import Follower
from tenantry.routing.mount import Mount
from tenantry.routing.router import Router
from tenantry.tenants.diff import describe
from tenantry.tenants.operator_state import OperatorState


class HostReport:
    """The state of one host process, as JSON data except for `statuses`. Thread-safe.

    Args:
        router: the router, which holds the mounts of the process.
        follower: the follower of the tenants folder.
        resources: the resources that the tenants of the process share.
        is_stopping: returns whether the process is about to end.
        only: the names of the tenants that the host serves; empty if the host serves all tenants.
        server: the name of the server that runs the process.
    """

    def __init__(
        self,
        router: Router,
        follower: Follower,
        resources: ProcessResources,
        is_stopping: Callable[[], bool] = lambda: False,
        *,
        only: tuple[str, ...] = (),
        server: str = "",
    ) -> None:
        self._router = router
        self._follower = follower
        self._resources = resources
        self._is_stopping = is_stopping
        self._only = only
        self._server = server

    @property
    def commands(self) -> Mapping[str, Callable[..., Any]]:
        """The commands of the control socket, with the method that answers each command."""
        return {
            "list": self.listing, "plan": self.plan, "load": self.in_flight,
            "ready": self.ready, "built": self.built, "accepted": self.accepted,
        }  # fmt: skip

    @property
    def is_ready(self) -> bool:
        """Whether every tenant file has been validated once."""
        return self._follower.is_ready.is_set()

    def statuses(self) -> list[MountStatus]:
        """Return the state of every mount, sorted by tenant name."""
        stuck = self._resources.watchdog.stuck()
        return [_status(mount, stuck[mount.name]) for mount in self._router.mounts]

    def listing(self) -> dict[str, Any]:
        """Return the state of the process and of every tenant, for `tenantry list`."""
        return {
            "master": os.getppid(),
            "is_ready": self.is_ready,
            "only": self._only,
            "server": self._server,
            "code": host_name(),
            "in_flight": self._resources.in_flight.counts(),
            "uncounted": self._resources.uncounted_total,
            "mounts": [*self._mounts(), *self._disabled()],
        }

    def in_flight(self) -> dict[str, Any]:
        """Return the requests in flight and the stuck requests per tenant, for `tenantry top`."""
        resources = self._resources
        return {"in_flight": resources.in_flight.counts(), "stuck": resources.watchdog.stuck()}

    def ready(self) -> dict[str, Any]:
        """Return whether the process is ready, in constant time, for `tenantry restart`."""
        return {"master": os.getppid(), "is_ready": self.is_ready}

    def accepted(self) -> dict[str, Any]:
        """Return the digest and the address of each accepted tenant, for starting workers."""
        tenants = [mount.tenant for mount in self._router.mounts] if self.is_ready else []
        accepted = {
            tenant.name: (tenant.digest, *tenant.address)
            for tenant in tenants
            if tenant is not None
        }
        return {"only": self._only, "accepted": accepted}

    def built(self) -> dict[str, Any]:
        """Return the names of the tenants with a built app, most recently used first.

        A new worker builds the same tenants. A process that is about to end returns no names.
        """
        if self._is_stopping():
            return {"names": []}
        pairs = [(mount.instance, mount.name) for mount in self._router.mounts]
        built = [(instance.used_at, name) for instance, name in pairs if instance is not None]
        return {"names": [name for _, name in sorted(built, reverse=True)]}

    def plan(self, salt: str) -> dict[str, Any]:
        """Return a description of every served tenant, which `tenantry plan` compares."""
        tenants = [mount.tenant for mount in self._router.mounts if mount.tenant is not None]
        descriptions = {tenant.name: describe(tenant, salt) for tenant in tenants}
        return {"is_ready": self.is_ready, "tenants": descriptions}

    def _mounts(self) -> Iterator[dict[str, Any]]:
        stuck = self._resources.watchdog.stuck()
        for mount in self._router.mounts:
            status = asdict(_status(mount, stuck[mount.name]))
            yield status | {"operator_state": asdict(_operator_state(mount))}

    def _disabled(self) -> Iterator[dict[str, Any]]:
        for tenant in self._follower.disabled:
            status = MountStatus(
                name=tenant.name,
                prefix=tenant.prefix,
                hosts=tenant.hosts,
                state="disabled",
                reason=tenant.reason,
                since=0.0,
                digest=tenant.digest,
                endpoints=tenant.endpoints,
            )
            yield asdict(status) | {"operator_state": asdict(tenant.operator_state)}


def _status(mount: Mount, stuck: int) -> MountStatus:
    instance = mount.instance
    app = None if instance is None or instance.app is None else instance.app()
    return MountStatus(
        name=mount.name,
        prefix=mount.prefix or "",
        hosts=() if mount.address is None else mount.address.hosts,
        state=mount.state,
        reason=mount.explanation,
        since=mount.since,
        digest=mount.digest,
        endpoints=() if mount.tenant is None else mount.tenant.blueprints,
        database=database_problem(app),
        has_app_migrations=bool(mount.tenant is not None and mount.tenant.migrations),
        stuck=stuck,
        is_parked=mount.quarantine is not None and mount.state_unless_parked != "failed",
    )


def _operator_state(mount: Mount) -> OperatorState:
    if mount.quarantine is None:
        return OperatorState(mount.operator_maintenance)
    return OperatorState(
        mount.operator_maintenance,
        parked=mount.quarantine.reason,
        times_parked=mount.quarantine.times,
    )
