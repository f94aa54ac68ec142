"""The state of one tenant file in a process: mount, validation result and operator state."""

from dataclasses import dataclass

from tenantry.grammar import TENANT_NAME
from tenantry.routing.mount import Mount
from tenantry.tenants.model import Tenant
from tenantry.tenants.operator_state import DEFAULT_OPERATOR_STATE, OperatorState
from tenantry.tenants.validation import DisabledTenant, RejectedTenant, ValidationResult


@dataclass(frozen=True)
class DisabledStatus:
    """What operators see of a disabled tenant, to which the router sends no requests."""

    name: str
    prefix: str
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
    last_prefix: str | None = None
    """The last URL prefix at which the tenant served before the host started."""

    @property
    def is_disabled(self) -> bool:
        """Whether the tenant is disabled, as if its file did not exist."""
        return self.operator_state.is_disabled or isinstance(self.result, DisabledTenant)

    def disabled_status(self, reason: str) -> DisabledStatus:
        """Return what operators see of the disabled tenant."""
        prefix, endpoints = "", tuple[str, ...]()
        if isinstance(self.result, Tenant):
            prefix, endpoints = self.result.url_prefix, self.result.blueprints
        elif isinstance(self.result, DisabledTenant):
            prefix, endpoints = self.result.prefix or "", self.result.endpoints
        digest = "" if self.result is None else self.result.digest
        return DisabledStatus(
            name=self.mount.name,
            prefix=prefix,
            digest=digest,
            endpoints=endpoints,
            operator_state=self.operator_state,
            reason=reason,
        )

    def wanted_prefix(self) -> str | None:
        """Return the URL prefix that a file claims but does not have yet, or None if unknown."""
        if isinstance(self.result, Tenant):
            return self.result.url_prefix
        if isinstance(self.result, RejectedTenant):
            return self.result.prefix
        if self.last_prefix is not None:
            return self.last_prefix
        name = self.mount.name
        return f"/{name}" if TENANT_NAME.fullmatch(name) else None
