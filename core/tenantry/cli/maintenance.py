"""`tenantry maintenance`: 503 for one tenant, without editing its file."""

import click

from tenantry.cli.operator_state import change_tenant_state


@click.command("maintenance")
@click.argument("switch", type=click.Choice(["on", "off"]))
@click.argument("name")
@click.option("--message", help="What clients are told.")
def command(switch: str, name: str, message: str | None) -> None:
    """Answer every request of tenant NAME with 503, or serve it again; running workers too."""
    if switch == "off" and message is not None:
        raise click.UsageError("--message goes with `on`.")
    change_tenant_state(name, maintenance=(message or True) if switch == "on" else False)
    click.echo(f"{name}: maintenance {switch}; running workers follow within 2 s.")
