"""`tenantry enable`: one tenant back, without editing its file."""

import click

from core.cli.lever import pull


@click.command("enable")
@click.argument("name")
def command(name: str) -> None:
    """Serve tenant NAME again after `disable`; running workers too."""
    pull(name, is_disabled=False)
    click.echo(f"{name}: enabled; running workers follow within 2 s.")
