"""`tenantry plan`: shows what the tenants folder would change in the running host."""

import secrets
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from tenantry.app.trial_build import find_routes, try_builds
from tenantry.cli import PROBLEM_FOUND
from tenantry.cli.leftovers import print_leftovers
from tenantry.cli.output import examples, json_option, print_json
from tenantry.errors import Problem, TenantryError
from tenantry.observability.control_socket import ask_workers
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.catalogue import Catalogue, scan_tenants
from tenantry.tenants.diff import (
    Change,
    compare,
    describe,
    find_blocked_moves,
    read_snapshot,
    snapshot_text,
    write_snapshot,
)
from tenantry.tenants.model import Tenant
from tenantry.tenants.operator_state import effective_operator_state
from tenantry.tenants.validation import parse_tenant

STDOUT = Path("-")
"""The name that means standard output instead of a file."""

TRIAL_SECRET = "for apps that only list their routes"  # noqa: S105 - no session is signed with this key


@click.command(
    "plan",
    epilog=examples(
        "tenantry plan", "tenantry plan --save before.json", "tenantry plan --against before.json"
    ),
)
@click.option(
    "--against", metavar="FILE", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Snapshot to compare with.  [default: what the running host serves]",
)  # fmt: skip
@click.option(
    "--save", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Save a snapshot of the folder, without secrets, instead of comparing. FILE can be - for "
    "standard output.",
)  # fmt: skip
@json_option
def command(against: Path | None, save: Path | None, is_json: bool) -> None:
    """Show what the tenants folder would change.

    Show changed tenants, URL prefixes, databases, keys and routes, without changing anything.
    Changed tenants are built in a child process. A line begins with + for a new tenant, - for a
    removed tenant, ~ for a change, and ! for a problem. The exit code is 1 if a tenant has a
    problem.
    """
    if save == STDOUT and is_json:
        raise click.UsageError("choose either --save - or --json.")
    settings = read_settings()
    salt = secrets.token_hex(16)
    print_leftovers(settings)
    old: dict[str, Any] = {}
    if against is not None:
        salt, old = read_snapshot(against)
    elif save is None:
        old = read_served_tenants(settings, salt)
    new, problems = read_folder(settings, salt, old, only_parts=save is not None)
    changes: list[Change] = []
    if save is not None:
        _save(save, salt, {name: new[name] for name in new.keys() - problems})
    else:
        changes = compare(old, new, _route_finder(old, new, problems), problems)
    if is_json:
        document = [asdict(change) for change in changes]
        print_json({"changes": document, "problems": [problems[name] for name in sorted(problems)]})
    else:
        lines = [*map(str, changes), *(f"! {problems[name]}" for name in sorted(problems))]
        if not lines and save is None:
            lines = ["No changes."]
        for line in lines:
            click.echo(line, err=save == STDOUT)
    sys.exit(PROBLEM_FOUND if problems else 0)


def _save(path: Path, salt: str, tenants: Mapping[str, Any]) -> None:
    if path == STDOUT:
        click.echo(snapshot_text(salt, tenants), nl=False)
    else:
        write_snapshot(path, salt, tenants)


def read_served_tenants(settings: HostSettings, salt: str) -> dict[str, Any]:
    """Return descriptions of the tenants that the running host serves.

    Raises:
        TenantryError: No host is running, or no worker has evaluated all tenant files.
    """
    answers = ask_workers(settings.data_dir, f"plan {salt}")
    if not answers:
        raise TenantryError(
            f"no host is running with data folder {settings.data_dir}; start one, or compare with "
            "a snapshot: tenantry plan --against FILE."
        )
    ready = [answer["tenants"] for answer in answers.values() if answer["is_ready"]]
    if not ready:
        raise TenantryError(
            "no worker has evaluated all tenant files yet; wait with: tenantry list --wait."
        )
    # The workers of one host serve the same tenants, but two hosts can serve different tenants.
    return {name: description for tenants in ready for name, description in tenants.items()}


def read_folder(
    settings: HostSettings, salt: str, old: Mapping[str, Any], *, only_parts: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return descriptions of the valid tenants, and the problems of each tenant."""

    def rank(tenant: Tenant) -> int:  # in a conflict, a serving tenant takes precedence
        if tenant.name not in old:
            return 2
        return int(describe(tenant, salt) != old[tenant.name])

    catalogue = scan_tenants(settings, rank=rank)
    states = {
        tenant.name: effective_operator_state(settings.data_dir, tenant.name)
        for tenant in catalogue.tenants
    }
    tenants = {
        tenant.name: tenant
        for tenant in catalogue.tenants
        if not states[tenant.name][0].is_disabled
    }
    new = {name: describe(tenant, salt) for name, tenant in tenants.items()}
    changed = [tenants[name] for name in new if new[name] != old.get(name)]
    problems = _file_problems(settings, catalogue, changed, only_parts=only_parts)
    problems |= {
        name: str(Problem(tenants[name].file, text, "URL_PREFIX"))
        for name, text in find_blocked_moves(old, new, problems).items()
    }
    problems |= {name: problem for name, (_, problem) in states.items() if problem}
    return new, problems


def _file_problems(
    settings: HostSettings, catalogue: Catalogue, changed: Sequence[Tenant], *, only_parts: bool
) -> dict[str, str]:
    """Return the reasons for each tenant whose newest file the host would not serve."""
    found: dict[str, list[str]] = {}
    for rejected in catalogue.rejected:
        if not effective_operator_state(settings.data_dir, rejected.name)[0].is_disabled:
            found.setdefault(rejected.name, []).extend(map(str, rejected.problems))
    built = try_builds(changed, settings.data_dir, only_parts=only_parts)
    for tenant, problem in built.problems:
        found.setdefault(tenant.name, []).append(str(problem))
    return {name: " ".join(reasons) for name, reasons in found.items()}


def _route_finder(
    old: Mapping[str, Any], new: Mapping[str, Any], problems: Collection[str]
) -> Callable[[Sequence[str]], Sequence[str]]:
    """Return a function that returns the routes of a list of endpoints.

    The routes come from trial builds in a child process.
    """
    wanted = sorted(
        {
            tuple(side[name]["endpoints"])
            for name in (old.keys() & new.keys()) - {*problems}
            for side in (old, new)
            if side[name]["endpoints"] and old[name]["endpoints"] != new[name]["endpoints"]
        }
    )
    with TemporaryDirectory() as folder:
        trials = [
            parse_tenant(
                "plan",
                {"SECRET_KEY": TRIAL_SECRET, "BLUEPRINTS": list(endpoints)},
                data_dir=Path(folder),
            )
            for endpoints in wanted
        ]
        found = find_routes(trials, Path(folder)) if trials else []
    routes = dict(zip(wanted, found, strict=True))
    return lambda endpoints: routes.get(tuple(endpoints), ())
