"""Runs all checks on a set of built tenants and applies `AUDIT_ACCEPT`.

The checks ask four questions. Which objects can two apps both change (`shared_objects`,
`source_scan`)? Does a tenant accept what another one signed (`replay`)? Which keys, databases and
folders do two tenants have in common (`shared_values`)? Which settings of a tenant are unsafe
(`settings_check`)?

An audit finds mistakes, not malice, because all tenants share one memory and one interpreter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tenantry.audit.finding import AuditedTenant, Finding
from tenantry.audit.replay import replay, replay_findings
from tenantry.audit.settings_check import check_settings
from tenantry.audit.shared_objects import compare_objects
from tenantry.audit.shared_values import compare_values
from tenantry.audit.source_scan import scan_sources


def audit(
    tenants: Sequence[AuditedTenant],
    data_dir: Path,
    *,
    trusted_hosts: Sequence[str] = (),
    known_listeners: frozenset[int] = frozenset(),
) -> list[Finding]:
    """Return every finding, problems first. Changes no data.

    Args:
        tenants: built tenants, as `prepare_for_audit` changes them. They must not receive other
            requests during the audit.
        data_dir: the host's `DATA_DIR`.
        trusted_hosts: the host's `TRUSTED_HOSTS`.
        known_listeners: `process_listeners()` from before the first tenant was built.
    """
    findings = [*_run_checks(tenants, data_dir, trusted_hosts, known_listeners)]
    findings = _mark_accepted(findings, tenants)
    findings += _unused_acceptances(findings, tenants)
    return sorted(findings, key=lambda finding: (not finding.is_problem, finding.is_note))


def _run_checks(
    tenants: Sequence[AuditedTenant],
    data_dir: Path,
    trusted_hosts: Sequence[str],
    known_listeners: frozenset[int],
) -> Iterator[Finding]:
    # The replay comes first because its requests create what apps create lazily, such as templates.
    result = replay(tenants, trusted_hosts)
    yield from replay_findings(result, {audited.name: audited.tenant.file for audited in tenants})
    objects = compare_objects(tenants, known_listeners)
    yield from objects.findings
    places = {finding.place for finding in objects.findings}
    for finding in scan_sources(objects.snapshot, objects.modules):
        if finding.place not in places:
            yield finding
    yield from compare_values(tenants, data_dir)
    yield from check_settings(tenants, data_dir, trusted_hosts)


def _mark_accepted(findings: Sequence[Finding], tenants: Sequence[AuditedTenant]) -> list[Finding]:
    """Return the findings without duplicates, each with the reason for which it is accepted.

    A finding is accepted if all of its tenants accept it: no tenant can accept for another.
    """
    accepts = {audited.name: audited.tenant.audit_accept for audited in tenants}
    unique: dict[tuple[str, tuple[str, ...]], Finding] = {}
    for finding in findings:
        reasons = [accepts.get(name, {}).get(finding.id, "") for name in finding.tenants]
        reason = "; ".join(dict.fromkeys(reasons)) if all(reasons) else ""
        unique.setdefault((finding.id, finding.tenants), replace(finding, accepted=reason))
    return [*unique.values()]


def _unused_acceptances(
    findings: Sequence[Finding], tenants: Sequence[AuditedTenant]
) -> Iterator[Finding]:
    """Yield a note for each entry in `AUDIT_ACCEPT` that matches no finding."""
    found = {(name, finding.id) for finding in findings for name in finding.tenants}
    for audited in tenants:
        for id_ in audited.tenant.audit_accept:
            if (audited.name, id_) not in found:
                yield Finding(
                    id=f"accepts-nothing:{id_}",
                    tenants=(audited.name,),
                    text=f"'AUDIT_ACCEPT' accepts {id_!r}, but the audit does not find it",
                    remedy="remove the entry; it would hide a new finding with the same id",
                    place=audited.tenant.file,
                    is_note=True,
                )
