"""`tenantry disable`: stops serving a tenant without a change of its tenant file."""

import click

from tenantry.cli.completion import complete_tenant
from tenantry.cli.operator_state import change_tenant_state
from tenantry.cli.output import examples


@click.command("disable", epilog=examples("tenantry disable shop"))
@click.argument("name", shell_complete=complete_tenant)
def command(name: str) -> None:
    """Stop serving a tenant.

    The host stops serving tenant NAME within 2 s. The tenant stays disabled after a restart, until
    you run `tenantry enable NAME`.
    """
    change_tenant_state(name, is_disabled=True)
    click.echo(f"{name}: disabled; takes effect within 2 s.")
