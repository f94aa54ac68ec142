"""Rebuilds: builds changed tenants while their old instances serve, and repeats failed builds.

The caller of `Rebuilds` receives each new instance and replaces the old instance with it.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tenantry.errors import Problem
from tenantry.reload.workers import BuildResult, ReloadWorkers
from tenantry.routing.build_failure import BuildFailure
from tenantry.routing.instance import Instance
from tenantry.routing.mount import Mount
from tenantry.tenants.model import Tenant

STUCK_AFTER_S = 5.0
"""Seconds after which a build is reported as stuck. A build usually takes 10 to 125 ms."""

MAX_BUILDS_PER_TENANT = 2
"""Maximum number of concurrent builds of one tenant. Two builds are allowed, because newer content
may fix a build that hangs. The limit is low, because each build that hangs keeps a thread."""

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Rebuild:
    """The build of one version of a tenant file, until the build succeeds or is canceled."""

    mount: Mount
    tenant: Tenant
    started_at: float
    on_built: Callable[[Instance], None]
    is_waiting: bool = False
    """Whether the build waits for the end of builds of older versions."""
    has_ended: bool = False
    """Whether the build has failed and has not started again."""
    failure: BuildFailure | None = None


class Rebuilds:
    """The rebuilds of one process, with at most one wanted build per tenant. Not thread-safe.

    The mount shows the reason for a failed build. A failed build is due again after a pause.
    """

    def __init__(self, workers: ReloadWorkers, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers = workers
        self._clock = clock
        self._rebuilds: dict[str, _Rebuild] = {}
        # Number of running builds of each tenant, wanted or not.
        self._running: Counter[str] = Counter()

    def start(self, mount: Mount, tenant: Tenant, on_built: Callable[[Instance], None]) -> None:
        """Build `tenant`, and pass the instance to `on_built` unless it is no longer wanted.

        An instance is no longer wanted after a call of `cancel`, or after a call of `start` with
        another version of the tenant.
        """
        rebuild = self._rebuilds.get(tenant.name)
        if rebuild is None or rebuild.tenant is not tenant:
            rebuild = _Rebuild(mount, tenant, self._clock(), on_built)
            self._rebuilds[tenant.name] = rebuild
        elif not rebuild.has_ended:
            return
        rebuild.started_at, rebuild.has_ended = self._clock(), False
        self._submit(rebuild)

    def _submit(self, rebuild: _Rebuild) -> None:
        name = rebuild.tenant.name
        rebuild.is_waiting = self._running[name] >= MAX_BUILDS_PER_TENANT
        if not rebuild.is_waiting:
            self._running[name] += 1
            self._workers.build(
                rebuild.tenant,
                partial(self._handle_result, rebuild),
                partial(self._is_wanted, rebuild),
            )

    def cancel(self, name: str) -> None:
        """Cancel the build of a tenant, and forget its failed builds."""
        self._rebuilds.pop(name, None)

    def due(self) -> list[str]:
        """Return the names of the tenants with a failed build that is due again."""
        now = self._clock()
        return [
            name
            for name, rebuild in self._rebuilds.items()
            if rebuild.has_ended and rebuild.failure is not None and rebuild.failure.retry_at <= now
        ]

    def report_stuck(self) -> None:
        """Log the builds that take too long, and show the reason in their mounts."""
        latest_start = self._clock() - STUCK_AFTER_S
        for rebuild in self._rebuilds.values():
            if not rebuild.has_ended and rebuild.started_at < latest_start:
                _report_stuck(rebuild)

    def _is_wanted(self, rebuild: _Rebuild) -> bool:
        return self._rebuilds.get(rebuild.tenant.name) is rebuild

    def _handle_result(self, rebuild: _Rebuild, result: BuildResult) -> None:
        name = rebuild.tenant.name
        self._running[name] -= 1
        if not self._running[name]:
            del self._running[name]
        newest = self._rebuilds.get(name)
        if newest is not None and newest.is_waiting:
            self._submit(newest)
        if rebuild is not newest:
            if isinstance(result, Instance):
                result.retire()
        elif isinstance(result, Instance):
            rebuild.on_built(result)
        elif result is not None:
            self._note_failure(rebuild, result)

    def _note_failure(self, rebuild: _Rebuild, error: BaseException) -> None:
        tenant = rebuild.tenant
        rebuild.has_ended = True
        now = self._clock()
        rebuild.failure = BuildFailure.of(error, rebuild.failure, now, tenant.blueprints)
        if rebuild.failure.count == 1:
            facts = {"tenant": tenant.name, "digest": tenant.digest[:12]}
            _logger.error("tenant.reload_failed", exc_info=error, extra=facts)
        problem = Problem(tenant.file, f"cannot be built: {rebuild.failure.reason}")
        rebuild.mount.reject(str(problem), tenant.digest)


def _report_stuck(rebuild: _Rebuild) -> None:
    text = (
        f"its build has taken more than {STUCK_AFTER_S:g} s; check whether an endpoint waits for "
        "something while it is imported."
    )
    if rebuild.is_waiting:
        text = (
            f"its build waits for {MAX_BUILDS_PER_TENANT} builds of older content that hang; run "
            "`tenantry restart`."
        )
    reason = str(Problem(rebuild.tenant.file, text))
    if rebuild.mount.reason != reason:
        facts = {"tenant": rebuild.tenant.name, "state": "stale", "reason": reason}
        _logger.error("tenant.reload_stuck", extra=facts)
        rebuild.mount.reject(reason, rebuild.tenant.digest)
