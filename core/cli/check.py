"""`tenantry check`: does every tenant load, validate and build?"""

import sys

import click

from config.settings import HostSettings, read_settings
from core.app_factory import close_app, create_app
from core.catalogue import Catalogue
from core.cli import PROBLEM_FOUND
from core.cli.output import as_json, print_json
from core.cli.tenants import scan
from core.errors import EndpointError, Problem, UnknownTenantError
from core.tenant import Tenant


@click.command("check")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@as_json
def command(names: tuple[str, ...], is_json: bool) -> None:
    """Load, validate and build the tenants, all or NAME…; a line per problem, exit 1 if any."""
    settings = read_settings()
    catalogue = scan(settings)
    known = sorted(_names(catalogue))
    for name in names:
        if name not in known:
            raise UnknownTenantError(name, known)
    asked = set(names or known)
    problems = find_problems(settings, catalogue, asked)
    if is_json:
        shown = [_as_json(name, problem) for name, problem in problems]
        print_json({"tenants": len(asked), "problems": shown})
    else:
        for _, problem in problems:
            click.echo(str(problem))
        bad = len({name for name, _ in problems})
        click.echo(f"{len(asked)} tenants, {bad} with problems.", err=bool(bad))
    sys.exit(PROBLEM_FOUND if problems else 0)


def find_problems(
    settings: HostSettings, catalogue: Catalogue, asked: set[str]
) -> list[tuple[str, Problem]]:
    """Return each problem of the asked tenants, with the tenant's name; builds those that load."""
    problems = [
        (one.name, problem)
        for one in catalogue.rejected
        for problem in one.problems
        if one.name in asked
    ]
    for tenant in catalogue.tenants:
        if tenant.name in asked:
            problems += [(tenant.name, problem) for problem in build_problems(settings, tenant)]
    return sorted(problems, key=lambda pair: pair[0])


def build_problems(settings: HostSettings, tenant: Tenant) -> list[Problem]:
    """Build a tenant's app and drop it again; return why it cannot be built."""
    try:
        close_app(create_app(tenant, data_dir=settings.data_dir))
    except EndpointError as error:
        place = tenant.blueprints.index(error.name)
        return [Problem(tenant.file, str(error), f"BLUEPRINTS[{place}]")]
    except Exception as error:  # noqa: BLE001 - a key of Flask may make it raise anything
        text = " ".join(str(error).split())
        return [Problem(tenant.file, f"cannot be built: {type(error).__name__}: {text}")]
    return []


def _names(catalogue: Catalogue) -> list[str]:
    tenants = [tenant.name for tenant in catalogue.tenants + catalogue.disabled]
    return tenants + [one.name for one in catalogue.rejected]


def _as_json(name: str, problem: Problem) -> dict[str, object]:
    return {
        "tenant": name,
        "file": problem.file,
        "line": problem.line,
        "key": problem.key,
        "message": problem.text,
    }
