"""Reconciliation: decides which tenants to serve, from the validation results of all files.

Two tenants conflict if they claim the same address, key or database. The following rules apply:

- A tenant that already serves keeps serving.
- When a process starts, a tenant file that another worker has accepted wins, so that all workers of
  a host agree. If no other worker serves, a tenant file that served last wins.
- Otherwise, the tenant whose name comes first wins.

The host names of a disabled or rejected tenant stay with it. Two tenants that swap addresses
conflict until one of them has first moved to a free address.

The follower reads files, starts threads and changes the routing; this module does not.
"""

import logging
import math
from collections.abc import Callable, Collection, Mapping
from functools import partial

from tenantry.errors import Problem
from tenantry.reload.draining import Draining
from tenantry.reload.followed_file import DisabledStatus, FollowedFile
from tenantry.reload.rebuilds import Rebuilds
from tenantry.reload.warm_start import SiblingTenant
from tenantry.routing.instance import Instance
from tenantry.routing.mount import Mount
from tenantry.routing.quarantine import Quarantine
from tenantry.tenants.address import Address
from tenantry.tenants.address_claims import AddressClaims
from tenantry.tenants.catalogue import rejection_of
from tenantry.tenants.model import Tenant
from tenantry.tenants.operator_state import OperatorState
from tenantry.tenants.uniqueness import AcceptedTenants, Conflict
from tenantry.tenants.validation import RejectedTenant, ValidationResult

_logger = logging.getLogger(__name__)


class Reconciler:
    """Holds the state of all tenant files, and decides which tenants to serve. Not thread-safe.

    Args:
        new_mount: returns a new mount for a tenant's name.
        rebuilds: builds changed tenants while their old instances serve.
        draining: receives the replaced instances.
        is_missing: returns whether a tenant file is missing at the moment. The reconciler postpones
            a conflict with a missing file until the file is back or is removed. Otherwise, a
            renamed file would conflict with its old name.
        new_quarantine: returns the quarantine for an operator state; None if the tenant is not
            parked.
        restorable: the last good versions of tenants whose files have changed before the start.
        note_accepted: called with each tenant that is served from now on, built or not.
    """

    def __init__(
        self,
        new_mount: Callable[[str], Mount],
        rebuilds: Rebuilds,
        draining: Draining,
        *,
        is_missing: Callable[[str], bool] = lambda _: False,
        new_quarantine: Callable[[str, OperatorState], Quarantine | None] = lambda *_: None,
        restorable: dict[str, Tenant] | None = None,
        note_accepted: Callable[[Tenant], None] = lambda _: None,
    ) -> None:
        self._restorable = {} if restorable is None else restorable
        self._note_accepted = note_accepted
        self.files: dict[str, FollowedFile] = {}
        self.is_starting = True
        """Whether some files have never been reconciled, until `end_start` is called."""
        self._accepted_by_siblings: set[tuple[str, str]] = set()  # names and digests of tenants
        # The addresses at which tenants served last, by tenant, until the end of the start.
        self._last_addresses: dict[str, Address] = {}
        # The addresses of tenants that only other workers serve.
        self._sibling_addresses: dict[str, Address] = {}
        self._reserved_claims = AddressClaims()  # the same addresses
        self.is_routing_outdated = False
        """Whether a new routing snapshot is needed, until `take_mounts` is called."""
        self.withdrawn: list[Mount] = []
        """Mounts to remove from the routing first, and to close afterwards."""
        self._new_mount = new_mount
        self._rebuilds = rebuilds
        self._draining = draining
        self._is_missing = is_missing
        self._new_quarantine = new_quarantine
        self._accepted = AcceptedTenants()
        self._has_freed_claims = False
        self._conflicting: set[str] = set()  # names of tenants rejected because of a conflict
        self._postponed: set[str] = set()  # names of tenants in conflict with a missing file

    def prefer(self, accepted: Collection[SiblingTenant]) -> None:
        """Set the tenants that other workers have accepted, before the first call of `add`.

        In a conflict, the version that other workers have accepted wins. If other workers serve a
        tenant at a prefix, the prefix is reserved for that tenant until its file changes. If no
        other worker serves, the same applies to the tenants that served last.
        """
        self._accepted_by_siblings = {(tenant.name, tenant.digest) for tenant in accepted}
        self._last_addresses = {tenant.name: tenant.address for tenant in accepted}
        for tenant in sorted(accepted):
            self._reserve(tenant.name, tenant.address)

    def end_start(self) -> None:
        """End the start phase, after which every accepted tenant keeps its claims."""
        self.is_starting, self._accepted_by_siblings = False, set()
        for name in list(self._sibling_addresses):
            if name not in self.files or self.files[name].mount.tenant is not None:
                self._drop_reservation(name)
        self._last_addresses = {}
        self._has_freed_claims = True
        for file in self.files.values():
            file.last_address = None

    # -- input from the follower ----------------------------------------------------------------

    def add(self, name: str) -> None:
        """Add a new tenant file."""
        last_address = self._last_addresses.get(name)
        self.files[name] = FollowedFile(self._new_mount(name), last_address=last_address)
        self.is_routing_outdated = True

    def remove(self, name: str) -> None:
        """Remove a deleted tenant file, and free the claims of its tenant."""
        self.withdrawn.append(self.files.pop(name).mount)
        self._accepted.remove(name)
        self._cancel_build(name)
        self._conflicting.discard(name)
        self._drop_reservation(name)
        self._restorable.pop(name, None)
        self.is_routing_outdated = self._has_freed_claims = True
        _logger.info("tenant.removed", extra={"tenant": name})

    def set_result(self, name: str, result: ValidationResult) -> None:
        """Set the validation result of a file's newest version, for `reconcile` to apply."""
        self.files[name].result = result
        if not self.is_starting:
            self._drop_reservation(name)  # other workers follow the change, too
        self._cancel_build(name)  # also ends the pause after a failed build of the old version

    def set_operator_state(self, name: str, state: OperatorState) -> None:
        """Set and apply a tenant's operator state."""
        file = self.files[name]
        old, was_disabled = file.operator_state, file.is_disabled
        file.operator_state = state
        file.mount.operator_maintenance = state.effective_maintenance
        if state.is_moving and (instance := file.mount.release_instance()) is not None:
            self._draining.add(name, instance)
        if (old.parked, old.times_parked) != (state.parked, state.times_parked):
            file.mount.quarantine = self._new_quarantine(name, state)
        if was_disabled != file.is_disabled:
            self.is_routing_outdated = True
            self.reconcile(name)

    # -- decisions ------------------------------------------------------------------------------

    def reconcile(self, name: str) -> None:
        """Apply the newest validation result of a file, unless its tenant is in conflict."""
        file = self.files[name]
        self._conflicting.discard(name)
        if file.is_disabled:
            self._disable(file)
        elif isinstance(file.result, RejectedTenant):
            self._reject(file, file.result)
        elif isinstance(file.result, Tenant):
            self._accept_or_reject(file, file.result)

    def reconcile_again(self) -> None:
        """Reconcile the tenants that may no longer be in conflict, in the order of names."""
        postponed, self._postponed = sorted(self._postponed), set()
        for name in postponed:
            run_step(partial(self.reconcile, name), tenant=name)
        while self._has_freed_claims:
            self._has_freed_claims = False
            for name in sorted(self._conflicting):
                run_step(partial(self._reconcile_if_free, self.files[name]), tenant=name)

    def _reconcile_if_free(self, file: FollowedFile) -> None:
        name, tenant = file.mount.name, file.result
        if name not in self._conflicting or not isinstance(tenant, Tenant):
            return  # another step has already reconciled the file
        if self._reserved(tenant):
            return
        conflicts = self._accepted.conflicts(tenant)
        if not conflicts or self._has_precedence(file, tenant, conflicts):
            self._conflicting.discard(name)
            self._accept_or_reject(file, tenant)

    def _disable(self, file: FollowedFile) -> None:
        self._cancel_build(file.mount.name)
        self._drop_reservation(file.mount.name)
        self.is_routing_outdated = True
        if file.mount.tenant is not None or file.mount.reason:
            self._withdraw(file)
        if file.result is not None:
            self._hold_names(file.result)

    def _reserved(self, tenant: Tenant) -> list[Conflict]:
        """Return a tenant's conflicts with tenants that only other workers serve."""
        if not self._sibling_addresses:
            return []
        if (tenant.name, tenant.digest) in self._accepted_by_siblings:
            return []
        conflicts: dict[str, Conflict] = {}
        for owner, key, _ in self._reserved_claims.conflicts(tenant.name, tenant.address):
            if owner in self.files:
                text = (
                    f"{tenant.address.text} belongs to tenant {owner!r}, which serves there or "
                    f"served there last; choose another address, or change the file of {owner!r} "
                    "first."
                )
                conflicts.setdefault(owner, Conflict(owner, Problem(tenant.file, text, key)))
        return [conflicts[owner] for owner in sorted(conflicts)]

    def _reserve(self, name: str, address: Address) -> None:
        """Reserve an address for a tenant because other workers serve it, or because it did."""
        self._sibling_addresses[name] = address
        self._reserved_claims.add(name, address)

    def _hold_names(self, result: ValidationResult) -> None:
        """Keep the host names of an unserved tenant, except for names reserved for others."""
        address = result.address
        if address is not None:
            address = self._reserved_claims.free_part(result.name, address)
        self._accepted.hold(result.name, address)

    def _drop_reservation(self, name: str) -> None:
        """Free the address that is reserved for a tenant."""
        address = self._sibling_addresses.pop(name, None)
        if address is not None:
            self._reserved_claims.remove(name, address)
            self._has_freed_claims = True

    def _accept_or_reject(self, file: FollowedFile, tenant: Tenant) -> None:
        reserved = self._reserved(tenant)
        conflicts = self._accepted.conflicts(tenant) + reserved
        owners = sorted({conflict.owner for conflict in conflicts})
        if any(self._is_missing(owner) for owner in owners):
            self._rebuilds.cancel(tenant.name)
            self._postponed.add(tenant.name)
        elif conflicts and not reserved and self._has_precedence(file, tenant, conflicts):
            for owner in owners:
                self._withdraw(self.files[owner])
            self._serve(file, tenant)
            for owner in owners:
                self.reconcile(owner)
        elif conflicts:
            self._rebuilds.cancel(tenant.name)
            self._reject(file, rejection_of(tenant, conflicts))
            self._conflicting.add(tenant.name)
        elif file.mount.tenant == tenant:  # the tenant file has its accepted content again
            file.result = file.mount.tenant
            file.mount.clear_rejection()
        else:
            self._serve(file, tenant)

    def _has_precedence(
        self, file: FollowedFile, tenant: Tenant, conflicts: list[Conflict]
    ) -> bool:
        """Whether a tenant replaces accepted tenants, which is possible only at start."""
        if not self.is_starting or file.mount.was_built:
            return False
        owners = [self.files[conflict.owner] for conflict in conflicts]
        rank = self._rank(tenant)
        return all(
            rank < self._rank(owner)
            for file in owners
            if (owner := file.mount.tenant or file.result) is not None
        )

    def _rank(self, tenant: ValidationResult) -> tuple[bool, bool, str]:
        """Return a sort key, by which the tenant with the lowest key wins a conflict at start.

        A tenant that served wins against a new tenant, even if its file has changed since.
        """
        is_changed = (tenant.name, tenant.digest) not in self._accepted_by_siblings
        return is_changed and tenant.name not in self._last_addresses, is_changed, tenant.name

    def _cancel_build(self, name: str) -> None:
        self._rebuilds.cancel(name)
        self._postponed.discard(name)

    def _withdraw(self, file: FollowedFile) -> None:
        """Remove a tenant's mount and claims, and give its file a new mount."""
        old = file.mount
        self._cancel_build(old.name)
        file.mount = self._new_mount(old.name)
        file.mount.operator_maintenance = file.operator_state.effective_maintenance
        file.mount.quarantine = old.quarantine
        self.withdrawn.append(old)
        self._accepted.remove(old.name)
        self._has_freed_claims = self.is_routing_outdated = True

    # -- effects --------------------------------------------------------------------------------

    def _serve(self, file: FollowedFile, tenant: Tenant) -> None:
        mount = file.mount
        is_new, old_address = mount.tenant is None, mount.address
        last = self._restorable.get(mount.name)
        if mount.accept(tenant):
            if last is not None and last.address == tenant.address:
                mount.fallback = last
            self._note_served(tenant, is_new=is_new, old_address=old_address)
        else:
            self._rebuilds.start(mount, tenant, partial(self._swap_unless_conflict, mount, tenant))

    def _swap_unless_conflict(self, mount: Mount, tenant: Tenant, instance: Instance) -> None:
        if self._accepted.conflicts(tenant):
            instance.retire()
            self.reconcile(tenant.name)
            return
        old_address, was_evicted = mount.address, mount.instance is None
        old = mount.swap(tenant, instance)
        # A change of the file does not count as use, so a tenant that was evicted is evicted again.
        if old is not None:
            instance.used_at = old.used_at
            self._draining.add(tenant.name, old)
        elif was_evicted:
            instance.used_at = -math.inf
        self._note_served(tenant, is_new=False, old_address=old_address)

    def _note_served(self, tenant: Tenant, *, is_new: bool, old_address: Address | None) -> None:
        self._rebuilds.cancel(tenant.name)
        self._accepted.add(tenant)
        if not is_new:
            self._has_freed_claims = True  # the tenant may no longer use its old address
        if is_new or old_address != tenant.address:
            self.is_routing_outdated = True
        self._note_accepted(tenant)
        event = "tenant.added" if is_new else "tenant.changed"
        _logger.info(event, extra={"tenant": tenant.name, "digest": tenant.digest[:12]})

    def _reject(self, file: FollowedFile, rejected: RejectedTenant) -> None:
        mount = file.mount
        if mount.tenant is None:
            self._restore(file)
        if (mount.digest, mount.reason) != (rejected.digest, rejected.reason):
            state = "stale" if mount.tenant is not None else "failed"
            for problem in rejected.problems:
                facts = {"tenant": rejected.name, "state": state, "reason": str(problem)}
                _logger.error("tenant.rejected", extra=facts)
        mount.reject(rejected.reason, rejected.digest)
        if mount.tenant is None:
            self._hold_names(rejected)
            self.is_routing_outdated = True  # the rejected file may ask for another address

    def fall_back(self) -> None:
        """Serve the last good versions of tenants whose newest version could not be built."""
        for name, last in list(self._restorable.items()):
            file = self.files.get(name)
            newest = None if file is None else file.mount.tenant
            if file is None or (file.mount.instance is not None and newest is not last):
                del self._restorable[name]  # the newest version works
            elif newest is last:  # the mount has fallen back
                del self._restorable[name]
                self._accepted.add(last)
                if isinstance(file.result, Tenant):
                    self._serve(file, file.result)  # also build the newest version again
            elif newest is not None and file.mount.state_unless_parked == "failed":
                self._restore(file)
                self._serve(file, newest)

    def _restore(self, file: FollowedFile) -> None:
        """Serve the last good version of a tenant whose newest file cannot be served."""
        mount = file.mount
        tenant = self._restorable.pop(mount.name, None)
        if tenant is None or self._accepted.conflicts(tenant):
            return
        mount.restore(tenant)
        self._accepted.add(tenant)
        self.is_routing_outdated = True
        facts = {"tenant": tenant.name, "digest": tenant.digest[:12]}
        _logger.warning("tenant.restored", extra=facts)

    # -- results for the follower ---------------------------------------------------------------

    def take_mounts(self) -> list[Mount]:
        """Return the mounts to route to.

        A rejected tenant keeps only the free part of its address.
        """
        self.is_routing_outdated = False
        mounts = [file.mount for file in self.files.values() if not file.is_disabled]
        for mount in mounts:
            if mount.tenant is None:
                wanted = self.files[mount.name].wanted_address()
                mount.address = self._accepted.free_part(mount.name, wanted)
        return mounts

    def closed_names(self) -> list[str]:
        """Return the host names of the disabled tenants."""
        disabled = (file for file in self.files.values() if file.is_disabled)
        return [name for file in disabled for name in file.closed_names()]

    def disabled(self, unreadable: Mapping[str, str]) -> tuple[DisabledStatus, ...]:
        """Return the disabled tenants.

        Args:
            unreadable: the reason for each tenant whose operator state cannot be read.
        """
        return tuple(
            file.disabled_status(unreadable.get(name, ""))
            for name, file in self.files.items()
            if file.is_disabled
        )


def run_step(step: Callable[[], None], *, tenant: str = "") -> bool:
    """Run one step of a round, and return whether the step succeeded.

    An error is logged, so that it does not affect other tenants.
    """
    try:
        step()
    except Exception:
        _logger.exception("follower.step_failed", extra={"tenant": tenant} if tenant else None)
        return False
    return True
