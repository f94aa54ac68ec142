"""`tenantry maintenance`: answers 503 for one tenant without editing the tenant file."""

import click

from tenantry.cli.operator_state import change_tenant_state
from tenantry.cli.output import examples


@click.command(
    "maintenance",
    epilog=examples(
        "tenantry maintenance on shop --message 'Back at noon.'", "tenantry maintenance off shop"
    ),
)
@click.argument("switch", metavar="on|off", type=click.Choice(["on", "off"]))
@click.argument("name")
@click.option(
    "--message", metavar="TEXT", help="Text for the clients.  [default: Down for maintenance.]"
)
def command(switch: str, name: str, message: str | None) -> None:
    """Start or end a tenant's maintenance.

    During maintenance, the host answers every request to tenant NAME with status 503. `tenantry
    maintenance` takes effect in running workers within 2 s, and stays in effect after a restart.
    """
    if switch == "off" and message is not None:
        raise click.UsageError("--message is for `maintenance on`; leave it out.")
    change_tenant_state(name, maintenance=(message or True) if switch == "on" else False)
    click.echo(f"{name}: maintenance {switch}; running workers follow within 2 s.")
