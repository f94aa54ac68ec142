"""What an audit finds, and in what."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from flask import Flask

from tenantry.tenants.model import Tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


@dataclass(frozen=True)
class Audited:
    """One tenant with its app, built, and kept alive by whoever asks for the audit."""

    tenant: Tenant
    app: Flask
    wsgi: "WSGIApplication"
    """What answers its requests, from the front door on."""
    client_key: str = field(default="", repr=False)
    """Of a client that gets in; empty where it has no `CLIENTS`."""

    @property
    def name(self) -> str:
        """The tenant's name."""
        return self.tenant.name


@dataclass(frozen=True)
class Finding:
    """One thing that crosses between tenants, or lets strangers in. Never holds a secret."""

    id: str
    """The same in every run: the key of `AUDIT_ACCEPT`."""
    tenants: tuple[str, ...]
    text: str
    """What was found, on one line."""
    remedy: str
    paths: tuple[str, ...] = ()
    """How it is reached, from the first tenants that reach it: `acme: view … → _cache`."""
    place: str = ""
    """`corp/shop/models.py:3`, or the tenant file; empty where it has no line."""
    is_note: bool = False
    """Worth knowing, and often right: never fails the audit."""
    accepted: str = ""
    """The reason why it is accepted."""

    @property
    def counts(self) -> bool:
        """Whether it fails the audit."""
        return not (self.is_note or self.accepted)


def stable_id(kind: str, text: str) -> str:
    """Return an id without blanks: what stands in a tenant file."""
    return f"{kind}:{re.sub(r'[^A-Za-z0-9_.@/-]+', '-', text).strip('-')}"


def judged(findings: Iterable[Finding], accepts: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """Return the findings, one per id and tenants, in their order, those accepted marked so.

    Args:
        findings: as they were found; the same may be found twice.
        accepts: tenant → its `AUDIT_ACCEPT`. A finding of several tenants is accepted when each
            of them accepts it: none can answer for its neighbour.
    """
    unique: dict[tuple[str, tuple[str, ...]], Finding] = {}
    for one in findings:
        unique.setdefault((one.id, one.tenants), one)
    return [replace(one, accepted=_reason(one, accepts)) for one in unique.values()]


def _reason(finding: Finding, accepts: Mapping[str, Mapping[str, str]]) -> str:
    reasons = [accepts.get(name, {}).get(finding.id, "") for name in finding.tenants]
    return "; ".join(dict.fromkeys(reasons)) if all(reasons) else ""
