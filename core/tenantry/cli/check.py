"""`tenantry check`: loads, validates and builds tenants, and connects to their databases."""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tenantry.app.trial_build import TrialReport, try_builds
from tenantry.cli import PROBLEM_FOUND
from tenantry.cli.completion import complete_tenant
from tenantry.cli.leftovers import leftovers
from tenantry.cli.output import count, examples, json_option, print_json
from tenantry.database.url import plain_file
from tenantry.errors import Problem, UnknownTenantError
from tenantry.migrations.status import pending_in_apps
from tenantry.migrations.trial import find_migration_problems, find_untried
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.catalogue import Catalogue, scan_tenants
from tenantry.tenants.cookie_names import find_lost_cookies
from tenantry.tenants.model import Tenant
from tenantry.tenants.surroundings import (
    find_debug_switch,
    find_open_data,
    find_shared_variables,
    find_writers,
)

if TYPE_CHECKING:
    from tenantry.database.probe import DatabaseProbe

MAX_PROBES = 16
"""Maximum number of databases that `tenantry check` probes at the same time.

The probe of a database that does not answer takes 2 s.
"""


@click.command("check", epilog=examples("tenantry check", "tenantry check shop --json"))
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_tenant)
@json_option
def command(names: tuple[str, ...], is_json: bool) -> None:
    """Load, validate and build tenants.

    Check the tenants NAME... (default: all enabled tenants), connect once to each tenant's
    database, and print one line for each problem. The exit code is 1 if a tenant has a problem.

    Lines that begin with "note:" do not change the exit code. Notes name code that other users of
    the machine can change, data that other users can read, pending migrations in MIGRATIONS, and
    apps that answer their first request with 500.
    """
    settings = read_settings()
    catalogue = scan_tenants(settings)
    known = sorted(catalogue_names(catalogue))
    for name in names:
        if name not in known:
            raise UnknownTenantError(name, known)
    chosen = set(names) or {*known} - {tenant.name for tenant in catalogue.disabled}
    tenants = [tenant for tenant in catalogue.tenants if tenant.name in chosen]
    built = try_builds(tenants, settings.data_dir)
    problems = find_problems(settings, catalogue, chosen, built)
    notes = find_notes(settings, tenants, built)
    if is_json:
        shown, noted = (
            [_problem_as_json(name, problem) for name, problem in found]
            for found in (problems, notes)
        )
        print_json({"tenants": len(chosen), "problems": shown, "notes": noted})
    else:
        for _, problem in problems:
            click.echo(str(problem))
        for _, note in notes:
            click.echo(f"note: {note}")
        bad = len({name for name, _ in problems if name})
        click.echo(f"{count(len(chosen), 'tenant')}, {bad} with problems.", err=bool(bad))
    sys.exit(PROBLEM_FOUND if problems else 0)


def find_problems(
    settings: HostSettings, catalogue: Catalogue, names: set[str], built: TrialReport
) -> list[tuple[str, Problem]]:
    """Return pairs of a tenant's name and a problem, sorted by name.

    The function connects to each database once.
    """
    problems = [
        (tenant.name, problem)
        for tenant in catalogue.rejected + catalogue.disabled
        for problem in tenant.problems
        if tenant.name in names
    ]
    tenants = [tenant for tenant in catalogue.tenants if tenant.name in names]
    problems += [(tenant.name, problem) for tenant, problem in built.problems]
    problems += [
        (tenant.name, Problem(tenant.file, f"{text}.", key))
        for tenant in tenants
        for key, text in find_lost_cookies(tenant.config())
    ]
    problems += find_database_problems(tenants, settings.data_dir)
    problems += [
        (tenant.name, problem)
        for tenant, problem in find_migration_problems(
            tenants, settings.data_dir, is_foreseeing=True
        )
    ]
    problems += [("", problem) for problem in find_debug_switch()]
    problems += [
        (name, text)
        for name, text, is_problem in leftovers(settings)
        if is_problem and name in names
    ]
    return sorted(problems, key=lambda pair: pair[0])


def find_notes(
    settings: HostSettings, tenants: Sequence[Tenant], built: TrialReport
) -> list[tuple[str, Problem]]:
    """Return notes, which an operator may ignore, as pairs of a tenant's name and a note.

    A note that concerns the whole host has an empty name.
    """
    notes = [("", note) for note in find_shared_variables()]
    notes += [(tenant.name, note) for tenant, note in built.notes]
    pending = pending_in_apps(tenants, settings.data_dir)
    notes += [
        (tenant.name, Problem(tenant.file, f"{pending[tenant.name]}.", "MIGRATIONS"))
        for tenant in tenants
        if tenant.name in pending
    ]
    notes += find_writers(tenants, settings.tenants_dir)
    notes += find_open_data(tenants, settings.data_dir)
    notes += [(tenant.name, note) for tenant, note in find_untried(tenants, settings.data_dir)]
    notes += [(name, note) for name, note, is_problem in leftovers(settings) if not is_problem]
    return sorted(notes, key=lambda pair: pair[0])


def find_database_problems(
    tenants: Sequence[Tenant], data_dir: Path
) -> Iterator[tuple[str, Problem]]:
    """Yield a problem for each database that is unreachable or that two tenants use.

    Because a server can have several host names, two different URLs can name the same database.
    """

    def probe(tenant: Tenant) -> "DatabaseProbe | None":
        url = tenant.database_uri.get_secret_value()
        file = plain_file(url)
        if file and not file.exists() and file.parent == data_dir.absolute() / tenant.name:
            return None  # the host will create the default database
        from tenantry.database.probe import probe_database  # noqa: PLC0415 - takes 0.3 s

        return probe_database(tenant.name, url, tenant.database_options)

    owners: dict[tuple[str, ...], str] = {}
    with ThreadPoolExecutor(MAX_PROBES) as threads:
        for tenant, found in zip(tenants, threads.map(probe, tenants), strict=True):
            if found is not None and (text := _database_problem(tenant.name, found, owners)):
                yield tenant.name, Problem(tenant.file, text, "DATABASE_URI")


def _database_problem(
    name: str, found: "DatabaseProbe", owners: dict[tuple[str, ...], str]
) -> str | None:
    """Return the problem of a database. If the database works, record which tenant uses it."""
    if found.problem is not None:
        return f"cannot be used: {found.problem}."
    owner = owners.setdefault(found.server_identity, name) if found.server_identity else name
    if owner == name:
        return None
    return (
        f"is also the database of tenant {owner!r}, which uses another name of the server; "
        "give each tenant its own database."
    )


def catalogue_names(catalogue: Catalogue) -> list[str]:
    """Return the names of all tenants in the tenants folder, including invalid tenants."""
    return [tenant.name for tenant in catalogue.tenants + catalogue.disabled + catalogue.rejected]


def _problem_as_json(name: str, problem: Problem) -> dict[str, object]:
    return {
        "tenant": name,
        "file": problem.file,
        "line": problem.line,
        "key": problem.key,
        "message": problem.text,
    }
