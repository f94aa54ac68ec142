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
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue

from core.catalogue import Disabled, Rejected, Verdict, clashing
from core.claims import Claims, Clash
from core.departures import Departures
from core.errors import Problem, TenantryError
from core.folder import SETTLE_S, Content, TenantsFolder
from core.instance import Instance
from core.lanes import STUCK_S, Built, Lanes
from core.levers import UNTOUCHED, Levers, levers_stamp, read_levers
from core.mounts import FIRST_BACK_OFF_S, MAX_BACK_OFF_S, Mount, Mounts, error_text
from core.tenant import NAME, Tenant

POLL_S = 1.0
"""Between two looks at the folder where no event comes: network file systems tell nothing. Also
between two looks at levers, draining and idle instances."""

VERDICT_PATIENCE_S = 1.0
"""How long requests wait for the verdict on their tenant's file, from the first one on, while the
host starts: those of a file that hangs must not hold the threads again and again."""

BATCH_S = 0.25
"""How long a verdict may wait for those on files that changed with it. Of two new tenants that
clash the first by name is accepted then, in each worker, whichever is judged first."""

PUBLISH_PAUSE_S = 0.25
"""Between two new routings while files are judged: one for 10,000 tenants takes 15 ms."""

LOADER_REST_S = 10.0
"""How long after the last file the loader processes end: changes come in company, and starting one
costs 50 ms, a third of what a change takes to be served."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """The host settings that the follower heeds; see `HostSettings`."""

    max_active: int
    idle_timeout_s: float
    drain_timeout_s: float


@dataclass(slots=True)
class _Known:
    """What the follower knows of one file. Only its thread writes it; 10,000 may be alive."""

    mount: Mount
    content: Content | None = None
    """The newest settled content, until there is a verdict on it. One on older content is void."""
    verdict: Verdict | None = None
    levers: Levers = UNTOUCHED
    levers_stamp: int = 0


@dataclass(slots=True)
class _Building:
    """A build beside the instance that serves, from its start to its success."""

    tenant: Tenant
    since: float
    is_over: bool = False
    failures: int = 0
    """How many in a row, this content's and no other's."""
    retry_at: float = 0.0


@dataclass(frozen=True)
class Off:
    """A tenant that is disabled: as if its file were not there."""

    name: str
    prefix: str
    digest: str
    """SHA-256 of the file's content that was judged last."""
    endpoints: tuple[str, ...]


class Follower:
    """Follows one tenants folder for one process.

    `step()` is one round; whoever drives it (`run()` in a thread, or a test by hand) owns all
    state here. Other threads read `is_ready`, call `await_verdict`, `wake` and `stop`.
    """

    def __init__(
        self,
        folder: TenantsFolder,
        data_dir: Path,
        mounts: Mounts,
        build: Callable[[Tenant], Instance],
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_ready = threading.Event()
        """Every file has been judged once."""
        self.off: tuple[Off, ...] = ()
        """The disabled tenants; replaced whole, so that any thread may read it."""
        self._folder = folder
        self._data_dir = data_dir
        self._mounts = mounts
        self._build = build
        self._limits = limits
        self._clock = clock
        self._woken = threading.Event()
        self._is_stopping = False
        self._is_look_asked = False
        self._lanes = Lanes(data_dir, build, self._woken.set)
        self._departures = Departures(limits.drain_timeout_s, clock)
        self._claims = Claims()
        self._await = self.await_verdict  # one bound method for all mounts
        self._known: dict[str, _Known] = {}
        self._to_judge: OrderedDict[str, None] = OrderedDict()
        self._to_decide: set[str] = set()  # names that have a new verdict
        self._decide_by = 0.0
        self._building: dict[str, _Building] = {}
        self._urgent: SimpleQueue[str] = SimpleQueue()
        self._asked: dict[str, float] = {}  # name → when the first request asked for a verdict
        self._verdicts = threading.Condition()
        self._next_look = 0.0
        self._judged_at = -math.inf
        self._next_care = 0.0
        self._next_publication = 0.0
        self._is_missing = False
        self._are_routes_old = False
        self._are_claims_freed = False
        self._leaving: list[Mount] = []  # to be taken out of the routing
        self._unrouted: list[Mount] = []  # to be closed
        self._unjudged: set[str] = set()  # names on which nothing was decided yet
        self._refused: set[str] = set()  # names refused for a clash: it may pass

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
        for mount in [one.mount for one in self._known.values()] + self._leaving + self._unrouted:
            self._close(mount)
        self._leaving, self._unrouted = [], []
        self._departures.close()

    def wake(self, *, look: bool = False) -> None:
        """Begin the next round now; with `look`, look at the folder in it."""
        if look:
            self._is_look_asked = True
        self._woken.set()

    def stop(self) -> None:
        """Let `run()` end after its round."""
        self._is_stopping = True
        self._woken.set()

    def await_verdict(self, mount: Mount) -> None:
        """Have a tenant's file judged next, and wait for that, for a second at most."""
        first = self._asked.setdefault(mount.name, self._clock())
        self._urgent.put(mount.name)
        self._woken.set()
        with self._verdicts:
            self._verdicts.wait_for(
                lambda: mount.name not in self._unjudged,
                max(first + VERDICT_PATIENCE_S - self._clock(), 0),
            )

    # -- a round --------------------------------------------------------------------------------

    def step(self) -> float:
        """Do one round; return the seconds until the next is due."""
        if self._is_look_asked or self._clock() >= self._next_look:
            self._is_look_asked = False  # before the look: what is asked during it gets another
            self._look()
        for result in self._lanes.collect():
            self._contained("", result)
        self._reconsider()
        self._decide_all()
        self._send_to_lanes()
        if self._clock() >= self._next_care:
            self._care()
        self._reconsider()
        is_all_known = not self._is_missing and not self._unjudged
        self._are_routes_old |= is_all_known and not self.is_ready.is_set()
        self._publish(is_urgent=is_all_known)
        if is_all_known:
            self.is_ready.set()
        if self._lanes.judging or self._to_judge:
            self._judged_at = self._clock()
        elif self._clock() - self._judged_at >= LOADER_REST_S:
            self._lanes.rest()
        return self._until_next()

    def _until_next(self) -> float:
        due = [self._next_look, self._next_care]
        due += [self._decide_by] if self._to_decide else []
        due += [self._next_publication] if self._are_routes_old else []
        return max(min(due) - self._clock(), 0)

    def _contained(self, name: str, act: Callable[[], None]) -> bool:
        """Do what concerns one tenant: whatever is odd about it, the others get their round."""
        try:
            act()
        except Exception:
            _logger.exception("follower.step_failed", extra={"tenant": name})
            return False
        return True

    def _look(self) -> None:
        try:
            found = self._folder.look()
        except OSError as error:
            self._next_look = self._clock() + POLL_S
            if not self._is_missing:
                facts = {"folder": str(self._folder.path), "reason": error.strerror}
                _logger.error("tenants_folder.unreadable", extra=facts)
            self._is_missing = True
            return
        self._is_missing = False
        self._next_look = self._clock() + (POLL_S if found.is_settled else SETTLE_S)
        for name in found.appeared:
            self._contained(name, partial(self._appear, name))
        for name in found.removed:
            self._contained(name, partial(self._disappear, name))
        for content in found.changed:
            known = self._known.get(content.path.stem)
            if known is not None:
                known.content = content
                self._to_judge[content.path.stem] = None

    def _appear(self, name: str) -> None:
        self._known[name] = _Known(self._new_mount(name))
        self._unjudged.add(name)
        self._asked.pop(name, None)
        self._are_routes_old = True
        self._read_levers(name)

    def _new_mount(self, name: str) -> Mount:
        return Mount(name, None, self._build, await_verdict=self._await)

    def _disappear(self, name: str) -> None:
        known = self._known.pop(name)
        self._leaving.append(known.mount)
        self._claims.drop(name)
        self._settle(name)
        for names in (self._to_judge, self._building):
            names.pop(name, None)
        self._to_decide.discard(name)
        self._refused.discard(name)
        self._are_routes_old = True
        self._are_claims_freed = True
        _logger.info("tenant.removed", extra={"tenant": name})

    def _send_to_lanes(self) -> None:
        try:
            while True:
                name = self._urgent.get_nowait()
                if name in self._to_judge:
                    self._to_judge.move_to_end(name, last=False)
        except Empty:
            pass
        while self._to_judge and self._lanes.has_room:
            known = self._known[self._to_judge.popitem(last=False)[0]]
            content = known.content
            if content is not None:
                self._lanes.judge(
                    content,
                    partial(self._judged, known, content),
                    partial(_is_newest, known, content),
                )

    def _publish(self, *, is_urgent: bool) -> None:
        if not self._are_routes_old or not (is_urgent or self._clock() >= self._next_publication):
            return
        self._next_publication = self._clock() + PUBLISH_PAUSE_S
        self._are_routes_old = False
        shown = [known for known in self._known.values() if not _is_off(known)]
        for known in shown:
            if known.mount.tenant is None:  # 503 at its place, unless an accepted one has that
                wanted = _wanted_prefix(known)
                is_free = wanted is not None and self._claims.is_free(wanted)
                known.mount.prefix = wanted if is_free else None
        self._mounts.replace(known.mount for known in shown)
        self.off = tuple(_off(known) for known in self._known.values() if _is_off(known))
        self._unrouted += self._leaving
        self._leaving = []

    # -- decisions ------------------------------------------------------------------------------

    def _judged(self, known: _Known, content: Content, verdict: Verdict) -> None:
        name = content.path.stem
        if self._known.get(name) is not known or known.content is not content:
            return  # the file has changed or gone meanwhile
        known.content, known.verdict = None, verdict
        if not content.digest:
            self._folder.note(name, verdict.digest, is_readable=isinstance(verdict, Tenant))
        self._building.pop(name, None)  # the back-off is of the old content
        if not self._to_decide:
            self._decide_by = self._clock() + BATCH_S
        self._to_decide.add(name)

    def _decide_all(self) -> None:
        """Decide on what has been judged: at start one by one, later a batch in name order."""
        is_whole = not self._to_judge and not self._lanes.judging
        if self.is_ready.is_set() and not is_whole and self._clock() < self._decide_by:
            return
        for name in sorted(self._to_decide):
            self._to_decide.discard(name)
            known = self._known[name]
            if not self._contained(name, partial(self._decide, known)):
                known.mount.reject("a fault of Tenantry, please report it; the log has it.", "")
            self._settle(name)

    def _settle(self, name: str) -> None:
        """Something was decided on a name: let the requests go on that wait for it."""
        if name in self._unjudged:
            self._unjudged.discard(name)
            self._asked.pop(name, None)
            with self._verdicts:
                self._verdicts.notify_all()

    def _decide(self, known: _Known) -> None:
        verdict = known.verdict
        self._refused.discard(known.mount.name)
        if _is_off(known):
            self._turn_off(known)
        elif isinstance(verdict, Rejected):
            self._reject(known, verdict)
        elif isinstance(verdict, Tenant):
            self._admit(known, verdict)

    def _turn_off(self, known: _Known) -> None:
        """Serve no more, as if the file were not there."""
        self._building.pop(known.mount.name, None)
        self._are_routes_old = True
        if known.mount.tenant is not None or known.mount.reason:
            self._forget(known)

    def _admit(self, known: _Known, tenant: Tenant) -> None:
        clashes = self._claims.clashes(tenant)
        if clashes and self._comes_first(known, tenant, clashes):
            owners = [self._known[name] for name in sorted({clash.owner for clash in clashes})]
            for owner in owners:
                self._forget(owner)
            self._serve(known, tenant)
            for owner in owners:
                self._decide(owner)
        elif clashes:
            self._building.pop(tenant.name, None)
            self._reject(known, clashing(tenant, clashes))
            self._refused.add(tenant.name)
        elif known.mount.tenant == tenant:  # what was wrong in between is mended
            known.verdict = known.mount.tenant
            known.mount.confirm()
        else:
            self._serve(known, tenant)

    def _comes_first(self, known: _Known, tenant: Tenant, clashes: list[Clash]) -> bool:
        """Whether it displaces who was accepted before it: at start, the first in name order."""
        is_starting = not self.is_ready.is_set() and not known.mount.has_served
        return is_starting and all(clash.owner > tenant.name for clash in clashes)

    def _forget(self, known: _Known) -> None:
        """Take a tenant's mount and claims away; its file may get them again."""
        old = known.mount
        known.mount = self._new_mount(old.name)
        known.mount.lever = known.levers.maintenance
        self._leaving.append(old)
        self._claims.drop(old.name)
        self._are_claims_freed = self._are_routes_old = True

    def _serve(self, known: _Known, tenant: Tenant) -> None:
        mount = known.mount
        is_new, prefix = mount.tenant is None, mount.prefix
        if mount.accept(tenant):
            self._note_served(tenant, is_new=is_new, prefix=prefix)
        else:
            self._build_beside(known, tenant)

    def _swap(self, known: _Known, tenant: Tenant, instance: Instance) -> None:
        mount, prefix = known.mount, known.mount.prefix
        asleep = mount.instance is None
        old = mount.swap(tenant, instance)
        # A change of the file is no use of the tenant: who slept goes on to sleep.
        if asleep or old is not None:
            instance.used_at = -math.inf if old is None else old.used_at
        if old is not None:
            self._departures.add(tenant.name, old)
        self._note_served(tenant, is_new=False, prefix=prefix)

    def _note_served(self, tenant: Tenant, *, is_new: bool, prefix: str | None) -> None:
        self._building.pop(tenant.name, None)
        self._claims.take(tenant)
        self._are_claims_freed |= not is_new  # it may have left its old prefix
        is_changed = is_new or prefix != tenant.url_prefix
        self._are_routes_old |= is_changed
        event = "tenant.added" if is_new else "tenant.changed"
        _logger.info(event, extra={"tenant": tenant.name, "digest": tenant.digest[:12]})

    def _build_beside(self, known: _Known, tenant: Tenant) -> None:
        building = self._building.get(tenant.name)
        if building is None or building.tenant is not tenant:
            building = self._building[tenant.name] = _Building(tenant, self._clock())
        building.since, building.is_over = self._clock(), False
        self._lanes.build(
            tenant, partial(self._built, known, building), partial(self._is_current, building)
        )

    def _is_current(self, building: _Building) -> bool:
        return self._building.get(building.tenant.name) is building

    def _built(self, known: _Known, building: _Building, built: Built) -> None:
        tenant = building.tenant
        is_wanted = self._is_current(building) and known.verdict is tenant
        if isinstance(built, BaseException):
            if is_wanted:
                self._note_failed_build(known, building, built)
        elif not is_wanted:
            built.retire()
        elif self._claims.clashes(tenant):
            built.retire()
            self._decide(known)
        else:
            self._swap(known, tenant, built)

    def _note_failed_build(self, known: _Known, building: _Building, error: BaseException) -> None:
        tenant = building.tenant
        pause_s = min(FIRST_BACK_OFF_S * 2**building.failures, MAX_BACK_OFF_S)
        building.failures += 1
        building.is_over, building.retry_at = True, self._clock() + pause_s
        if building.failures == 1:
            facts = {"tenant": tenant.name, "digest": tenant.digest[:12]}
            _logger.error("tenant.reload_failed", exc_info=error, extra=facts)
        problem = Problem(tenant.file, f"cannot be built: {error_text(error)}")
        known.mount.reject(str(problem), tenant.digest)

    def _reject(self, known: _Known, rejected: Rejected) -> None:
        mount = known.mount
        if (mount.digest, mount.reason) != (rejected.digest, rejected.reason):
            state = "stale" if mount.tenant is not None else "failed"
            for problem in rejected.problems:
                facts = {"tenant": rejected.name, "state": state, "reason": str(problem)}
                _logger.error("tenant.rejected", extra=facts)
        mount.reject(rejected.reason, rejected.digest)
        self._are_routes_old |= mount.tenant is None  # its place may be another one now

    def _reconsider(self) -> None:
        """Where something was given up, look again at who was refused because of it, by name."""
        while self._are_claims_freed:
            self._are_claims_freed = False
            for name in sorted(self._refused):
                self._contained(name, partial(self._reconsider_one, self._known[name]))

    def _reconsider_one(self, known: _Known) -> None:
        verdict = known.verdict
        if known.mount.name not in self._refused or not isinstance(verdict, Tenant):
            return  # decided on meanwhile
        clashes = self._claims.clashes(verdict)
        if not clashes or self._comes_first(known, verdict, clashes):
            self._refused.discard(known.mount.name)
            self._admit(known, verdict)

    # -- care, every second ---------------------------------------------------------------------

    def _care(self) -> None:
        self._next_care = self._clock() + POLL_S
        for mount in self._unrouted:
            self._close(mount)
        self._unrouted = []
        for name in list(self._known):
            self._contained(name, partial(self._read_levers, name))
        for name, building in list(self._building.items()):
            self._contained(name, partial(self._care_for_build, name, building))
        self._lanes.relieve()
        self._contained("", self._departures.check)
        self._contained("", self._put_to_sleep)

    def _close(self, mount: Mount) -> None:
        """End a mount a while after it left the routing: a request may have found it before."""
        instance = mount.close()
        if instance is not None:
            self._departures.add(mount.name, instance)

    def _care_for_build(self, name: str, building: _Building) -> None:
        known, tenant, now = self._known[name], building.tenant, self._clock()
        if building.is_over and building.retry_at <= now:
            self._decide(known)
        elif not building.is_over and now - building.since > STUCK_S:
            text = f"is being built for over {STUCK_S:g} s; does an endpoint wait while imported?"
            reason = str(Problem(tenant.file, text))
            if known.mount.reason != reason:
                facts = {"tenant": name, "state": "stale", "reason": reason}
                _logger.error("tenant.reload_stuck", extra=facts)
                known.mount.reject(reason, tenant.digest)

    def _read_levers(self, name: str) -> None:
        known = self._known[name]
        try:
            stamp = levers_stamp(self._data_dir, name)
            if stamp == known.levers_stamp:
                return
            known.levers_stamp = stamp
            levers = read_levers(self._data_dir, name)
        except (OSError, TenantryError) as error:
            self._note_unreadable(known, error)
            return
        was_off, known.levers = _is_off(known), levers
        known.mount.lever = levers.maintenance
        if was_off != _is_off(known):
            self._are_routes_old = True
            self._decide(known)

    def _note_unreadable(self, known: _Known, error: Exception) -> None:
        if isinstance(error, TenantryError) or known.levers_stamp != _UNREADABLE:
            facts = {"tenant": known.mount.name, "reason": str(error)}
            _logger.error("levers.unreadable", extra=facts)
        if isinstance(error, OSError):
            known.levers_stamp = _UNREADABLE

    def _put_to_sleep(self) -> None:
        """Let go who was idle too long, and of too many the least recently used."""
        pairs = [(one.mount, one.mount.instance) for one in self._known.values()]
        awake = [(each.used_at, mount) for mount, each in pairs if each is not None]
        awake.sort(key=lambda pair: pair[0])
        too_many = len(awake) - self._limits.max_active
        for used_at, mount in awake:
            is_overdue = self._clock() - used_at > self._limits.idle_timeout_s
            if too_many <= 0 and not is_overdue:
                return
            instance = mount.sleep()  # not while a request is in flight
            if instance is not None:
                too_many -= 1
                self._departures.add(mount.name, instance)


_UNREADABLE = -1
"""Stands for the stamp of levers that cannot be looked at."""


def _is_off(known: _Known) -> bool:
    """Whether it is as if the file were not there."""
    verdict = known.verdict
    return known.levers.is_disabled or isinstance(verdict, Disabled)


def _off(known: _Known) -> Off:
    verdict = known.verdict
    if isinstance(verdict, Tenant):
        return Off(verdict.name, verdict.url_prefix, verdict.digest, verdict.blueprints)
    if isinstance(verdict, Disabled):
        return Off(verdict.name, verdict.prefix or "", verdict.digest, verdict.endpoints)
    digest = "" if verdict is None else verdict.digest
    return Off(known.mount.name, "", digest, ())


def _wanted_prefix(known: _Known) -> str | None:
    """Return where a file that is not accepted would be mounted, as far as that is known."""
    verdict, name = known.verdict, known.mount.name
    if isinstance(verdict, Tenant):
        return verdict.url_prefix
    if isinstance(verdict, Rejected):
        return verdict.prefix
    return f"/{name}" if NAME.fullmatch(name) else None


def _is_newest(known: _Known, content: Content) -> bool:
    return known.content is content
