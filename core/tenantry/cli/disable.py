"""`tenantry disable`: one tenant away, without editing its file."""

import click

from tenantry.cli.operator_state import change_tenant_state


@click.command("disable")
@click.argument("name")
def command(name: str) -> None:
    """Take tenant NAME away, as if its file were not there; running workers too."""
    change_tenant_state(name, is_disabled=True)
    click.echo(f"{name}: disabled; running workers follow within 2 s.")
