"""The state of one tenant file in a process: mount, validation result and operator state."""

from dataclasses import dataclass

from tenantry.grammar import TENANT_NAME
from tenantry.routing.mount import Mount
from tenantry.tenants.address import Address
from tenantry.tenants.model import Tenant
from tenantry.tenants.operator_state import DEFAULT_OPERATOR_STATE, OperatorState
from tenantry.tenants.validation import DisabledTenant, RejectedTenant, ValidationResult


@dataclass(frozen=True)
class DisabledStatus:
    """What operators see of a disabled tenant, to which the router sends no requests."""

    name: str
    prefix: str
    hosts: tuple[str, ...]
    digest: str
    """SHA-256 of the last validated content of the tenant file."""
    endpoints: tuple[str, ...]
    operator_state: OperatorState
    reason: str
    """Why the operator state cannot be read; empty if it can be read."""


@dataclass(slots=True)
class FollowedFile:
    """The state of one tenant file in a process."""

    mount: Mount
    result: ValidationResult | None = None
    operator_state: OperatorState = DEFAULT_OPERATOR_STATE
    last_address: Address | None = None
    """The last address at which the tenant served before the host started."""

    @property
    def is_disabled(self) -> bool:
        """Whether the tenant is disabled, as if its file did not exist."""
        return self.operator_state.is_disabled or isinstance(self.result, DisabledTenant)

    def disabled_status(self, reason: str) -> DisabledStatus:
        """Return what operators see of the disabled tenant."""
        endpoints = tuple[str, ...]()
        if isinstance(self.result, Tenant):
            endpoints = self.result.blueprints
        elif isinstance(self.result, DisabledTenant):
            endpoints = self.result.endpoints
        address = None if self.result is None else self.result.address
        digest = "" if self.result is None else self.result.digest
        return DisabledStatus(
            name=self.mount.name,
            prefix="" if address is None else address.prefix,
            hosts=() if address is None else address.hosts,
            digest=digest,
            endpoints=endpoints,
            operator_state=self.operator_state,
            reason=reason,
        )

    def wanted_address(self) -> Address | None:
        """Return the address that a file claims but does not have yet, or None if unknown."""
        if isinstance(self.result, Tenant | RejectedTenant):
            return self.result.address
        if self.last_address is not None:
            return self.last_address
        name = self.mount.name
        return Address(f"/{name}") if TENANT_NAME.fullmatch(name) else None

    def closed_names(self) -> tuple[str, ...]:
        """Return the host names of a disabled tenant, which no other tenant answers."""
        address = self.last_address if self.result is None else self.result.address
        return () if address is None else address.names
