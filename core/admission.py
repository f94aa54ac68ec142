"""Who is admitted: what becomes of each file's verdict beside all the others.

Of two that clash the one that serves goes on serving; at start, the first in name order is
accepted. Reads no file and routes nothing: `reload` hands the verdicts in and publishes.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from core.catalogue import Disabled, Rejected, Verdict, clashing
from core.claims import Claims, Clash
from core.departures import Departures
from core.instance import Instance
from core.levers import UNTOUCHED, Levers
from core.mounts import Mount
from core.rebuilds import Rebuilds
from core.tenant import NAME, Tenant

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Off:
    """A tenant that is disabled: as if its file were not there."""

    name: str
    prefix: str
    digest: str
    """SHA-256 of the file's content that was judged last."""
    endpoints: tuple[str, ...]
    levers: Levers = UNTOUCHED


@dataclass(slots=True)
class Known:
    """What is known of one file. 10,000 may be alive."""

    mount: Mount
    verdict: Verdict | None = None
    levers: Levers = UNTOUCHED

    @property
    def is_off(self) -> bool:
        """Whether it is as if the file were not there."""
        return self.levers.is_disabled or isinstance(self.verdict, Disabled)

    def off(self) -> Off:
        """Return what to tell of it while it is off."""
        verdict = self.verdict
        if isinstance(verdict, Tenant):
            return Off(
                verdict.name, verdict.url_prefix, verdict.digest, verdict.blueprints, self.levers
            )
        if isinstance(verdict, Disabled):
            return Off(
                verdict.name, verdict.prefix or "", verdict.digest, verdict.endpoints, self.levers
            )
        digest = "" if verdict is None else verdict.digest
        return Off(self.mount.name, "", digest, (), self.levers)

    def wanted_prefix(self) -> str | None:
        """Return where a file that is not accepted would be mounted, as far as that is known."""
        verdict, name = self.verdict, self.mount.name
        if isinstance(verdict, Tenant):
            return verdict.url_prefix
        if isinstance(verdict, Rejected):
            return verdict.prefix
        return f"/{name}" if NAME.fullmatch(name) else None


class Admission:
    """Every known file and who has which claims. One thread uses it.

    Args:
        new_mount: makes the mount of a name.
        rebuilds: builds beside what serves.
        departures: takes the instances that were replaced.
    """

    def __init__(
        self, new_mount: Callable[[str], Mount], rebuilds: Rebuilds, departures: Departures
    ) -> None:
        self.known: dict[str, Known] = {}
        self.claims = Claims()
        self.is_starting = True
        """Until every file has been judged once; whoever finds that out sets it."""
        self.are_routes_old = False
        """Whether there is something to publish; whoever does that resets it."""
        self.leaving: list[Mount] = []
        """Mounts to be taken out of the routing, and closed then."""
        self._new_mount = new_mount
        self._rebuilds = rebuilds
        self._departures = departures
        self._are_claims_freed = False
        self._refused: set[str] = set()  # names refused for a clash: it may pass

    def appear(self, name: str) -> None:
        """Begin with a file that was not there before."""
        self.known[name] = Known(self._new_mount(name))
        self.are_routes_old = True

    def disappear(self, name: str) -> None:
        """End with a file that is gone; its claims are free."""
        self.leaving.append(self.known.pop(name).mount)
        self.claims.drop(name)
        self._rebuilds.drop(name)
        self._refused.discard(name)
        self.are_routes_old = self._are_claims_freed = True
        _logger.info("tenant.removed", extra={"tenant": name})

    def note(self, name: str, verdict: Verdict) -> None:
        """Remember the verdict on a file's newest content, to be decided on by `decide`."""
        self.known[name].verdict = verdict
        self._rebuilds.drop(name)  # the back-off is of the old content

    def pull(self, name: str, levers: Levers) -> None:
        """Heed an operator's levers."""
        known = self.known[name]
        was_off, known.levers = known.is_off, levers
        known.mount.lever = levers.maintenance
        if was_off != known.is_off:
            self.are_routes_old = True
            self.decide(name)

    def decide(self, name: str) -> None:
        """Do what the newest verdict on a file asks for, as far as the others let it."""
        known = self.known[name]
        verdict = known.verdict
        self._refused.discard(name)
        if known.is_off:
            self._turn_off(known)
        elif isinstance(verdict, Rejected):
            self._reject(known, verdict)
        elif isinstance(verdict, Tenant):
            self._admit(known, verdict)

    def reconsider(self) -> None:
        """Where something was given up, look again at who was refused because of it, by name."""
        while self._are_claims_freed:
            self._are_claims_freed = False
            for name in sorted(self._refused):
                contained(name, partial(self._reconsider_one, self.known[name]))

    def _reconsider_one(self, known: Known) -> None:
        verdict = known.verdict
        if known.mount.name not in self._refused or not isinstance(verdict, Tenant):
            return  # decided on meanwhile
        clashes = self.claims.clashes(verdict)
        if not clashes or self._comes_first(known, verdict, clashes):
            self._refused.discard(known.mount.name)
            self._admit(known, verdict)

    def _turn_off(self, known: Known) -> None:
        """Serve no more, as if the file were not there."""
        self._rebuilds.drop(known.mount.name)
        self.are_routes_old = True
        if known.mount.tenant is not None or known.mount.reason:
            self._forget(known)

    def _admit(self, known: Known, tenant: Tenant) -> None:
        clashes = self.claims.clashes(tenant)
        if clashes and self._comes_first(known, tenant, clashes):
            owners = sorted({clash.owner for clash in clashes})
            for owner in owners:
                self._forget(self.known[owner])
            self._serve(known, tenant)
            for owner in owners:
                self.decide(owner)
        elif clashes:
            self._rebuilds.drop(tenant.name)
            self._reject(known, clashing(tenant, clashes))
            self._refused.add(tenant.name)
        elif known.mount.tenant == tenant:  # what was wrong in between is mended
            known.verdict = known.mount.tenant
            known.mount.confirm()
        else:
            self._serve(known, tenant)

    def _comes_first(self, known: Known, tenant: Tenant, clashes: list[Clash]) -> bool:
        """Whether it displaces who was accepted before it: at start, the first in name order."""
        is_new = self.is_starting and not known.mount.has_served
        return is_new and all(clash.owner > tenant.name for clash in clashes)

    def _forget(self, known: Known) -> None:
        """Take a tenant's mount and claims away; its file may get them again."""
        old = known.mount
        known.mount = self._new_mount(old.name)
        known.mount.lever = known.levers.maintenance
        self.leaving.append(old)
        self.claims.drop(old.name)
        self._are_claims_freed = self.are_routes_old = True

    def _serve(self, known: Known, tenant: Tenant) -> None:
        mount = known.mount
        is_new, prefix = mount.tenant is None, mount.prefix
        if mount.accept(tenant):
            self._note_served(tenant, is_new=is_new, prefix=prefix)
        else:
            self._rebuilds.begin(mount, tenant, partial(self._built, known, tenant))

    def _built(self, known: Known, tenant: Tenant, instance: Instance) -> None:
        if self.claims.clashes(tenant):
            instance.retire()
            self.decide(tenant.name)
        else:
            self._swap(known.mount, tenant, instance)

    def _swap(self, mount: Mount, tenant: Tenant, instance: Instance) -> None:
        prefix, asleep = mount.prefix, mount.instance is None
        old = mount.swap(tenant, instance)
        # A change of the file is no use of the tenant: who slept goes on to sleep.
        if asleep or old is not None:
            instance.used_at = -math.inf if old is None else old.used_at
        if old is not None:
            self._departures.add(tenant.name, old)
        self._note_served(tenant, is_new=False, prefix=prefix)

    def _note_served(self, tenant: Tenant, *, is_new: bool, prefix: str | None) -> None:
        self._rebuilds.drop(tenant.name)
        self.claims.take(tenant)
        self._are_claims_freed |= not is_new  # it may have left its old prefix
        is_changed = is_new or prefix != tenant.url_prefix
        self.are_routes_old |= is_changed
        event = "tenant.added" if is_new else "tenant.changed"
        _logger.info(event, extra={"tenant": tenant.name, "digest": tenant.digest[:12]})

    def _reject(self, known: Known, rejected: Rejected) -> None:
        mount = known.mount
        if (mount.digest, mount.reason) != (rejected.digest, rejected.reason):
            state = "stale" if mount.tenant is not None else "failed"
            for problem in rejected.problems:
                facts = {"tenant": rejected.name, "state": state, "reason": str(problem)}
                _logger.error("tenant.rejected", extra=facts)
        mount.reject(rejected.reason, rejected.digest)
        self.are_routes_old |= mount.tenant is None  # its place may be another one now


def contained(name: str, act: Callable[[], None]) -> bool:
    """Do what concerns one tenant: whatever is odd about it, the others get their round."""
    try:
        act()
    except Exception:
        _logger.exception("follower.step_failed", extra={"tenant": name})
        return False
    return True
