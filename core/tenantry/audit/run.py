"""Runs all checks on a set of built tenants and applies `AUDIT_ACCEPT`.

The modules `shared_objects` and `source_scan` find objects that two apps can change. The module
`replay` finds tenants that accept another tenant's session, token or client key. The module
`shared_values` finds keys, databases and folders that two tenants have in common. The module
`settings_check` finds unsafe settings of a tenant.

An audit finds mistakes, not malice, because all tenants share one memory and one interpreter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tenantry.audit.finding import AuditedTenant, Finding
from tenantry.audit.libraries import LibraryObjects
from tenantry.audit.library_globals import library_globals
from tenantry.audit.replay import replay, replay_findings
from tenantry.audit.settings_check import check_settings
from tenantry.audit.shared_objects import compare_objects
from tenantry.audit.shared_values import compare_values
from tenantry.audit.source_scan import scan_sources
from tenantry.audit.stores import ask_stores, is_answered
from tenantry.audit.written_files import WrittenFiles, shared_files


def audit(
    tenants: Sequence[AuditedTenant],
    data_dir: Path,
    libraries: LibraryObjects,
    files: WrittenFiles,
    *,
    trusted_hosts: Sequence[str] = (),
) -> list[Finding]:
    """Return the findings of all checks, with problems first.

    The audit does not change tenants' data.

    Args:
        tenants: tenants from `prepare_for_audit`, with their apps. During the audit, the apps must
            not receive other requests.
        data_dir: the host's `DATA_DIR`.
        libraries: the objects that libraries created, recorded while the apps were built.
        files: the files that the apps have written while they were built.
        trusted_hosts: the host's `TRUSTED_HOSTS`.
    """
    findings = [*_run_checks(tenants, data_dir, libraries, files, trusted_hosts)]
    findings = _mark_accepted(findings, tenants)
    findings += _unused_acceptances(findings, tenants)
    return sorted(findings, key=lambda finding: (not finding.is_problem, finding.is_note))


def _run_checks(
    tenants: Sequence[AuditedTenant],
    data_dir: Path,
    libraries: LibraryObjects,
    files: WrittenFiles,
    trusted_hosts: Sequence[str],
) -> Iterator[Finding]:
    # The replay must come first, because its requests make the apps create lazy objects.
    result = replay(tenants, trusted_hosts, files)
    yield from replay_findings(result, tenants)
    objects = compare_objects(tenants, libraries)
    yield from objects.findings
    places = {finding.place for finding in objects.findings}
    for finding in scan_sources(objects.snapshot, objects.modules):
        if finding.place not in places:
            yield finding
    yield from library_globals(tenants, objects.snapshot, objects.packages)
    yield from ask_stores(tenants, objects.stores)
    yield from shared_files(files, tenants, data_dir)
    for finding in compare_values(tenants, data_dir):
        if not is_answered(finding, objects.stores):
            yield finding
    yield from check_settings(tenants, data_dir, trusted_hosts)


def _mark_accepted(findings: Sequence[Finding], tenants: Sequence[AuditedTenant]) -> list[Finding]:
    """Return the findings without duplicates, and set `Finding.accepted`.

    A finding is accepted only if every tenant in the finding has the ID in `AUDIT_ACCEPT`. One
    tenant cannot accept a risk for another tenant.
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
    """Yield a note for each entry of `AUDIT_ACCEPT` that matches no finding."""
    found = {(name, finding.id) for finding in findings for name in finding.tenants}
    for audited in tenants:
        for id_ in audited.tenant.audit_accept:
            if (audited.name, id_) not in found:
                yield Finding(
                    id=f"accepts-nothing:{id_}",
                    tenants=(audited.name,),
                    text=f"'AUDIT_ACCEPT' accepts {id_!r}, but the audit does not find it",
                    remedy="remove the entry, because it would hide a new finding with the same ID",
                    place=audited.tenant.file,
                    is_note=True,
                )
