"""`tenantry maintenance`: answers 503 for one tenant without editing its file."""

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

    During maintenance, every request of tenant NAME is answered with 503. Running workers
    follow within 2 s; the state survives restarts.
    """
    if switch == "off" and message is not None:
        raise click.UsageError("--message is for `maintenance on`; leave it out.")
    change_tenant_state(name, maintenance=(message or True) if switch == "on" else False)
    click.echo(f"{name}: maintenance {switch}; running workers follow within 2 s.")
