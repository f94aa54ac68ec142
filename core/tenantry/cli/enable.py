"""`tenantry enable`: serves a disabled or parked tenant again."""

import click

from tenantry.cli.operator_state import change_tenant_state
from tenantry.cli.output import examples


@click.command("enable", epilog=examples("tenantry enable shop"))
@click.argument("name")
def command(name: str) -> None:
    """Serve a disabled or parked tenant.

    `tenantry enable` reverses `tenantry disable NAME`, and lets tenant NAME serve again if the host
    parked the tenant. The host parks a tenant that ends worker processes. `tenantry enable` takes
    effect in running workers within 2 s.
    """
    change_tenant_state(name, is_disabled=False, parked="", times_parked=0)
    click.echo(f"{name}: enabled; running workers follow within 2 s.")
