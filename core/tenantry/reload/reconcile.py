"""Who is admitted: what becomes of each file's verdict beside all the others.

Of two that clash

- the one that serves goes on serving, whatever their names;
- at start, when nobody serves here yet, the one goes first that another worker has accepted with
  the same content: all workers of a host have one owner for each prefix, key and database;
- where that is so of neither or of both (two workers tell different things), the first by name.

Two tenants that swap prefixes clash until one of their files has a free prefix in between.

Reads no file, asks no worker and routes nothing: `reload` hands the verdicts in and publishes.
"""

import logging
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from tenantry.grammar import TENANT_NAME
from tenantry.reload.draining import Draining
from tenantry.reload.rebuilds import Rebuilds
from tenantry.routing.instance import Instance
from tenantry.routing.mount import Mount
from tenantry.routing.quarantine import Quarantine
from tenantry.tenants.catalogue import (
    DisabledTenant,
    RejectedTenant,
    ValidationResult,
    rejection_of,
)
from tenantry.tenants.model import Tenant
from tenantry.tenants.operator_state import DEFAULT_OPERATOR_STATE, OperatorState
from tenantry.tenants.uniqueness import AcceptedTenants, Conflict

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Off:
    """A tenant that is disabled: as if its file were not there."""

    name: str
    prefix: str
    digest: str
    """SHA-256 of the file's content that was judged last."""
    endpoints: tuple[str, ...]
    operator_state: OperatorState = DEFAULT_OPERATOR_STATE
    reason: str = ""
    """Why its operator state cannot be read, where that is so."""


@dataclass(slots=True)
class Known:
    """What is known of one file. 10,000 may be alive."""

    mount: Mount
    verdict: ValidationResult | None = None
    operator_state: OperatorState = DEFAULT_OPERATOR_STATE

    @property
    def is_off(self) -> bool:
        """Whether it is as if the file were not there."""
        return self.operator_state.is_disabled or isinstance(self.verdict, DisabledTenant)

    def off(self, reason: str = "") -> Off:
        """Return what to tell of it while it is off."""
        verdict = self.verdict
        if isinstance(verdict, Tenant):
            place, endpoints = verdict.url_prefix, verdict.blueprints
        elif isinstance(verdict, DisabledTenant):
            place, endpoints = verdict.prefix or "", verdict.endpoints
        else:
            place, endpoints = "", ()
        digest = "" if verdict is None else verdict.digest
        return Off(self.mount.name, place, digest, endpoints, self.operator_state, reason)

    def wanted_prefix(self) -> str | None:
        """Return where a file that is not accepted would be mounted, as far as that is known."""
        verdict, name = self.verdict, self.mount.name
        if isinstance(verdict, Tenant):
            return verdict.url_prefix
        if isinstance(verdict, RejectedTenant):
            return verdict.prefix
        return f"/{name}" if TENANT_NAME.fullmatch(name) else None


class Reconciler:
    """Every known file and who has which claims. One thread uses it.

    Args:
        new_mount: makes the mount of a name.
        rebuilds: builds beside what serves.
        departures: takes the instances that were replaced.
        is_missing: whether a file is not there just now: a clash with it waits until it is gone
            for good, or back. Of a file that is renamed, the new name clashes with the old one.
        park: makes what stands before the mount of a name while it is parked.
    """

    def __init__(
        self,
        new_mount: Callable[[str], Mount],
        rebuilds: Rebuilds,
        departures: Draining,
        is_missing: Callable[[str], bool] = lambda _: False,
        park: Callable[[str, OperatorState], Quarantine | None] = lambda *_: None,
    ) -> None:
        self.known: dict[str, Known] = {}
        self.claims = AcceptedTenants()
        self.is_starting = True
        """Until every file has been judged once; whoever finds that out sets it."""
        self.accepted_elsewhere: Collection[tuple[str, str]] = ()
        """Name and digest of what other workers have accepted; heeded at start."""
        self.are_routes_old = False
        """Whether there is something to publish; whoever does that resets it."""
        self.leaving: list[Mount] = []
        """Mounts to be taken out of the routing, and closed then."""
        self._new_mount = new_mount
        self._rebuilds = rebuilds
        self._departures = departures
        self._is_missing = is_missing
        self._park = park
        self._are_claims_freed = False
        self._refused: set[str] = set()  # names refused for a clash: it may pass
        self._postponed: set[str] = set()  # names to decide on anew

    def end_start(self) -> None:
        """From now on who is accepted stays."""
        self.is_starting, self.accepted_elsewhere = False, ()

    def appear(self, name: str) -> None:
        """Begin with a file that was not there before."""
        self.known[name] = Known(self._new_mount(name))
        self.are_routes_old = True

    def disappear(self, name: str) -> None:
        """End with a file that is gone; its claims are free."""
        self.leaving.append(self.known.pop(name).mount)
        self.claims.remove(name)
        self._call_off(name)
        self._refused.discard(name)
        self._postponed.discard(name)
        self.are_routes_old = self._are_claims_freed = True
        _logger.info("tenant.removed", extra={"tenant": name})

    def note(self, name: str, verdict: ValidationResult) -> None:
        """Remember the verdict on a file's newest content, to be decided on by `decide`."""
        self.known[name].verdict = verdict
        self._call_off(name)  # the back-off is of the old content

    def pull(self, name: str, operator_state: OperatorState) -> None:
        """Heed the state that an operator set."""
        known = self.known[name]
        was_off, old, known.operator_state = known.is_off, known.operator_state, operator_state
        known.mount.operator_maintenance = operator_state.maintenance
        if (old.parked, old.times_parked) != (operator_state.parked, operator_state.times_parked):
            known.mount.quarantine = self._park(name, operator_state)
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
        elif isinstance(verdict, RejectedTenant):
            self._reject(known, verdict)
        elif isinstance(verdict, Tenant):
            self._admit(known, verdict)

    def reconsider(self) -> None:
        """Where something was given up, look again at who was refused because of it, by name."""
        postponed, self._postponed = sorted(self._postponed), set()
        for name in postponed:
            contained(name, partial(self.decide, name))
        while self._are_claims_freed:
            self._are_claims_freed = False
            for name in sorted(self._refused):
                contained(name, partial(self._reconsider_one, self.known[name]))

    def _reconsider_one(self, known: Known) -> None:
        verdict = known.verdict
        if known.mount.name not in self._refused or not isinstance(verdict, Tenant):
            return  # decided on meanwhile
        clashes = self.claims.conflicts(verdict)
        if not clashes or self._comes_first(known, verdict, clashes):
            self._refused.discard(known.mount.name)
            self._admit(known, verdict)

    def _turn_off(self, known: Known) -> None:
        """Serve no more, as if the file were not there."""
        self._call_off(known.mount.name)
        self.are_routes_old = True
        if known.mount.tenant is not None or known.mount.reason:
            self._forget(known)

    def _admit(self, known: Known, tenant: Tenant) -> None:
        clashes = self.claims.conflicts(tenant)
        if any(self._is_missing(clash.owner) for clash in clashes):
            self._rebuilds.drop(tenant.name)
            self._postponed.add(tenant.name)
        elif clashes and self._comes_first(known, tenant, clashes):
            owners = sorted({clash.owner for clash in clashes})
            for owner in owners:
                self._forget(self.known[owner])
            self._serve(known, tenant)
            for owner in owners:
                self.decide(owner)
        elif clashes:
            self._rebuilds.drop(tenant.name)
            self._reject(known, rejection_of(tenant, clashes))
            self._refused.add(tenant.name)
        elif known.mount.tenant == tenant:  # what was wrong in between is mended
            known.verdict = known.mount.tenant
            known.mount.clear_rejection()
        else:
            self._serve(known, tenant)

    def _comes_first(self, known: Known, tenant: Tenant, clashes: list[Conflict]) -> bool:
        """Whether it displaces who was accepted before it, as it may at start."""
        is_new = self.is_starting and not known.mount.was_built
        owners = [self.known[clash.owner].mount.tenant for clash in clashes]
        mine = self._rank(tenant)
        return is_new and all(mine < self._rank(one) for one in owners if one is not None)

    def _rank(self, tenant: Tenant) -> tuple[bool, str]:
        """Return what tells, of two that clash at start, who goes first: the lower."""
        return (tenant.name, tenant.digest) not in self.accepted_elsewhere, tenant.name

    def _call_off(self, name: str) -> None:
        """End what is being built of it."""
        self._rebuilds.drop(name)
        self._postponed.discard(name)

    def _forget(self, known: Known) -> None:
        """Take a tenant's mount and claims away; its file may get them again."""
        old = known.mount
        self._call_off(old.name)
        known.mount = self._new_mount(old.name)
        known.mount.operator_maintenance, known.mount.quarantine = (
            known.operator_state.maintenance,
            old.quarantine,
        )
        self.leaving.append(old)
        self.claims.remove(old.name)
        self._are_claims_freed = self.are_routes_old = True

    def _serve(self, known: Known, tenant: Tenant) -> None:
        mount = known.mount
        is_new, prefix = mount.tenant is None, mount.prefix
        if mount.accept(tenant):
            self._note_served(tenant, is_new=is_new, prefix=prefix)
        else:
            self._rebuilds.begin(mount, tenant, partial(self._built, known, tenant))

    def _built(self, known: Known, tenant: Tenant, instance: Instance) -> None:
        if self.claims.conflicts(tenant):
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
        self.claims.add(tenant)
        self._are_claims_freed |= not is_new  # it may have left its old prefix
        is_changed = is_new or prefix != tenant.url_prefix
        self.are_routes_old |= is_changed
        event = "tenant.added" if is_new else "tenant.changed"
        _logger.info(event, extra={"tenant": tenant.name, "digest": tenant.digest[:12]})

    def _reject(self, known: Known, rejected: RejectedTenant) -> None:
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
