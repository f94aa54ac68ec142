"""`tenantry backup`: writes a tenant into one file, a capsule, while the tenant serves."""

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from tenantry.capsules import CapsuleSummary, ProgressCallback, write_capsule
from tenantry.capsules.staging import backup_staging
from tenantry.cli.completion import complete_tenant
from tenantry.cli.output import (
    count,
    examples,
    is_progress_drawn,
    json_option,
    print_json,
    progress_bar,
)
from tenantry.cli.signals import interrupting_signals
from tenantry.errors import TenantryError
from tenantry.moves import unfinished_moves
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.catalogue import load_tenant
from tenantry.tenants.loader import LoadedFile
from tenantry.tenants.model import Tenant
from tenantry.tenants.operator_state import is_moving


@click.command(
    "backup",
    epilog=examples(
        "tenantry backup shop shop.capsule",
        "tenantry backup shop - | ssh backups.example.org 'cat > shop.capsule'",
    ),
)
@click.argument("name", shell_complete=complete_tenant)
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@json_option
def command(name: str, file: Path, is_json: bool) -> None:
    """Write one tenant into a capsule.

    The capsule FILE contains the configuration, the rows and the files of tenant NAME, with
    checksums, but no secrets. The tenant can serve requests during the backup. If FILE exists, a
    complete new capsule replaces it. FILE has mode 0600. With -, the complete capsule goes to
    standard output. The disk of the data folder needs free space for the capsule.
    """
    settings = read_settings()
    if str(file) == "-":
        if is_json:
            raise click.UsageError("--json needs a FILE, because - writes the capsule to stdout.")
        _write_to_stdout(settings, name)
        return
    tenant, loaded = load_complete_tenant(settings, name)
    check_target(file, settings.data_dir / name)
    with interrupting_signals(), capsule_progress(is_json) as on_progress:
        summary = write_capsule(tenant, loaded, settings.data_dir, file, on_progress)
    if is_json:
        print_json({"tenant": name, "file": str(file)} | summary_as_json(summary))
    else:
        size = file.stat().st_size
        click.echo(f"{file}: tenant {name!r}, {describe_summary(summary)}, in {size:,} bytes.")
        print_left_out(summary)


def load_complete_tenant(settings: HostSettings, name: str) -> tuple[Tenant, LoadedFile]:
    """Load a tenant whose data no command is moving.

    Raises:
        UnknownTenantError: the tenant has no file.
        TenantryError: the tenant file is rejected, or the data may be incomplete, because a command
            moves the tenant or was killed.
    """
    found = load_tenant(settings, name)
    if is_moving(settings.data_dir, name):
        move = unfinished_moves(settings.data_dir).get(name)
        text = "another command is moving the tenant; wait for it."
        raise TenantryError(f"tenant {name!r}: {text if move is None else move.explanation}")
    return found


def _write_to_stdout(settings: HostSettings, name: str) -> None:
    """Write a complete capsule to stdout, or no byte if the backup fails."""
    tenant, loaded = load_complete_tenant(settings, name)
    with (
        interrupting_signals(),
        backup_staging(settings.data_dir, name) as folder,
        capsule_progress(is_json=False) as on_progress,
    ):
        path = folder / "capsule"
        summary = write_capsule(tenant, loaded, settings.data_dir, path, on_progress)
        with path.open("rb") as capsule:
            shutil.copyfileobj(capsule, sys.stdout.buffer)
    print_left_out(summary)


def check_target(file: Path, tenant_folder: Path) -> None:
    """Check that a capsule can be written to a path.

    Raises:
        click.UsageError: the path is in the tenant's own folder.
        TenantryError: the folder of the path does not exist, or the path is not a regular file.
    """
    if file.absolute().resolve().is_relative_to(tenant_folder.absolute().resolve()):
        raise click.UsageError(
            f"{file} is in the tenant's own folder, which is part of the capsule; "
            "choose another folder."
        )
    if not file.absolute().parent.is_dir():
        raise TenantryError(f"{file.parent} is not a folder; create it, or choose another file.")
    if os.path.lexists(file) and not stat.S_ISREG(file.lstat().st_mode):
        raise TenantryError(f"{file} is not a regular file; choose another file.")


def describe_summary(summary: CapsuleSummary) -> str:
    """Describe the size of a capsule, such as `3 tables, 1,200 rows, 40 files`."""
    rows = sum(summary.rows.values())
    numbers = ((len(summary.rows), "table"), (rows, "row"), (summary.files, "file"))
    return ", ".join(count(number, noun) for number, noun in numbers)


def summary_as_json(summary: CapsuleSummary) -> dict[str, object]:
    """Return the summary of a capsule for `--json`."""
    return {
        "rows": summary.rows,
        "files": summary.files,
        "size_bytes": summary.size_bytes,
        "left_out": summary.left_out,
    }


def print_left_out(summary: CapsuleSummary) -> None:
    """Print on stderr which files and tables the backup or the restore omitted."""
    for name in summary.left_out:
        click.echo(f"tenantry: left out: {name if name.isprintable() else repr(name)}", err=True)


@contextmanager
def capsule_progress(is_json: bool) -> Iterator[ProgressCallback]:
    """Show the progress of a backup or a restore during the `with` block.

    On a terminal, show a progress bar. Otherwise, print a line for each step.
    """
    if not is_progress_drawn(is_json=is_json):
        steps: list[str] = []

        def tell(step: str, _: int, __: int) -> None:
            if not is_json and step not in steps[-1:]:
                steps.append(step)
                click.echo(f"{step} …", err=True)

        yield tell
        return
    with progress_bar() as bar:
        task = bar.add_task("")
        yield lambda step, done, total: bar.update(
            task, description=step, completed=done, total=total or None
        )
