"""Builds beside: the next instance of a tenant that serves, tried again when it fails.

Swaps nothing: who asked for a build gets what was built.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tenantry.errors import Problem
from tenantry.reload.workers import Built, ReloadWorkers
from tenantry.routing.build_failure import BuildFailure
from tenantry.routing.instance import Instance
from tenantry.routing.mount import Mount
from tenantry.tenants.model import Tenant

STUCK_S = 5.0
"""A build that takes longer is told as one that hangs. A usual one takes 10 to 125 ms."""

HELD_OF_ONE = 2
"""Builds of one name at once: a newer content may be what mends one that hangs, but each that hangs
keeps a thread, and whoever edits the file again and again must not take one each time."""

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Rebuild:
    """A build beside the instance that serves, from its start to its success."""

    mount: Mount
    tenant: Tenant
    since: float
    then: Callable[[Instance], None]
    is_waiting: bool = False
    """Whether builds of older content are in its way."""
    is_over: bool = False
    failure: BuildFailure | None = None


class Rebuilds:
    """The builds beside of one process, one of a name at most. One thread uses it.

    A build that fails is noted at its mount, and due again after a pause that doubles.
    """

    def __init__(self, lanes: ReloadWorkers, clock: Callable[[], float] = time.monotonic) -> None:
        self._lanes = lanes
        self._clock = clock
        self._rebuilds: dict[str, _Rebuild] = {}
        self._held: Counter[str] = Counter()  # name → its builds in the lanes, wanted or not

    @property
    def running(self) -> int:
        """Builds that are not over yet."""
        return sum(not one.is_over for one in self._rebuilds.values())

    def begin(self, mount: Mount, tenant: Tenant, then: Callable[[Instance], None]) -> None:
        """Build `tenant`, and hand the instance over if the build is still wanted by then.

        It is wanted until `drop`; an older content of the same tenant no more. It waits while
        `HELD_OF_ONE` builds of older content go on.
        """
        one = self._rebuilds.get(tenant.name)
        if one is None or one.tenant is not tenant:
            one = self._rebuilds[tenant.name] = _Rebuild(mount, tenant, self._clock(), then)
        one.since, one.then, one.is_over = self._clock(), then, False
        self._start(one)

    def _start(self, one: _Rebuild) -> None:
        name = one.tenant.name
        one.is_waiting = self._held[name] >= HELD_OF_ONE
        if not one.is_waiting:
            self._held[name] += 1
            self._lanes.build(one.tenant, partial(self._ended, one), partial(self._is_wanted, one))

    def drop(self, name: str) -> None:
        """Forget the build of a name, and its back-off."""
        self._rebuilds.pop(name, None)

    def due(self) -> list[str]:
        """Return the names whose failed build is to be tried again; report those that are stuck."""
        for one in self._rebuilds.values():
            if not one.is_over and self._clock() - one.since > STUCK_S:
                _report_stuck(one)
        now = self._clock()
        return [
            name
            for name, one in self._rebuilds.items()
            if one.is_over and one.failure and one.failure.retry_at <= now
        ]

    def _is_wanted(self, one: _Rebuild) -> bool:
        return self._rebuilds.get(one.tenant.name) is one

    def _ended(self, one: _Rebuild, built: Built) -> None:
        name = one.tenant.name
        self._held -= Counter([name])
        waiting = self._rebuilds.get(name)
        if waiting is not None and waiting.is_waiting:
            self._start(waiting)
        if isinstance(built, BaseException):
            if self._is_wanted(one):
                self._note_failure(one, built)
        elif built is not None and self._is_wanted(one):
            one.then(built)
        elif built is not None:
            built.retire()

    def _note_failure(self, one: _Rebuild, error: BaseException) -> None:
        tenant = one.tenant
        one.is_over = True
        one.failure = BuildFailure.of(error, one.failure, self._clock())
        if one.failure.count == 1:
            facts = {"tenant": tenant.name, "digest": tenant.digest[:12]}
            _logger.error("tenant.reload_failed", exc_info=error, extra=facts)
        problem = Problem(tenant.file, f"cannot be built: {one.failure.reason}")
        one.mount.reject(str(problem), tenant.digest)


def _report_stuck(one: _Rebuild) -> None:
    text = f"is being built for over {STUCK_S:g} s; does an endpoint wait while imported?"
    if one.is_waiting:
        text = f"waits for {HELD_OF_ONE} builds of older content that hang; `tenantry restart`."
    reason = str(Problem(one.tenant.file, text))
    if one.mount.reason != reason:
        facts = {"tenant": one.tenant.name, "state": "stale", "reason": reason}
        _logger.error("tenant.reload_stuck", extra=facts)
        one.mount.reject(reason, one.tenant.digest)
