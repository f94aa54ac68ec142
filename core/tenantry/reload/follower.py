"""Keeps the mounts of one process what the tenants folder says, while it serves.

Every process does this for itself and converges on the same content; nothing depends on the
server's master. One thread decides and runs no tenant's code. A change: the file is judged →
compared with the others → built beside the old instance → swapped in by one assignment → the old
one retired. What fails on the way leaves the old one serving.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tenantry.reload.draining import Draining
from tenantry.reload.eviction import Eviction
from tenantry.reload.rebuilds import Rebuilds
from tenantry.reload.reconcile import Off, Reconciler, contained
from tenantry.reload.validation_queue import ValidationQueue
from tenantry.reload.workers import CLOSE_PATIENCE_S, ReloadWorkers
from tenantry.routing.build_pool import BuildPool
from tenantry.routing.instance import Instance
from tenantry.routing.mount import Mount
from tenantry.routing.quarantine import Quarantine
from tenantry.routing.router import Router
from tenantry.tenants.catalogue import ValidationResult
from tenantry.tenants.file import FileContent
from tenantry.tenants.folder import SETTLE_S, TenantsFolder
from tenantry.tenants.model import Tenant
from tenantry.tenants.operator_state import (
    OperatorState,
    OperatorStateWatch,
    end_trial,
    trial_lock_file,
)

POLL_S = 1.0
"""Between two looks at the folder where no event comes: network file systems tell nothing. Also
between two looks at operator states, draining and idle instances."""

FEW = 500
"""So many files are all looked at each second: that takes 3 ms. Of more, each has its turn."""

TURN_S = 1.5
"""Within which each of many files has its turn where no event comes: in effect within 2 s."""

SPREAD_S = 0.25
"""Between two looks then, so that none holds up a request for long: 10,000 files take 45 ms."""

SURE_TURN_S = 60.0
"""Within which each has its turn where events tell of all changes, in case that one was lost; and
each tenant's operator state, of which a marker file tells."""

LATE_CHECK_S = 0.25
"""Between two rounds while builds wait for a thread: a late one may free its place."""

PUBLISH_PAUSE_S = 0.25
"""Between two new routings while files are judged: one for 10,000 tenants takes 15 ms."""

LOADER_REST_S = 10.0
"""How long after the last file the loader processes end: changes come in company, and starting one
costs 50 ms, a third of what a change takes to be served."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FollowerLimits:
    """The host settings that the follower heeds; see `HostSettings`."""

    max_active: int
    idle_timeout_s: float
    drain_timeout_s: float


class Follower:
    """Follows one tenants folder for one process.

    `step()` is one round; whoever drives it (`run()` in a thread, or a test by hand) owns all
    state here. Other threads read `is_ready` and `off`, call `wake`, `trust_events` and `stop`.
    """

    def __init__(
        self,
        folder: TenantsFolder,
        data_dir: Path,
        mounts: Router,
        build: Callable[[Tenant], Instance],
        limits: FollowerLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_ready = threading.Event()
        """Every file has been judged once."""
        self.off: tuple[Off, ...] = ()
        """The disabled tenants; replaced whole, so that any thread may read it."""
        self._folder = folder
        self._mounts = mounts
        self._build = build
        self._clock = clock
        self._woken = threading.Event()
        self._is_stopping = False
        self._is_look_asked = False
        self._are_events_sure = False
        self._looked_at = -math.inf
        self._first_builds = BuildPool()
        self._lanes = ReloadWorkers(data_dir, build, self._woken.set)
        self._departures = Draining(limits.drain_timeout_s, clock)
        self._sleep = Eviction(limits.max_active, limits.idle_timeout_s, self._departures, clock)
        self._rebuilds = Rebuilds(self._lanes, clock)
        self._judging = ValidationQueue(self._lanes, self._judged, self._woken.set, clock)
        self._admission = Reconciler(
            self._new_mount, self._rebuilds, self._departures, folder.is_missing,
            partial(_quarantine, data_dir, clock),
        )  # fmt: skip
        self._operator_state = OperatorStateWatch(data_dir)
        self._await = self._judging.await_verdict  # one bound method for all mounts
        self._next_look = 0.0
        self._judged_at = -math.inf
        self._next_care = 0.0
        self._next_publication = 0.0
        self._is_missing = False
        self._unrouted: list[Mount] = []  # to be closed

    # -- the thread -----------------------------------------------------------------------------

    def run(self) -> None:
        """Do rounds until `stop()`; a round that fails is logged, and the next one comes."""
        while not self._is_stopping:
            try:
                wait_s = self.step()
            except Exception:
                _logger.exception("follower.round_failed")
                wait_s = POLL_S
            self._woken.wait(wait_s)
            self._woken.clear()

    def catch_up(self) -> None:
        """Do rounds, on the calling thread, until every file has been judged.

        It returns without that if the folder cannot be read.
        """
        while True:
            wait_s = self.step()
            if self.is_ready.is_set() or self._is_missing:
                return
            self._woken.wait(wait_s)
            self._woken.clear()

    def close(self) -> None:
        """End the lanes and every instance, whatever is in flight on it. Idempotent.

        No round may run any more, and the server has waited for its requests.
        """
        self._lanes.close()
        self._first_builds.close()
        self._first_builds.join(time.monotonic() + CLOSE_PATIENCE_S)
        mounts = [one.mount for one in self._admission.known.values()]
        for mount in mounts + self._admission.leaving + self._unrouted:
            self._close(mount)
        self._admission.leaving, self._unrouted = [], []
        self._departures.close()

    def wake(self, *, look: bool = False) -> None:
        """Begin the next round now; with `look`, look at the folder in it."""
        if look:
            self._is_look_asked = True
        self._woken.set()

    def prefer(self, accepted: Collection[tuple[str, str]]) -> None:
        """Note whom, by name and digest, other workers have accepted; before the first round."""
        self._admission.accepted_elsewhere = accepted

    def call_when_settled(self, act: Callable[[], None]) -> None:
        """Have `act` called, from the follower's thread, when much was made that stays.

        That is when all tenants are known, and when many more are awake than before.
        """
        self._sleep.note_settled = act

    def call_when_asleep(self, note: Callable[[str], None]) -> None:
        """Have `note` called, from the follower's thread, with the name of who was put to sleep."""
        self._sleep.note_asleep = note

    def trust_events(self, *, are_sure: bool) -> None:
        """Note whether `wake` is called after every change of the folder; looks at it now."""
        self._are_events_sure = are_sure
        self.wake(look=True)

    def stop(self) -> None:
        """Let `run()` end after its round."""
        self._is_stopping = True
        self._woken.set()

    # -- a round --------------------------------------------------------------------------------

    def step(self) -> float:
        """Do one round; return the seconds until the next is due."""
        is_asked = self._is_look_asked
        if is_asked or self._clock() >= self._next_look:
            self._is_look_asked = False  # before the look: what is asked during it gets another
            self._look(is_asked=is_asked)
        for result in self._lanes.collect():
            contained("", result)
        self._admission.reconsider()
        self._decide_due()
        self._judging.send()
        if self._clock() >= self._next_care:
            self._care()
        self._admission.reconsider()
        self._publish_and_tell()
        if not self._judging.is_idle:
            self._judged_at = self._clock()
        elif self._clock() - self._judged_at >= LOADER_REST_S:
            self._lanes.rest()
        return self._until_next()

    def _until_next(self) -> float:
        late_check = self._clock() + LATE_CHECK_S if self._lanes.relieve() else math.inf
        due = [self._next_look, self._next_care, self._judging.decide_by, late_check]
        due += [self._next_publication] if self._admission.are_routes_old else []
        return max(min(due) - self._clock(), 0)

    def _look(self, *, is_asked: bool = True) -> None:
        now = self._clock()
        is_whole = is_asked or self._is_missing or len(self._folder) <= FEW
        is_sure = self._are_events_sure and not self._folder.has_links
        share = (now - self._looked_at) / (SURE_TURN_S if is_sure else TURN_S)
        self._looked_at = now
        try:
            found = self._folder.look(1.0 if is_whole else share)
        except OSError as error:
            self._next_look = self._clock() + POLL_S
            if not self._is_missing:
                facts = {"folder": str(self._folder.path), "reason": error.strerror}
                _logger.error("tenants_folder.unreadable", extra=facts)
            self._is_missing = True
            return
        self._is_missing = False
        pause_s = POLL_S if is_sure or len(self._folder) <= FEW else SPREAD_S
        self._next_look = self._clock() + (pause_s if found.is_settled else SETTLE_S)
        for name in found.appeared:
            contained(name, partial(self._appear, name))
        for name in found.removed:
            contained(name, partial(self._disappear, name))
        for content in found.changed:
            if content.path.stem in self._admission.known:
                self._judging.add(content)

    def _appear(self, name: str) -> None:
        self._judging.appear(name)
        self._admission.appear(name)
        for _, operator_state in self._operator_state.appear(name):
            self._admission.pull(name, operator_state)
        if (
            name in self._operator_state.unreadable
        ):  # it may be disabled, so it is until they are read
            self._admission.pull(name, OperatorState(is_disabled=True))

    def _new_mount(self, name: str) -> Mount:
        note_awake = self._sleep.note_awake
        return Mount(
            *(name, None, self._build),
            wait_for_validation=self._await, note_built=note_awake, build_pool=self._first_builds,
        )  # fmt: skip

    def _disappear(self, name: str) -> None:
        self._judging.disappear(name)
        self._operator_state.forget(name)
        self._admission.disappear(name)

    def _judged(self, content: FileContent, verdict: ValidationResult) -> None:
        name = content.path.stem
        if not content.digest:
            self._folder.note_digest(name, verdict.digest, is_readable=isinstance(verdict, Tenant))
        self._admission.note(name, verdict)

    def _decide_due(self) -> None:
        for name in self._judging.take_due(is_starting=self._admission.is_starting):
            if not contained(name, partial(self._admission.decide, name)):
                mount = self._admission.known[name].mount
                mount.reject("a fault of Tenantry, please report it; the log has it.", "")
            self._judging.settle(name)

    def _publish_and_tell(self) -> None:
        is_all_known = not self._is_missing and self._judging.is_all_settled
        self._admission.are_routes_old |= is_all_known and not self.is_ready.is_set()
        is_due = is_all_known or self._clock() >= self._next_publication
        if self._admission.are_routes_old and is_due:
            self._publish()
        if is_all_known and not self.is_ready.is_set():
            self._admission.end_start()
            self._sleep.note_settled()
            self.is_ready.set()

    def _publish(self) -> None:
        admission = self._admission
        self._next_publication = self._clock() + PUBLISH_PAUSE_S
        admission.are_routes_old = False
        shown = [known for known in admission.known.values() if not known.is_off]
        for known in shown:
            if known.mount.tenant is None:  # 503 at its place, unless an accepted one has that
                wanted = known.wanted_prefix()
                is_free = wanted is not None and admission.claims.is_free(wanted)
                known.mount.prefix = wanted if is_free else None
        self._mounts.replace(known.mount for known in shown)
        why = self._operator_state.unreadable
        off = [known for known in admission.known.values() if known.is_off]
        self.off = tuple(known.off(why.get(known.mount.name, "")) for known in off)
        self._unrouted += admission.leaving
        admission.leaving = []

    # -- care, every second ---------------------------------------------------------------------

    def _care(self) -> None:
        self._next_care = self._clock() + POLL_S
        for mount in self._unrouted:
            self._close(mount)
        self._unrouted = []
        self._look_at_operator_state(self._admission.known, POLL_S / SURE_TURN_S)
        for name in self._rebuilds.due():
            contained(name, partial(self._admission.decide, name))
        self._first_builds.start_threads()
        contained("", self._departures.check)
        contained("", self._sleep.check)

    def _close(self, mount: Mount) -> None:
        """End a mount a while after it left the routing: a request may have found it before."""
        instance = mount.close()
        if instance is not None:
            self._departures.add(mount.name, instance)

    def _look_at_operator_state(self, names: Collection[str], share: float = 1.0) -> None:
        for name, operator_state in self._operator_state.look(
            names, 1.0 if len(names) <= FEW else share
        ):
            contained(name, partial(self._admission.pull, name, operator_state))


def _quarantine(
    data_dir: Path, clock: Callable[[], float], name: str, operator_state: OperatorState
) -> Quarantine | None:
    """Return what stands before a tenant while it is parked."""
    if not operator_state.parked:
        return None

    def settle(is_good: bool) -> None:
        end_trial(data_dir, name, is_good=is_good)

    lock_file = trial_lock_file(data_dir, name)
    return Quarantine(
        operator_state.parked, operator_state.times_parked, lock_file, settle, clock=clock
    )
