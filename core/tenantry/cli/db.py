"""`tenantry db`: migrations over tenants; every one with `--all`, or those that are named."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tenantry.cli import PROBLEM_FOUND
from tenantry.cli.output import as_json, counted, print_json, print_table
from tenantry.errors import UnknownTenantError
from tenantry.migrations.fleet_run import JOBS, FleetLimits, FleetReport, downgrade, upgrade
from tenantry.migrations.journal import Journal, JournalError, journal_file
from tenantry.migrations.revisions import shown
from tenantry.migrations.runner import TIMEOUT_S
from tenantry.migrations.status import Outcome, Tell, survey
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.catalogue import RejectedTenant
from tenantry.tenants.lookup import scan
from tenantry.tenants.model import Tenant

COLUMNS = ("name", "state", "database", "code", "reason")

GOOD = ("no tables", "at head", "upgraded", "taken back")
"""What nobody has to look after, if it has no reason."""

_Command = TypeVar("_Command", bound=Callable[..., None])


def _options(command: _Command) -> _Command:
    """Add the options of all three commands."""
    names = click.option(
        "--tenant", "names", metavar="NAME", multiple=True, help="This tenant; may be repeated."
    )
    every = click.option("--all", "is_all", is_flag=True, help="Every tenant that is enabled.")
    jobs = click.option(
        "--jobs",
        type=click.IntRange(1, 64),
        default=JOBS,
        show_default=True,
        help="Databases to migrate at once.",
    )
    return names(every(jobs(as_json(command))))


_timeout = click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=TIMEOUT_S,
    show_default=True,
    help="How long the migrations of one database may take.",
)


@click.group("db")
def command() -> None:
    """Migrate the tenants' databases: upgrade, status, downgrade."""


@command.command("status")
@_options
def status(names: tuple[str, ...], is_all: bool, jobs: int, is_json: bool) -> None:
    """Show where each database stands; exit 1 if one is not at the head of its code."""
    del jobs  # to look takes no process each; it is taken so that the three commands are alike
    settings = read_settings()
    tenants, rejected = _asked(settings, names, is_all=is_all)
    with progress(len(tenants), is_json) as tell:
        found = [outcome for outcome, _ in survey(tenants, settings.data_dir, tell)]
    left = _left_by_last_run(settings)
    outcomes = sorted([*found, *rejected], key=lambda one: one.tenant)
    rows = [_with_reason(one, left) for one in outcomes]
    if is_json:
        print_json([_as_json(one) for one in rows])
    else:
        print_table(COLUMNS, [_cells(one) for one in rows])
    sys.exit(0 if all(map(_is_good, rows)) else PROBLEM_FOUND)


@command.command("upgrade")
@_options
@_timeout
def upgrade_(
    names: tuple[str, ...], is_all: bool, jobs: int, is_json: bool, timeout_s: float
) -> None:
    """Bring the databases to the head of their code; carries on past those that fail.

    What an earlier run has left is done first; those at head are only looked at.
    """
    settings = read_settings()
    tenants, rejected = _asked(settings, names, is_all=is_all)
    with progress(len(tenants), is_json, ("upgraded", "failed", "ahead", "unreachable")) as tell:
        report = upgrade(tenants, settings.data_dir, FleetLimits(jobs, timeout_s), tell)
    _end(FleetReport(report.run, (*report.outcomes, *rejected)), is_json=is_json)


@command.command("downgrade")
@_options
@_timeout
@click.option(
    "--run",
    type=click.IntRange(min=1),
    help="The run to take back.  [default: the last that applied something]",
)
def downgrade_(
    *,
    names: tuple[str, ...],
    is_all: bool,
    jobs: int,
    is_json: bool,
    timeout_s: float,
    run: int | None,
) -> None:
    """Take back what a run applied, and nothing else: each database goes to where it was."""
    settings = read_settings()
    tenants, rejected = _asked(settings, names, is_all=is_all)
    limits = FleetLimits(jobs, timeout_s)
    with progress(len(tenants), is_json, ("taken back", "failed")) as tell:
        report = downgrade(tenants, settings.data_dir, run, limits, tell)
    _end(FleetReport(report.run, (*report.outcomes, *rejected)), is_json=is_json)


def _asked(
    settings: HostSettings, names: Sequence[str], *, is_all: bool
) -> tuple[list[Tenant], list[Outcome]]:
    """Return the tenants that are asked for, and a failure for each whose file is refused."""
    if bool(names) == is_all:
        raise click.UsageError("name tenants with --tenant NAME, or take every one with --all.")
    catalogue = scan(settings)
    enabled = {one.name: one for one in catalogue.tenants + catalogue.rejected}
    known = sorted([*enabled, *(one.name for one in catalogue.disabled)])
    for name in names:
        if name not in known:
            raise UnknownTenantError(name, known)
        if name not in enabled:
            raise click.UsageError(f"tenant {name!r} is disabled; enable it first.")
    asked = [one for name, one in enabled.items() if is_all or name in names]
    tenants = [one for one in asked if isinstance(one, Tenant)]
    rejected = [
        Outcome(one.name, "failed", reason=one.reason)
        for one in asked
        if isinstance(one, RejectedTenant)
    ]
    return tenants, rejected


def _left_by_last_run(settings: HostSettings) -> dict[str, str]:
    """Return, by tenant, why the last run that changed it failed."""
    if not journal_file(settings.data_dir).exists():
        return {}
    left: dict[str, str] = {}
    try:
        with Journal(settings.data_dir) as journal:
            for step in (step for run in reversed(journal.runs()) for step in journal.steps(run)):
                left[step.tenant] = f"run {step.run}: {step.reason}" if step.reason else ""
    except JournalError as error:  # where the databases are is known all the same
        click.echo(str(error), err=True)
    return left


def _with_reason(one: Outcome, left: dict[str, str]) -> Outcome:
    if one.reason or one.state != "behind" or not left.get(one.tenant):
        return one
    return Outcome(one.tenant, one.state, one.before, one.after, left[one.tenant])


@contextmanager
def progress(total: int, is_json: bool, worth: Sequence[str] = ()) -> Iterator[Tell]:
    """Show how far a run is: a bar on a terminal, otherwise a line for each outcome of `worth`."""
    if is_json or not sys.stderr.isatty():
        yield lambda one: _line(one) if _is_worth(one, worth) and not is_json else None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True, markup=False, highlight=False)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("databases", total=total)

        def tell(one: Outcome) -> None:
            if _is_worth(one, worth) and not _is_good(one):
                bar.console.print(f"{one.tenant}: {one.state}: {one.reason}")
            bar.update(task, advance=1)

        yield tell


def _is_worth(one: Outcome, worth: Sequence[str]) -> bool:
    return one.state in worth or bool(worth and one.reason)


def _line(one: Outcome) -> None:
    click.echo("\t".join(_cells(one)), err=not _is_good(one))


def _end(report: FleetReport, *, is_json: bool) -> None:
    """Print what a run did, and exit."""
    bad = [one for one in report.outcomes if not _is_good(one)]
    if is_json:
        print_json({"run": report.run, "tenants": [_as_json(one) for one in report.outcomes]})
    else:
        click.echo(_summary(report), err=bool(bad))
    sys.exit(PROBLEM_FOUND if bad else 0)


def _is_good(one: Outcome) -> bool:
    return one.state in GOOD and not one.reason


def _summary(report: FleetReport) -> str:
    states = [one.state for one in report.outcomes]
    counts = [f"{states.count(state)} {state}" for state in sorted(set(states))]
    run = "" if report.run is None else f" (run {report.run})"
    return f"{counted(len(states))}{run}: {', '.join(counts) or 'nothing to do'}."


def _cells(one: Outcome) -> list[str]:
    is_known = one.state not in ("no tables", "unreachable")
    revisions = [shown(one.before), shown(one.after)] if is_known else ["", ""]
    return [one.tenant, one.state, *revisions, one.reason]


def _as_json(one: Outcome) -> dict[str, Any]:
    return asdict(one) | {"before": sorted(one.before), "after": sorted(one.after)}
