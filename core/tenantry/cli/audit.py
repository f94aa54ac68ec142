"""`tenantry audit`: finds objects that tenants share, and data that leaks between tenants."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import click
from flask import Flask

from tenantry.audit.finding import AuditedTenant, Finding
from tenantry.audit.libraries import LibraryObjects
from tenantry.audit.process_snapshot import CodeOwners, endpoint_packages
from tenantry.audit.replay import prepare_for_audit
from tenantry.audit.run import audit
from tenantry.audit.written_files import WrittenFiles
from tenantry.cli import PROBLEM_FOUND
from tenantry.cli.completion import complete_tenant
from tenantry.cli.inspecting import leaving_no_empty_folder
from tenantry.cli.output import count, examples, json_option, print_json, print_table
from tenantry.errors import UnknownTenantError
from tenantry.host import Host, create_host
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.catalogue import tenant_files
from tenantry.tenants.file import read_content
from tenantry.tenants.loader import Loader
from tenantry.tenants.model import Tenant
from tenantry.tenants.validation import RejectedTenant, validate_file

COLUMNS = ("finding", "tenants", "where", "what", "remedy")

MAX_NAMES = 3
"""Maximum number of tenant names in a row of the table. With `--json`, all names are printed."""


@click.command("audit", epilog=examples("tenantry audit", "tenantry audit shop acme"))
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_tenant)
@json_option
def command(names: tuple[str, ...], is_json: bool) -> None:
    """Find what leaks between tenants.

    Build the tenants NAME... (default: all tenants), and find shared objects, databases, folders
    and cookies, and tenants that accept another tenant's session or key. The exit code is 1 if
    there is a finding that is neither a note nor accepted with AUDIT_ACCEPT in the tenant files.
    """
    settings = read_settings()
    with leaving_no_empty_folder(settings):
        findings, number = audit_folder(settings, names)
    problems = [finding for finding in findings if finding.is_problem]
    if is_json:
        print_json({"tenants": number, "findings": [_as_json(finding) for finding in findings]})
    else:
        print_table(COLUMNS, [_row(finding) for finding in _merge_notes(findings)])
        for finding in findings:
            for path in finding.paths if not finding.is_note else ():
                click.echo(f"  {finding.id}\t{path}")
        text = f"{count(number, 'tenant')}, {count(len(problems), 'finding')}."
        click.echo(text, err=bool(problems))
    sys.exit(PROBLEM_FOUND if problems else 0)


def audit_folder(settings: HostSettings, names: Sequence[str] = ()) -> tuple[list[Finding], int]:
    """Validate, build and audit tenants. Return the findings and the number of tenants.

    Args:
        settings: The host's settings.
        names: Names of the tenants to audit. If no names are given, all tenants are audited.

    Raises:
        UnknownTenantError: There is no tenant file for a name.
    """
    tenants, rejected = _read(settings, names)
    host = create_host(settings)
    libraries = LibraryObjects(CodeOwners(endpoint_packages(tenants)))
    files = WrittenFiles()
    with libraries.recording(), _built(host, tenants, files) as (audited, failed):
        found = audit(
            audited, settings.data_dir, libraries, files, trusted_hosts=settings.trusted_hosts
        )
    if names:  # findings about unused secrets have no tenant
        found = [finding for finding in found if finding.tenants]
    return [*rejected, *failed, *found], len(tenants) + len(rejected)


def _read(settings: HostSettings, names: Sequence[str]) -> tuple[list[Tenant], list[Finding]]:
    """Return the valid tenants, and a finding for each rejected tenant.

    Conflicts between tenants are not a reason for a rejection, because the audit reports them.
    """
    paths = {path.stem: path for path in tenant_files(settings.tenants_dir)}
    for name in names:
        if name not in paths:
            raise UnknownTenantError(name, sorted(paths))
    tenants: list[Tenant] = []
    rejected: list[Finding] = []
    with Loader(data_dir=settings.data_dir) as loader:
        for path in [paths[name] for name in sorted(names or paths)]:
            result = validate_file(read_content(path), settings, loader)
            if isinstance(result, Tenant):
                tenants.append(result)
            elif isinstance(result, RejectedTenant):
                rejected.append(_not_audited(result.name, result.reason, str(path)))
            elif names:
                rejected.append(
                    _not_audited(
                        result.name, "it is disabled; set ENABLED = True in its file.", str(path)
                    )
                )
    return tenants, rejected


@contextmanager
def _built(
    host: Host, tenants: Sequence[Tenant], files: WrittenFiles
) -> Iterator[tuple[list[AuditedTenant], list[Finding]]]:
    """Build the tenants' apps, and close the host at the end of the `with` block."""
    audited: list[AuditedTenant] = []
    failed: list[Finding] = []
    pairs = [prepare_for_audit(tenant) for tenant in tenants]
    keys = {tenant.name: key for tenant, key in pairs}
    try:
        for mount in host.serve_only([tenant for tenant, _ in pairs]):
            with files.of(mount.name):
                mount.ensure_instance()
            app = None if mount.instance is None else mount.instance.app
            flask_app = None if app is None else app()
            tenant = mount.tenant
            if tenant is not None and isinstance(flask_app, Flask):
                audited.append(AuditedTenant(tenant, flask_app, host, keys[tenant.name]))
            elif tenant is not None:
                failed.append(_not_audited(tenant.name, mount.reason, tenant.file))
        yield audited, failed
    finally:
        audited.clear()
        host.close()


def _not_audited(name: str, reason: str, file: str) -> Finding:
    text = f"cannot be audited: {reason}"
    return Finding(
        "not-audited",
        (name,),
        text,
        f"fix the tenant, then run: tenantry check {name}",
        place=file,
    )


def _merge_notes(findings: Sequence[Finding]) -> list[Finding]:
    """Merge notes with the same ID into one note that names all tenants."""
    joined = [finding for finding in findings if finding.is_problem or finding.accepted]
    notes: dict[str, Finding] = {}
    for finding in findings:
        if not (finding.is_problem or finding.accepted):
            first = notes.get(finding.id)
            names = finding.tenants if first is None else (*first.tenants, *finding.tenants)
            place = finding.place if first is None else ""
            notes[finding.id] = replace(finding, tenants=names, place=place)
    return [*joined, *notes.values()]


def _as_json(finding: Finding) -> dict[str, Any]:
    state = "accepted" if finding.accepted else "note" if finding.is_note else "finding"
    fields = {key: value for key, value in asdict(finding).items() if key != "is_note"}
    return fields | {"state": state}


def _row(finding: Finding) -> list[str]:
    names = ", ".join(finding.tenants[:MAX_NAMES])
    if len(finding.tenants) > MAX_NAMES:
        names += f" and {len(finding.tenants) - MAX_NAMES} more"
    text, remedy = finding.text, finding.remedy
    if finding.accepted:
        text, remedy = f"accepted ({finding.accepted}): {text}", ""
    elif finding.is_note:
        text = f"note: {text}"
    return [finding.id, names, finding.place, text, remedy]
