"""`tenantry enable`: one tenant back, disabled or parked, without editing its file."""

import click

from tenantry.cli.operator_state import change_tenant_state


@click.command("enable")
@click.argument("name")
def command(name: str) -> None:
    """Serve tenant NAME again after `disable`, or when it was parked; running workers too."""
    change_tenant_state(name, is_disabled=False, parked="", times_parked=0)
    click.echo(f"{name}: enabled; running workers follow within 2 s.")
