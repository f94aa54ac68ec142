"""`tenantry rename`: gives a tenant a new name, while the host serves."""

import click

from tenantry.cli.backup import capsule_progress
from tenantry.cli.completion import complete_tenant
from tenantry.cli.new import checked_by
from tenantry.cli.output import examples, json_option, print_json
from tenantry.grammar import check_tenant_name
from tenantry.moves import rename_tenant
from tenantry.settings import read_settings


@click.command("rename", epilog=examples("tenantry rename shop store"))
@click.argument("name", callback=checked_by(check_tenant_name), shell_complete=complete_tenant)
@click.argument("new", callback=checked_by(check_tenant_name))
@json_option
def command(*, name: str, new: str, is_json: bool) -> None:
    """Rename a tenant.

    Tenant NAME gets the name NEW, with its files, database, secrets, operator state and usage. The
    tenant keeps its address, and answers 503 while its data moves. A database that the tenant file
    names by a URL keeps its name. To complete a killed command, run the command again.
    """
    with capsule_progress(is_json) as on_progress:
        renamed = rename_tenant(read_settings(), name, new, on_progress)
    if is_json:
        document = {"tenant": new, "file": str(renamed.path), "prefix": renamed.prefix}
        print_json(document | {"kept_database": renamed.kept_database})
        return
    click.echo(f"{renamed.path}: answers at {renamed.prefix}, as before.")
    if renamed.kept_database:
        click.echo(f"The database keeps its name: {renamed.kept_database}")
