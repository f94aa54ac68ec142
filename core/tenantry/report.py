"""What a process reports of itself: to `tenantry` on its status socket, and on the host's pages."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from tenantry.app.process_resources import ProcessResources
from tenantry.middleware.host_pages import MountStatus
from tenantry.migrations.guard import told_of
from tenantry.reload.follower import Follower
from tenantry.routing.mount import Mount
from tenantry.routing.router import Router
from tenantry.tenants.diff import describe
from tenantry.tenants.operator_state import OperatorState


class HostReport:
    """One process's, asked from any thread. What it returns, JSON takes, but for `statuses`.

    Args:
        router: finds the mount of a request.
        follower: who knows the tenants folder.
        shared: what the tenants share.
        is_stopping: whether the process is about to end.
        only: the tenants that the host serves; empty for all.
        server: the name of who runs it, for `tenantry restart`.
    """

    def __init__(
        self,
        router: Router,
        follower: Follower,
        shared: ProcessResources,
        is_stopping: Callable[[], bool] = lambda: False,
        *,
        only: tuple[str, ...] = (),
        server: str = "",
    ) -> None:
        self._router = router
        self._follower = follower
        self._shared = shared
        self._is_stopping = is_stopping
        self._only = only
        self._server = server

    @property
    def answers(self) -> Mapping[str, Callable[..., Any]]:
        """What answers each question of `status`."""
        return {
            "list": self.listing, "plan": self.plan, "load": self.in_flight,
            "ready": self.ready, "awake": self.awake, "accepted": self.accepted,
        }  # fmt: skip

    @property
    def is_ready(self) -> bool:
        """Whether every tenant file has been judged once."""
        return self._follower.is_ready.is_set()

    def statuses(self) -> list[MountStatus]:
        """Return every mount's state, in the order of names."""
        stuck = self._shared.requests.stuck()
        return [_status(mount, stuck[mount.name]) for mount in self._router.mounts]

    def listing(self) -> dict[str, Any]:
        """Return what `tenantry list` asks."""
        return {
            "master": os.getppid(),
            "is_ready": self.is_ready,
            "only": self._only,
            "server": self._server,
            "in_flight": self._shared.slots.in_use(),
            "uncounted": self._shared.uncounted_total,
            "mounts": [*self._told_mounts(), *self._told_off()],
        }

    def in_flight(self) -> dict[str, Any]:
        """Return what `tenantry top` asks."""
        shared = self._shared
        return {"in_flight": shared.slots.in_use(), "stuck": shared.requests.stuck()}

    def ready(self) -> dict[str, Any]:
        """Return what `tenantry restart` asks again and again: cheap with any number of tenants."""
        return {"master": os.getppid(), "is_ready": self.is_ready}

    def accepted(self) -> dict[str, Any]:
        """Return the digests of all that is accepted here, for workers that start meanwhile."""
        tenants = [mount.tenant for mount in self._router.mounts] if self.is_ready else []
        accepted = {tenant.name: tenant.digest for tenant in tenants if tenant is not None}
        return {"only": self._only, "accepted": accepted}

    def awake(self) -> dict[str, Any]:
        """Return the names of the tenants that are built here, the last used first.

        None of a process that is about to end: it is no sibling to learn from any more.
        """
        pairs = [(mount.instance, mount.name) for mount in self._router.mounts]
        awake = [(one.used_at, name) for one, name in pairs if one is not None]
        return {"names": [] if self._is_stopping() else [n for _, n in sorted(awake, reverse=True)]}

    def plan(self, salt: str) -> dict[str, Any]:
        """Return what `tenantry plan` compares with: a description of every tenant served."""
        tenants = [mount.tenant for mount in self._router.mounts if mount.tenant is not None]
        descriptions = {tenant.name: describe(tenant, salt) for tenant in tenants}
        return {"is_ready": self.is_ready, "tenants": descriptions}

    def _told_mounts(self) -> Iterator[dict[str, Any]]:
        stuck = self._shared.requests.stuck()
        for mount in self._router.mounts:
            told = asdict(_status(mount, stuck[mount.name]))
            yield told | {"operator_state": asdict(_operator_state(mount))}

    def _told_off(self) -> Iterator[dict[str, Any]]:
        for one in self._follower.off:
            place = one.name, one.prefix, "disabled", one.reason, 0.0, one.digest, one.endpoints
            yield asdict(MountStatus(*place)) | {"operator_state": asdict(one.operator_state)}


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
        is_parked=mount.quarantine is not None and mount.state_unless_parked != "failed",
    )


def _operator_state(mount: Mount) -> OperatorState:
    """Return the operator state that a mount follows."""
    if mount.quarantine is None:
        return OperatorState(mount.operator_maintenance)
    return OperatorState(
        mount.operator_maintenance,
        parked=mount.quarantine.reason,
        times_parked=mount.quarantine.times,
    )
