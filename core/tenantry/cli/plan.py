"""`tenantry plan`: what the tenants folder would change, before it does."""

import json
import os
import secrets
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from tenantry.app.trial_build import find_faults, find_routes
from tenantry.cli import PROBLEM_FOUND
from tenantry.cli.output import as_json, print_json
from tenantry.errors import Problem, TenantryError
from tenantry.observability.control_socket import ask_workers
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.catalogue import Catalogue
from tenantry.tenants.diff import Change, compare, describe, find_blocked_moves
from tenantry.tenants.lookup import effective_operator_state, scan
from tenantry.tenants.model import Tenant, parse_tenant

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
    salt = secrets.token_hex(16)
    old: dict[str, Any] = {}
    if snapshot is not None:
        salt, old = _saved(snapshot)
    elif target is None:
        old = _served(settings, salt)
    catalogue = scan(settings, rank=lambda tenant: _rank(tenant, old, salt))
    operator_state = {
        one.name: effective_operator_state(settings, one.name) for one in catalogue.tenants
    }
    tenants = {
        tenant.name: tenant
        for tenant in catalogue.tenants
        if not operator_state[tenant.name][0].is_disabled
    }
    new = {name: describe(tenant, salt) for name, tenant in tenants.items()}
    changed = [tenants[name] for name in new if new[name] != old.get(name)]
    refused = _refused(settings, catalogue, changed, only_endpoints=target is not None)
    refused |= {
        name: str(Problem(tenants[name].file, text, "URL_PREFIX"))
        for name, text in find_blocked_moves(old, new, refused).items()
    }
    refused |= {name: problem for name, (_, problem) in operator_state.items() if problem}
    if target is not None:
        _save(target, {"salt": salt, "tenants": {one: new[one] for one in new.keys() - refused}})
        changes = []
    else:
        changes = compare(old, new, _routes(old, new, refused), refused)
    _show(changes, [refused[name] for name in sorted(refused)], is_json=is_json)
    sys.exit(PROBLEM_FOUND if refused else 0)


def _show(changes: list[Change], problems: list[str], *, is_json: bool) -> None:
    if is_json:
        print_json({"changes": [asdict(change) for change in changes], "problems": problems})
        return
    for line in [*map(str, changes), *(f"! {problem}" for problem in problems)]:
        click.echo(line)


def _rank(tenant: Tenant, old: Mapping[str, Any], salt: str) -> int:
    """Order tenants as their claims count in a host: what serves, its changes, newcomers."""
    if tenant.name not in old:
        return 2
    return int(describe(tenant, salt) != old[tenant.name])


def _refused(
    settings: HostSettings, catalogue: Catalogue, changed: Sequence[Tenant], *, only_endpoints: bool
) -> dict[str, str]:
    """Return whose newest file would not be served, by name, with every reason."""
    found: dict[str, list[str]] = {}
    for one in catalogue.rejected:
        if effective_operator_state(settings, one.name)[0].is_disabled:
            continue
        found.setdefault(one.name, []).extend(map(str, one.problems))
    for tenant, problem in find_faults(changed, settings.data_dir, only_endpoints=only_endpoints):
        found.setdefault(tenant.name, []).append(str(problem))
    return {name: " ".join(reasons) for name, reasons in found.items()}


def _save(target: Path, snapshot: Mapping[str, Any]) -> None:
    """Write a snapshot whole or not at all; its salt is for its owner's eyes only.

    Raises:
        TenantryError: it cannot be written.
    """
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump(snapshot, file, indent=2)
            unfinished.replace(target)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise TenantryError(f"cannot write {target}: {error.strerror}.") from error


def _saved(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        saved = json.loads(path.read_bytes())
        salt, tenants = str(saved["salt"]), dict(saved["tenants"])
        compare(tenants, tenants, lambda _: ())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TenantryError(f"{path} is no snapshot; make one: tenantry plan --save.") from error
    return salt, tenants


def _served(settings: HostSettings, salt: str) -> dict[str, Any]:
    told = ask_workers(settings.data_dir, f"plan {salt}")
    if not told:
        raise TenantryError(
            f"no host is running over {settings.data_dir}; start one, or compare with a snapshot: "
            "tenantry plan --against FILE."
        )
    ready = [answer["tenants"] for answer in told.values() if answer["is_ready"]]
    if not ready:
        raise TenantryError(
            "no worker has judged all tenants yet; ask again: tenantry list --wait."
        )
    # All workers of a host tell the same; a host that serves some tenants only tells of these.
    return {name: one for tenants in ready for name, one in tenants.items()}


def _routes(
    old: Mapping[str, Any], new: Mapping[str, Any], refused: Collection[str]
) -> Callable[[Sequence[str]], Sequence[str]]:
    """Return what tells the routes of endpoints; they are built in a process of their own."""
    wanted = {
        tuple(side[name]["endpoints"])
        for name in (old.keys() & new.keys()) - {*refused}
        for side in (old, new)
        if old[name]["endpoints"] != new[name]["endpoints"]
    }
    with TemporaryDirectory() as nowhere:
        trials = [
            parse_tenant(
                "plan", {"SECRET_KEY": NO_SECRET, "BLUEPRINTS": list(one)}, data_dir=Path(nowhere)
            )
            for one in sorted(wanted)
        ]
        found = find_routes(trials, Path(nowhere)) if trials else []
    known = dict(zip(sorted(wanted), found, strict=True))
    return lambda endpoints: known[tuple(endpoints)]
