"""`tenantry check`: does every tenant load, validate and build?"""

import sys

import click

from config.settings import HostSettings, read_settings
from core.catalogue import Catalogue
from core.cli import PROBLEM_FOUND
from core.cli.output import as_json, print_json
from core.cli.probe import find_faults
from core.cli.tenants import counted, scan
from core.errors import Problem, UnknownTenantError


@click.command("check")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@as_json
def command(names: tuple[str, ...], is_json: bool) -> None:
    """Load, validate and build the tenants, all or NAME…; a line per problem, exit 1 if any.

    A disabled tenant is looked at only when it is named.
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
    """Return each problem of the asked tenants, with the tenant's name; builds those that load."""
    problems = [
        (one.name, problem)
        for one in catalogue.rejected + catalogue.disabled
        for problem in one.problems
        if one.name in asked
    ]
    tenants = [tenant for tenant in catalogue.tenants if tenant.name in asked]
    faults = find_faults(tenants, settings.data_dir)
    problems += [(tenant.name, problem) for tenant, problem in faults]
    return sorted(problems, key=lambda pair: pair[0])


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
