"""`tenantry enable`: serves a tenant again that was disabled or parked."""

import click

from tenantry.cli.operator_state import change_tenant_state


@click.command("enable", epilog="Example: tenantry enable shop")
@click.argument("name")
def command(name: str) -> None:
    """Serve tenant NAME again after `tenantry disable`, or after it was parked.

    The host parks a tenant that ends worker processes. Running workers follow within 2 s.
    """
    change_tenant_state(name, is_disabled=False, parked="", times_parked=0)
    click.echo(f"{name}: enabled; running workers follow within 2 s.")
