"""`tenantry restore`: creates a tenant from a capsule."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from tenantry.capsules import (
    Capsule,
    ProgressCallback,
    RestoredTenant,
    RestoreRequest,
    describe_access,
    new_tenant_staging,
    read_capsule,
    restore_tenant,
)
from tenantry.cli import PROBLEM_FOUND
from tenantry.cli.backup import (
    capsule_progress,
    describe_summary,
    print_left_out,
    summary_as_json,
)
from tenantry.cli.new import checked_by
from tenantry.cli.output import count, examples, json_option, print_json
from tenantry.cli.signals import ignore_signals, interrupting_signals
from tenantry.database.url import parse_database_url
from tenantry.grammar import check_tenant_name, check_url_prefix
from tenantry.moves import Move, MoveJournal, Replacement
from tenantry.settings import HostSettings, read_settings


def prefix_option(command: Any) -> Any:
    """Add the option `--prefix` to a click command."""
    text = "URL prefix.  [default: the original prefix, or /NAME for a new name]"
    check = checked_by(check_url_prefix)
    return click.option("--prefix", metavar="P", callback=check, help=text)(command)


def database_option(command: Any) -> Any:
    """Add the option `--database` to a click command."""
    text = (
        "URL of an empty database, or the name of a secret that holds the URL.  "
        "[default: a SQLite file in the data folder]"
    )
    check = checked_by(_check_database)
    return click.option("--database", metavar="URL|SECRET", callback=check, help=text)(command)


def _check_database(text: str) -> str:
    if ":" in text:
        parse_database_url(text)
    return text


@click.command(
    "restore",
    epilog=examples(
        "tenantry restore shop.capsule",
        "tenantry restore shop.capsule --as shop2 --prefix /clients/shop2",
    ),
)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--as", "name", metavar="NAME", callback=checked_by(check_tenant_name),
    help="Name of the new tenant.  [default: the original name]",
)  # fmt: skip
@prefix_option
@database_option
@click.option(
    "--replace", "is_replacing", is_flag=True,
    help="Replace an existing tenant. The former tenant moves to <data>/.removed/NAME-TIME.",
)  # fmt: skip
@click.option(
    "--with-templates", is_flag=True,
    help="Also restore templates, whose code the app runs, and static files. Use this option only "
    "for capsules that you trust.",
)  # fmt: skip
@json_option
def command(
    *,
    file: Path,
    name: str | None,
    prefix: str | None,
    database: str | None,
    is_replacing: bool,
    with_templates: bool,
    is_json: bool,
) -> None:
    """Create a tenant from a capsule.

    Check the whole capsule FILE, show who can use the tenant, and then create the tenant with a new
    secret. To restore into PostgreSQL, name an empty database with --database. Without --replace,
    an existing tenant, folder or database is never overwritten. A replaced tenant keeps its secret,
    and answers 503 while its data moves.
    """
    settings = read_settings()
    with interrupting_signals(), capsule_progress(is_json) as on_progress:
        capsule = read_capsule(file, on_progress)
        print_access(capsule)
        request = RestoreRequest(
            name or capsule.metadata.tenant,
            prefix,
            database,
            is_replacing=is_replacing,
            with_templates=with_templates,
        )
        run = replace_tenant if is_replacing else create_tenant
        restored = run(settings, capsule, request, on_progress)
    print_restored(request.name, restored, is_json=is_json)
    sys.exit(PROBLEM_FOUND if restored.lost_tables else 0)


def create_tenant(
    settings: HostSettings,
    capsule: Capsule,
    request: RestoreRequest,
    on_progress: ProgressCallback,
) -> RestoredTenant:
    """Create a tenant whose name is free."""
    with new_tenant_staging(settings, request.name) as staging:
        return restore_tenant(
            settings,
            capsule,
            request,
            staging,
            on_progress=on_progress,
            before_commit=ignore_signals,
        )


def replace_tenant(
    settings: HostSettings,
    capsule: Capsule,
    request: RestoreRequest,
    on_progress: ProgressCallback,
) -> RestoredTenant:
    """Set an existing tenant aside, and create it again."""
    move = Move(
        "restore --replace",
        request.name,
        capsule=str(capsule.path.absolute()),
        options=_shown_options(request),
    )
    with MoveJournal(settings.data_dir, move) as journal:
        replacement = Replacement(settings, journal)
        with new_tenant_staging(settings, request.name, is_replacing=True) as staging:
            restored = restore_tenant(
                settings,
                capsule,
                request,
                staging,
                on_progress=on_progress,
                before_commit=ignore_signals,
                replacing=replacement,
            )
        replacement.wait_for_workers()
    if replacement.aside.exists():
        click.echo(f"The former tenant is in {replacement.aside}.", err=True)
    return restored


def _shown_options(request: RestoreRequest) -> str:
    """Return the options of a request for a message. A database URL can contain a password."""
    words = []
    if request.prefix is not None:
        words += ["--prefix", request.prefix]
    if request.database is not None:
        words += ["--database", "URL" if ":" in request.database else request.database]
    if request.with_templates:
        words.append("--with-templates")
    return shlex.join(words)


def print_access(capsule: Capsule) -> None:
    """Print on stderr who can use the tenant of a capsule, before the tenant is created."""
    for line in describe_access(capsule.config, capsule.metadata.secret_keys):
        click.echo(f"{capsule.path}: {line}.", err=True)


def print_restored(name: str, restored: RestoredTenant, *, is_json: bool) -> None:
    """Print what was restored, and what the operator has to do next."""
    summary = restored.summary
    if is_json:
        document: dict[str, object] = {
            "tenant": name,
            "file": str(restored.path),
            "prefix": restored.prefix,
            "database": restored.database,
        }
        document |= summary_as_json(summary)
        document["templates_left_out"] = summary.templates_left_out
        print_json(document | {"missing_keys": restored.missing_keys})
        return
    click.echo(f"{restored.path}: answers at {restored.prefix}; {describe_summary(summary)}.")
    click.echo(f"database: {restored.database}")
    print_left_out(summary)
    if summary.templates_left_out:
        click.echo(
            f"tenantry: left out: {count(summary.templates_left_out, 'file')} in templates and "
            "static; to restore them, use --with-templates.",
            err=True,
        )
    for key in restored.missing_keys:
        click.echo(
            f"tenantry: {restored.path}: {key!r} is a secret, and capsules hold no secrets; "
            "set it again.",
            err=True,
        )
    if restored.is_behind:
        click.echo(f"tenantry: now run: tenantry db upgrade --tenant {name}", err=True)
