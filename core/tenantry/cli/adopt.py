"""`tenantry adopt`: finds out whether an existing Flask application can be a tenant."""

import os
import pickle
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click

from tenantry.adoption.examination import examine
from tenantry.adoption.fact import Fact, FactWriter
from tenantry.adoption.verdict import Verdict
from tenantry.adoption.watch import Watch
from tenantry.adoption.watch_process import silence_output
from tenantry.cli import PROBLEM_FOUND
from tenantry.cli.audit import audit_folder
from tenantry.cli.new import checked_by
from tenantry.cli.output import examples, json_option, print_json
from tenantry.endpoints.app_reference import find_app, parse_app
from tenantry.errors import TenantryError
from tenantry.grammar import check_tenant_name
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.address import Address
from tenantry.tenants.loader_child import read_frame
from tenantry.tenants.new_file import check_name_is_free, create_tenant, new_address

MAX_LINES = 10
"""Maximum number of findings below one heading of the page. With `--json`, all are printed."""

_AUDIT = f"from {__name__} import audit_here; audit_here()"


def _check_app(_: click.Context, __: click.Parameter, value: str) -> str:
    try:
        parse_app(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}.") from error
    return value


@click.command(
    "adopt",
    epilog=examples(
        "tenantry adopt shop:create_app",
        "tenantry adopt shop.wsgi:app --app-dir /srv/shop --write acme",
    ),
)
@click.argument("app", metavar="MODULE:APP", callback=_check_app)
@click.option(
    "--app-dir", metavar="D", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that contains the module.  [default: TENANTRY_APP_DIR]",
)  # fmt: skip
@click.option(
    "--write", "name", metavar="NAME", callback=checked_by(check_tenant_name),
    help="If the application can be a tenant, write the tenant file and its secret.",
)  # fmt: skip
@json_option
def command(app: str, app_dir: Path | None, name: str | None, is_json: bool) -> None:
    """Find out whether an existing Flask application can be a tenant.

    Build the application as two tenants in processes of its own, with throw-away databases, folders
    and secrets. Compare their objects, exchange their sessions, and request their start page.
    MODULE:APP has the notation of gunicorn: shop:app, shop:create_app or "shop:create_app('x')".

    The application cannot change files outside of the throw-away folder, but it can connect to
    servers, as at any other start. The exit code is 0 if the application can be a tenant as it is,
    and 1 otherwise.
    """
    settings = read_settings()
    folder = (app_dir or settings.app_dir).absolute()
    if name is not None:
        address = _new_address(settings, name)
        check_name_is_free(settings, name)
    find_app(parse_app(app), str(folder))
    verdict = examine(app, folder, _AUDIT)
    if is_json:
        print_json({"fit": verdict.fit, "summary": verdict.summary} | asdict(verdict))
    else:
        _print_page(verdict, may_write=name is None)
    if verdict.fit != "yes":
        if name is not None:
            click.echo(f"tenantry: no tenant file for {name!r} is written.", err=True)
        sys.exit(PROBLEM_FOUND)
    if name is not None:
        other_dir = None if folder == settings.app_dir else folder
        path, secret = create_tenant(settings, name, app=app, app_dir=other_dir)
        click.echo(f"{path}: answers at {address.text}; the secret is in {secret}.", err=is_json)


def _new_address(settings: HostSettings, name: str) -> Address:
    """Return the default address of a new tenant, or raise a usage error."""
    try:
        return new_address(settings, name, None)
    except TenantryError as error:
        text = str(error).removesuffix(", with --prefix.")
        raise click.UsageError(f"{text}, or another name for --write.") from error


def audit_here() -> None:
    """Audit the tenants of this process's settings. Only the child process of `adopt` calls it."""
    requests, answers = os.dup(0), os.dup(1)
    silence_output()
    request = read_frame(requests)
    if request is not None:
        facts = FactWriter(answers)
        facts.write(Fact("phase", "audit"))
        Watch(pickle.loads(request), Path.cwd(), facts.write).begin()  # noqa: S301 - the parent wrote it
        settings = read_settings()
        for finding in audit_folder(settings)[0]:
            if finding.id == "not-audited":
                facts.write(Fact("failed", finding.text.removeprefix("cannot be audited: ")))
            elif finding.is_problem and finding.tenants:
                text, remedy = (_lasting(one, settings) for one in (finding.text, finding.remedy))
                place = "" if settings.tenants_dir.parent.name in finding.place else finding.place
                facts.write(Fact("audit", finding.id, text, place, remedy))
        facts.write(Fact("done"))
    os._exit(0)  # threads and exit handlers of the application do not matter


def _lasting(text: str, settings: HostSettings) -> str:
    """Return a text of the audit without paths in the throw-away folder."""
    folder = re.escape(settings.tenants_dir.parent.name)  # the path can be relative or absolute
    text = re.sub(rf"[^\s']*{folder}/tenants/\w+\.py(:\d+)?", "the tenant file", text)
    return re.sub(rf"[^\s']*{folder}/data", "<data>", text)


def _print_page(verdict: Verdict, *, may_write: bool) -> None:
    click.echo(verdict.summary)
    for kind in dict.fromkeys(finding.kind for finding in verdict.findings):
        click.echo(f"\n{kind}")
        _print_lines(
            f"{finding.place}{': ' * bool(finding.place)}{finding.text}.\n"
            f"    To fix it: {finding.remedy}."
            for finding in verdict.findings
            if finding.kind == kind
        )
    if verdict.notes:
        click.echo("\nNotes")
        _print_lines(f"{note}." for note in verdict.notes)
    if verdict.fit == "yes" and may_write:
        click.echo("\nTo write a tenant file and its secret, add: --write NAME")


def _print_lines(lines: Iterable[str]) -> None:
    shown = [*lines]
    for line in shown[:MAX_LINES]:
        click.echo(f"  {line}")
    if len(shown) > MAX_LINES:
        click.echo(f"  … and {len(shown) - MAX_LINES} more; see --json.")
