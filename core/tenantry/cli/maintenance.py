"""`tenantry maintenance`: makes a tenant answer 503 without a change of its tenant file."""

import click

from tenantry.cli.completion import complete_tenant
from tenantry.cli.operator_state import change_tenant_state
from tenantry.cli.output import examples


@click.command(
    "maintenance",
    epilog=examples(
        "tenantry maintenance on shop --message 'Back at noon.'", "tenantry maintenance off shop"
    ),
)
@click.argument("switch", metavar="on|off", type=click.Choice(["on", "off"]))
@click.argument("name", shell_complete=complete_tenant)
@click.option(
    "--message", metavar="TEXT", help="Text of the response.  [default: Down for maintenance.]"
)
def command(switch: str, name: str, message: str | None) -> None:
    """Start or end the maintenance of a tenant.

    During maintenance, every request to tenant NAME gets status 503. Running workers start or end
    the maintenance within 2 s. A restart does not end the maintenance.
    """
    if switch == "off" and message is not None:
        raise click.UsageError("use --message only with `maintenance on`.")
    change_tenant_state(name, maintenance=(message or True) if switch == "on" else False)
    click.echo(f"{name}: maintenance {switch}; takes effect within 2 s.")
