"""`tenantry check`: does every tenant load, validate and build, and is its database there?"""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tenantry.app.trial_build import find_faults
from tenantry.cli import PROBLEM_FOUND
from tenantry.cli.output import as_json, counted, print_json
from tenantry.database.url import plain_file
from tenantry.errors import Problem, UnknownTenantError
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.catalogue import Catalogue
from tenantry.tenants.lookup import scan
from tenantry.tenants.model import Tenant

if TYPE_CHECKING:
    from tenantry.database.probe import DatabaseProbe

CONNECTIONS_AT_ONCE = 16
"""Databases that are asked at once: one that does not answer takes 2 s."""


@click.command("check")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@as_json
def command(names: tuple[str, ...], is_json: bool) -> None:
    """Load, validate and build the tenants, all or NAME…; a line per problem, exit 1 if any.

    Connects once to each tenant's database. A disabled tenant is looked at only when it is named.
    """
    settings = read_settings()
    catalogue = scan(settings)
    known = sorted(_names(catalogue))
    for name in names:
        if name not in known:
            raise UnknownTenantError(name, known)
    asked = set(names) or {*known} - {one.name for one in catalogue.disabled}
    problems = find_problems(settings, catalogue, asked)
    if is_json:
        shown = [_as_json(name, problem) for name, problem in problems]
        print_json({"tenants": len(asked), "problems": shown})
    else:
        for _, problem in problems:
            click.echo(str(problem))
        bad = len({name for name, _ in problems})
        click.echo(f"{counted(len(asked))}, {bad} with problems.", err=bool(bad))
    sys.exit(PROBLEM_FOUND if problems else 0)


def find_problems(
    settings: HostSettings, catalogue: Catalogue, asked: set[str]
) -> list[tuple[str, Problem]]:
    """Return each problem of the asked tenants, with the tenant's name.

    Builds those that load, and connects to their databases.
    """
    problems = [
        (one.name, problem)
        for one in catalogue.rejected + catalogue.disabled
        for problem in one.problems
        if one.name in asked
    ]
    tenants = [tenant for tenant in catalogue.tenants if tenant.name in asked]
    faults = find_faults(tenants, settings.data_dir)
    problems += [(tenant.name, problem) for tenant, problem in faults]
    problems += find_unreachable(tenants, settings.data_dir)
    return sorted(problems, key=lambda pair: pair[0])


def find_unreachable(tenants: Sequence[Tenant], data_dir: Path) -> Iterator[tuple[str, Problem]]:
    """Yield a problem for each tenant whose database takes no connection, or is another's too.

    Two URLs that read differently may name one database: a host has several names.
    """

    def ask(tenant: Tenant) -> "DatabaseProbe | None":
        url = tenant.database_uri.get_secret_value()
        file = plain_file(url)
        if file and not file.exists() and file.parent == data_dir.absolute() / tenant.name:
            return None  # its first use makes it, in a folder that the host makes
        from tenantry.database.probe import probe_database  # noqa: PLC0415 - SQLAlchemy costs 0.3 s

        return probe_database(tenant.name, url)

    owners: dict[tuple[str, ...], str] = {}
    with ThreadPoolExecutor(CONNECTIONS_AT_ONCE) as threads:
        for tenant, found in zip(tenants, threads.map(ask, tenants), strict=True):
            if found is not None and (text := _trouble(tenant.name, found, owners)):
                yield tenant.name, Problem(tenant.file, text, "DATABASE_URI")


def _trouble(name: str, found: "DatabaseProbe", owners: dict[tuple[str, ...], str]) -> str | None:
    """Return what is wrong with a database that was looked at, and note whose it is."""
    if found.problem is not None:
        return f"cannot be used: {found.problem}."
    owner = owners.setdefault(found.server_identity, name) if found.server_identity else name
    if owner == name:
        return None
    text = f"is the database of tenant {owner!r}, by another name of its server"
    return f"{text}; give each its own: rows of one are the other's."


def _names(catalogue: Catalogue) -> list[str]:
    return [one.name for one in catalogue.tenants + catalogue.disabled + catalogue.rejected]


def _as_json(name: str, problem: Problem) -> dict[str, object]:
    return {
        "tenant": name,
        "file": problem.file,
        "line": problem.line,
        "key": problem.key,
        "message": problem.text,
    }
