"""Reports data without a tenant."""

import click

from tenantry.settings import HostSettings
from tenantry.tenants.new_file import describe_leftover, find_leftovers


def print_leftovers(settings: HostSettings) -> None:
    """Print one line on stderr for each folder below `<data>` that no tenant file claims."""
    for name in find_leftovers(settings):
        click.echo(f"tenantry: {describe_leftover(settings, name)}", err=True)
