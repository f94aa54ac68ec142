"""`tenantry disable`: one tenant away, without editing its file."""

from dataclasses import replace

import click

from config.settings import read_settings
from core.cli.tenants import known_name
from core.levers import read_levers, write_levers


@click.command("disable")
@click.argument("name")
def command(name: str) -> None:
    """Take tenant NAME away, as if its file were not there; running workers too."""
    settings = read_settings()
    known_name(settings, name)
    levers = read_levers(settings.data_dir, name)
    write_levers(settings.data_dir, name, replace(levers, is_disabled=True))
    click.echo(f"{name}: disabled; running workers follow within 2 s.")
