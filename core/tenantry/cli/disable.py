"""`tenantry disable`: takes one tenant out of service without editing the tenant file."""

import click

from tenantry.cli.operator_state import change_tenant_state
from tenantry.cli.output import examples


@click.command("disable", epilog=examples("tenantry disable shop"))
@click.argument("name")
def command(name: str) -> None:
    """Stop serving a tenant.

    The host does not serve tenant NAME until `tenantry enable NAME`. `tenantry disable` takes
    effect in running workers within 2 s, and stays in effect after a restart.
    """
    change_tenant_state(name, is_disabled=True)
    click.echo(f"{name}: disabled; running workers follow within 2 s.")
