"""`tenantry disable`: takes one tenant out of service without editing its file."""

import click

from tenantry.cli.operator_state import change_tenant_state
from tenantry.cli.output import examples


@click.command("disable", epilog=examples("tenantry disable shop"))
@click.argument("name")
def command(name: str) -> None:
    """Stop serving a tenant.

    Tenant NAME is then as if its file were not there, until `tenantry enable`. Running workers
    follow within 2 s; the state survives restarts.
    """
    change_tenant_state(name, is_disabled=True)
    click.echo(f"{name}: disabled; running workers follow within 2 s.")
