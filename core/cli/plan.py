"""`tenantry plan`: what the tenants folder would change, before it does."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from config.settings import HostSettings, read_settings
from core.app_factory import close_app, create_app
from core.cli import PROBLEM_FOUND
from core.cli.output import as_json, print_json
from core.cli.tenants import levers_of, scan
from core.errors import EndpointError, TenantryError
from core.plan import compare, describe
from core.status import ask_workers

NO_SECRET = "routes of endpoints, asked for by a plan"  # noqa: S105 - it is none
"""Signs nothing: the app that tells its routes serves no request."""


@click.command("plan")
@click.option(
    "--against",
    "snapshot",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Compare with this snapshot.  [default: what the running host serves]",
)
@click.option(
    "--save",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Save a snapshot of the folder, without secrets, and compare nothing.",
)
@as_json
def command(snapshot: Path | None, target: Path | None, is_json: bool) -> None:
    """Show what the tenants folder would change: tenants, prefixes, databases, keys, routes."""
    settings = read_settings()
    catalogue = scan(settings)
    levers = {one.name: levers_of(settings, one.name) for one in catalogue.tenants}
    enabled = [one for one in catalogue.tenants if not levers[one.name][0].is_disabled]
    new = {tenant.name: describe(tenant) for tenant in enabled}
    if target is not None:
        target.write_text(json.dumps(new, indent=2), encoding="utf-8")
        changes = []
    else:
        old = _saved(snapshot) if snapshot is not None else _served(settings)
        changes = compare(old, new, _routes)
    problems = [str(problem) for problem in catalogue.problems]
    problems += [problem for _, problem in levers.values() if problem]
    if is_json:
        print_json({"changes": [asdict(change) for change in changes], "problems": problems})
    else:
        for line in [*map(str, changes), *(f"! {problem}" for problem in problems)]:
            click.echo(line)
    sys.exit(PROBLEM_FOUND if problems else 0)


def _saved(path: Path) -> dict[str, Any]:
    try:
        saved = json.loads(path.read_bytes())
        compare(saved, saved, _routes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TenantryError(f"{path} is no snapshot; make one: tenantry plan --save.") from error
    return dict(saved)


def _served(settings: HostSettings) -> dict[str, Any]:
    told = ask_workers(settings.data_dir, "plan")
    if not told:
        raise TenantryError(
            f"no host is running over {settings.data_dir}; start one, or compare with a snapshot: "
            "tenantry plan --against FILE."
        )
    # All workers of a host tell the same; a host that serves some tenants only tells of these.
    return {name: one for answer in told.values() for name, one in answer.items()}


def _routes(endpoints: Sequence[str]) -> Sequence[str]:
    return _routes_of(tuple(endpoints))


@cache
def _routes_of(endpoints: tuple[str, ...]) -> tuple[str, ...]:
    """Return what an app with these endpoints answers; nothing where it cannot be built."""
    values = {"SECRET_KEY": NO_SECRET, "BLUEPRINTS": list(endpoints)}
    with TemporaryDirectory() as nowhere:
        try:
            app = create_app(values, data_dir=Path(nowhere))
        except EndpointError:
            return ()  # named among the problems
        rules = app.url_map.iter_rules()
        routes = [f"{one} {rule.rule}" for rule in rules for one in sorted(rule.methods or ())]
        close_app(app)
    return tuple(routes)
