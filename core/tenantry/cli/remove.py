"""`tenantry remove`: writes a capsule of a tenant, and then removes the tenant."""

from pathlib import Path

import click

from tenantry.cli.backup import capsule_progress, check_target
from tenantry.cli.completion import complete_tenant
from tenantry.cli.new import checked_by
from tenantry.cli.output import examples, json_option, print_json
from tenantry.grammar import check_tenant_name
from tenantry.moves import Removal, remove_tenant
from tenantry.settings import read_settings


@click.command(
    "remove",
    epilog=examples("tenantry remove shop", "tenantry remove shop --archive /backup/shop.capsule"),
)
@click.argument("name", callback=checked_by(check_tenant_name), shell_complete=complete_tenant)
@click.option(
    "--archive", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
    help="Path of the capsule.  [default: <data>/.removed/NAME-TIME.capsule]",
)  # fmt: skip
@click.option("--no-archive", is_flag=True, help="Write no capsule. The data is lost.")
@json_option
def command(*, name: str, archive: Path | None, no_archive: bool, is_json: bool) -> None:
    """Remove a tenant.

    Write tenant NAME into a capsule, and then remove its tenant file, files, database and secrets.
    `tenantry restore` creates the tenant again. A database that the tenant file names by a URL
    remains. If only data without a tenant has the name, the data moves to <data>/.removed. To
    complete a killed command, run the command again.
    """
    if archive is not None and no_archive:
        raise click.UsageError("choose either --archive or --no-archive.")
    settings = read_settings()
    if archive is not None:
        check_target(archive, settings.data_dir / name)
    with capsule_progress(is_json) as on_progress:
        removed = remove_tenant(
            settings, Removal(name, archive, is_archived=not no_archive), on_progress
        )
    if is_json:
        kept = None if removed.archive is None else str(removed.archive)
        document = {"tenant": name, "archive": kept, "kept_database": removed.kept_database}
        print_json(document)
        return
    place = "." if removed.archive is None else f"; its data is in {removed.archive}."
    click.echo(f"{name}: removed{place}")
    if removed.kept_database:
        click.echo(f"The database was not removed: {removed.kept_database}")
