"""`tenantry enable`: serves a disabled or parked tenant again."""

import click

from tenantry.cli.completion import complete_tenant
from tenantry.cli.operator_state import change_tenant_state
from tenantry.cli.output import examples


@click.command("enable", epilog=examples("tenantry enable shop"))
@click.argument("name", shell_complete=complete_tenant)
def command(name: str) -> None:
    """Serve a disabled or parked tenant.

    Running workers serve tenant NAME again within 2 s. A tenant is disabled after `tenantry disable
    NAME`. A tenant is parked if its requests have ended worker processes.
    """
    change_tenant_state(name, is_disabled=False, parked="", times_parked=0)
    click.echo(f"{name}: enabled; takes effect within 2 s.")
