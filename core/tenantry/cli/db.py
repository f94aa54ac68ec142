"""`tenantry db`: migrates the tenants' databases, and shows their revisions."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import click

from tenantry.cli import PROBLEM_FOUND
from tenantry.cli.completion import complete_tenant
from tenantry.cli.output import (
    count,
    examples,
    is_progress_drawn,
    json_option,
    print_json,
    print_table,
    progress_bar,
)
from tenantry.errors import UnknownTenantError
from tenantry.migrations.fleet_run import JOBS, FleetLimits, FleetReport, downgrade, upgrade
from tenantry.migrations.journal import Journal, JournalError, journal_file
from tenantry.migrations.new_revision import create_revision
from tenantry.migrations.revisions import format_revisions
from tenantry.migrations.runner import TIMEOUT_S
from tenantry.migrations.status import READ_THREADS, MigrationStatus, OnStatus, fleet_status
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.catalogue import load_tenant, scan_tenants
from tenantry.tenants.model import Tenant
from tenantry.tenants.validation import RejectedTenant

COLUMNS = ("name", "state", "database", "code", "reason")

GOOD_STATES = ("no tables", "at head", "upgraded", "downgraded")
"""Migration states that require no action by the operator."""

_Command = TypeVar("_Command", bound=Callable[..., None])


def _options(command: _Command) -> _Command:
    """Add the options `--tenant`, `--all` and `--json`, which all subcommands have."""
    names = click.option(
        "--tenant",
        "names",
        metavar="NAME",
        multiple=True,
        shell_complete=complete_tenant,
        help="Tenant to choose. Repeatable.",
    )
    is_all = click.option("--all", "is_all", is_flag=True, help="Choose all enabled tenants.")
    return names(is_all(json_option(command)))


def _jobs_option(default: int, verb: str) -> Callable[[_Command], _Command]:
    return click.option(
        "--jobs", metavar="N", type=click.IntRange(1, 64), default=default, show_default=True,
        help=f"Number of databases to {verb} at the same time, 1 to 64.",
    )  # fmt: skip


_timeout_option = click.option(
    "--timeout", "timeout_s", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True),
    default=TIMEOUT_S, show_default=True, help="Time limit for the migrations of one database.",
)  # fmt: skip


@click.group("db", epilog=examples("tenantry db status", "tenantry db upgrade --tenant shop"))
def command() -> None:
    """Migrate the tenants' databases."""


@command.command(
    "status", epilog=examples("tenantry db status", "tenantry db status --tenant shop --json")
)
@_options
@_jobs_option(READ_THREADS, "read")
def status(names: tuple[str, ...], is_all: bool, jobs: int, is_json: bool) -> None:
    """Show the revision of each database.

    Without --tenant, show all enabled tenants. The command changes nothing.

    The exit code is 1 if a database is not at the newest revision of its endpoints and of
    MIGRATIONS.
    """
    settings = read_settings()
    tenants, rejected = _chosen_tenants(settings, names, is_all=is_all or not names)
    with progress(len(tenants), is_json) as tell:
        found = fleet_status(tenants, settings.data_dir, tell, threads=jobs)
    failures = _failures_of_last_runs(settings)
    outcomes = sorted([*found, *rejected], key=lambda outcome: outcome.tenant)
    rows = [_with_failure(outcome, failures) for outcome in outcomes]
    if is_json:
        print_json([_as_json(outcome) for outcome in rows])
    else:
        print_table(COLUMNS, [_cells(outcome) for outcome in rows])
    sys.exit(0 if all(map(_is_good, rows)) else PROBLEM_FOUND)


@command.command("upgrade", epilog=examples("tenantry db upgrade --all --jobs 8"))
@_options
@_jobs_option(JOBS, "migrate")
@_timeout_option
def upgrade_(
    names: tuple[str, ...], is_all: bool, jobs: int, is_json: bool, timeout_s: float
) -> None:
    """Upgrade databases to the newest revision of their endpoints and of MIGRATIONS.

    If a database fails, the upgrade continues with the next database, and the exit code is 1. To
    upgrade the remaining databases, run the command again. A new run begins with the databases that
    an earlier run did not upgrade.
    """
    settings = read_settings()
    tenants, rejected = _chosen_tenants(settings, names, is_all=is_all)
    shown_states = ("upgraded", "failed", "ahead", "unreachable")
    with progress(len(tenants), is_json, shown_states) as tell:
        report = upgrade(tenants, settings.data_dir, FleetLimits(jobs, timeout_s), tell)
    _finish(FleetReport(report.run, (*report.results, *rejected)), is_json=is_json)


@command.command("downgrade", epilog=examples("tenantry db downgrade --all --run 7"))
@_options
@_jobs_option(JOBS, "migrate")
@_timeout_option
@click.option(
    "--run", metavar="N", type=click.IntRange(min=1),
    help="Number of the run to undo.  [default: the last run that upgraded a database]",
)  # fmt: skip
def downgrade_(
    *,
    names: tuple[str, ...],
    is_all: bool,
    jobs: int,
    is_json: bool,
    timeout_s: float,
    run: int | None,
) -> None:
    """Undo one run of tenantry db upgrade.

    Each database that the run upgraded returns to its earlier revision.
    """
    settings = read_settings()
    tenants, rejected = _chosen_tenants(settings, names, is_all=is_all)
    limits = FleetLimits(jobs, timeout_s)
    with progress(len(tenants), is_json, ("downgraded", "failed")) as tell:
        report = downgrade(tenants, settings.data_dir, run, limits, tell)
    _finish(FleetReport(report.run, (*report.results, *rejected)), is_json=is_json)


@command.command(
    "revision",
    epilog=examples("tenantry db revision shop --endpoint notes -m 'Add the table of notes'"),
)
@click.argument("name", shell_complete=complete_tenant)
@click.option(
    "--endpoint", metavar="E", required=True, help="Endpoint whose models have changed, as in "
    "BLUEPRINTS.",
)  # fmt: skip
@click.option("--message", "-m", metavar="TEXT", required=True, help="What the revision does.")
def revision_(name: str, endpoint: str, message: str) -> None:
    """Write a migration from changed models.

    Compare the models of endpoint E with the database of tenant NAME, which must be at the newest
    revisions, and write the difference to the folder migrations of the endpoint. The database is
    not changed. Read the new file before you run tenantry db upgrade.
    """
    tenant = load_tenant(read_settings(), name)[0]
    written = create_revision(tenant, endpoint, message)
    if written is None:
        click.echo("No changes.")
        return
    if written.has_unknown_tables:
        click.echo(
            f"note: the migrations of {endpoint!r} do not run on SQLite, so the new migration "
            "drops no table; if you have removed a model, add op.drop_table.",
            err=True,
        )
    click.echo(
        f"{os.path.relpath(written.path)}: revision {written.revision}. Read the file, and then "
        f"run: tenantry db upgrade --tenant {name}"
    )


def _chosen_tenants(
    settings: HostSettings, names: Sequence[str], *, is_all: bool
) -> tuple[list[Tenant], list[MigrationStatus]]:
    """Return the chosen tenants that are valid, and a failure for each invalid tenant."""
    if bool(names) == is_all:
        raise click.UsageError("choose tenants with --tenant NAME, or all tenants with --all.")
    catalogue = scan_tenants(settings)
    enabled = {tenant.name: tenant for tenant in catalogue.tenants + catalogue.rejected}
    known = sorted([*enabled, *(tenant.name for tenant in catalogue.disabled)])
    for name in names:
        if name not in known:
            raise UnknownTenantError(name, known)
        if name not in enabled:
            raise click.UsageError(
                f"tenant {name!r} is disabled; set ENABLED = True in its file first."
            )
    chosen = [tenant for name, tenant in enabled.items() if is_all or name in names]
    tenants = [tenant for tenant in chosen if isinstance(tenant, Tenant)]
    rejected = [
        MigrationStatus(tenant.name, "failed", reason=tenant.reason)
        for tenant in chosen
        if isinstance(tenant, RejectedTenant)
    ]
    return tenants, rejected


def _failures_of_last_runs(settings: HostSettings) -> dict[str, str]:
    """Return the run and the reason for each tenant whose last migration failed."""
    if not journal_file(settings.data_dir).exists():
        return {}
    failures: dict[str, str] = {}
    try:
        with Journal(settings.data_dir) as journal:
            for step in (step for run in reversed(journal.runs()) for step in journal.steps(run)):
                failures[step.tenant] = f"run {step.run}: {step.reason}" if step.reason else ""
    except JournalError as error:  # `db status` can show revisions without the journal
        click.echo(str(error), err=True)
    return failures


def _with_failure(outcome: MigrationStatus, failures: dict[str, str]) -> MigrationStatus:
    """If a database is behind, add the reason why its last migration failed."""
    if outcome.reason or outcome.state != "behind" or not failures.get(outcome.tenant):
        return outcome
    return replace(outcome, reason=failures[outcome.tenant])


@contextmanager
def progress(total: int, is_json: bool, shown_states: Sequence[str] = ()) -> Iterator[OnStatus]:
    """Show the progress of a migration run during the `with` block.

    On a terminal, show a progress bar. Otherwise, print a line for each database whose state is in
    `shown_states`.
    """

    def is_shown(outcome: MigrationStatus) -> bool:
        return outcome.state in shown_states or bool(shown_states and outcome.reason)

    if not is_progress_drawn(is_json=is_json):
        yield lambda outcome: _print_line(outcome) if is_shown(outcome) and not is_json else None
        return
    with progress_bar() as bar:
        task = bar.add_task("databases", total=total)

        def tell(outcome: MigrationStatus) -> None:
            if is_shown(outcome) and not _is_good(outcome):
                bar.console.print(f"{outcome.tenant}: {outcome.state}: {outcome.reason}")
            bar.update(task, advance=1)

        yield tell


def _print_line(outcome: MigrationStatus) -> None:
    click.echo("\t".join(_cells(outcome)), err=not _is_good(outcome))


def _finish(report: FleetReport, *, is_json: bool) -> None:
    """Print the report of a migration run, and exit with code 0 or 1."""
    is_good = all(map(_is_good, report.results))
    if is_json:
        tenants = [_as_json(outcome) for outcome in report.results]
        print_json({"run": report.run, "tenants": tenants})
    else:
        click.echo(_summary(report), err=not is_good)
    sys.exit(0 if is_good else PROBLEM_FOUND)


def _is_good(outcome: MigrationStatus) -> bool:
    return outcome.state in GOOD_STATES and not outcome.reason


def _summary(report: FleetReport) -> str:
    states = [outcome.state for outcome in report.results]
    counts = [f"{states.count(state)} {state}" for state in sorted(set(states))]
    run = "" if report.run is None else f" (run {report.run})"
    return f"{count(len(states), 'tenant')}{run}: {', '.join(counts) or 'nothing to do'}."


def _cells(outcome: MigrationStatus) -> list[str]:
    is_known = outcome.state not in ("no tables", "unreachable")
    before, after = format_revisions(outcome.before), format_revisions(outcome.after)
    revisions = [before, after] if is_known else ["", ""]
    return [outcome.tenant, outcome.state, *revisions, outcome.reason]


def _as_json(outcome: MigrationStatus) -> dict[str, Any]:
    return {
        "tenant": outcome.tenant,
        "state": outcome.state,
        "before": sorted(outcome.before),
        "after": sorted(outcome.after),
        "reason": outcome.reason,
    }
