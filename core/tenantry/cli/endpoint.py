"""`tenantry endpoint`: writes the package of a new endpoint."""

import os

import click

from tenantry.cli.new import checked_by
from tenantry.cli.output import examples
from tenantry.endpoints.new_endpoint import check_endpoint_name, create_endpoint
from tenantry.settings import read_settings


@click.group("endpoint", epilog=examples("tenantry endpoint new notes"))
def command() -> None:
    """Write endpoints of your own."""


@command.command("new", epilog=examples("tenantry endpoint new notes"))
@click.argument("name", callback=checked_by(check_endpoint_name))
def new(name: str) -> None:
    """Write an endpoint with a test.

    Write the package NAME to the folder TENANTRY_APP_DIR (default: the current folder). Existing
    files are never overwritten.
    """
    settings = read_settings()
    package = create_endpoint(name, settings.app_dir, (settings.tenants_dir, settings.data_dir))
    folder = os.path.relpath(package)
    click.echo(
        f"{folder}: an endpoint that answers at /{name}/, and its test. Next steps:\n"
        f"  pytest {folder}\n"
        f'  add "{name}" to BLUEPRINTS in a tenant file, or: tenantry new shop --endpoint {name}\n'
        "  tenantry serve"
    )
