"""`tenantry maintenance`: 503 for one tenant, without editing its file."""

from dataclasses import replace

import click

from config.settings import read_settings
from core.cli.tenants import known_name
from core.levers import read_levers, write_levers


@click.command("maintenance")
@click.argument("switch", type=click.Choice(["on", "off"]))
@click.argument("name")
@click.option("--message", help="What clients are told.")
def command(switch: str, name: str, message: str | None) -> None:
    """Answer every request of tenant NAME with 503, or serve it again; running workers too."""
    settings = read_settings()
    known_name(settings, name)
    if switch == "off" and message is not None:
        raise click.UsageError("--message goes with `on`.")
    levers = read_levers(settings.data_dir, name)
    maintenance = (message or True) if switch == "on" else False
    write_levers(settings.data_dir, name, replace(levers, maintenance=maintenance))
    click.echo(f"{name}: maintenance {switch}; running workers follow within 2 s.")
