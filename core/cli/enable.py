"""`tenantry enable`: one tenant back, without editing its file."""

from dataclasses import replace

import click

from config.settings import read_settings
from core.cli.tenants import known_name
from core.levers import read_levers, write_levers


@click.command("enable")
@click.argument("name")
def command(name: str) -> None:
    """Serve tenant NAME again after `disable`; running workers too."""
    settings = read_settings()
    known_name(settings, name)
    levers = read_levers(settings.data_dir, name)
    write_levers(settings.data_dir, name, replace(levers, is_disabled=False))
    click.echo(f"{name}: enabled; running workers follow within 2 s.")
