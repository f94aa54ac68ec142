"""`tenantry secret`: creates secrets in the data folder."""

import os

import click

from tenantry.cli.output import examples
from tenantry.errors import TenantryError
from tenantry.settings import read_settings
from tenantry.tenants.secrets import create_secret, found_before, is_secret_name, secret_file


@click.group("secret", epilog=examples("tenantry secret new SHOP_SECRET_KEY_2"))
def command() -> None:
    """Create secrets in the data folder."""


@command.command("new", epilog=examples("tenantry secret new SHOP_SECRET_KEY_2"))
@click.argument("name")
def new(name: str) -> None:
    """Create a secret.

    Write 32 random bytes, as hexadecimal digits, to <data>/secrets/NAME, with mode 0600. The
    command does not print the value. Tenant files read the secret with secret("NAME"). An existing
    secret is never overwritten. To rotate a secret key, create a second secret, assign the second
    secret to SECRET_KEY, and move the first secret to SECRET_KEY_FALLBACKS.
    """
    if not is_secret_name(name):
        raise click.UsageError(f"{name!r}: a name has only letters, digits and underscores.")
    data_dir = str(read_settings().data_dir)
    path = secret_file(name, data_dir)
    if os.path.lexists(path):
        raise TenantryError(f"{path} exists, and is never overwritten; choose another name.")
    if place := found_before(name):
        raise TenantryError(
            f"secret({name!r}) returns the value of {place}, not a new one in the data folder; "
            "choose another name."
        )
    create_secret(name, data_dir)
    click.echo(f'{path}: created; read it with secret("{name}").')
