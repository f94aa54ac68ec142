"""`tenantry disable`: takes one tenant out of service without editing its file."""

import click

from tenantry.cli.operator_state import change_tenant_state


@click.command("disable", epilog="Example: tenantry disable shop")
@click.argument("name")
def command(name: str) -> None:
    """Stop serving tenant NAME, as if its file were not there.

    Running workers follow within 2 s; a restart changes nothing. `tenantry enable` undoes it.
    """
    change_tenant_state(name, is_disabled=True)
    click.echo(f"{name}: disabled; running workers follow within 2 s.")
