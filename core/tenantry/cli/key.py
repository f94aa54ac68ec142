"""`tenantry key`: creates a key for a client of a tenant."""

import click

from tenantry.cli.completion import complete_tenant
from tenantry.cli.output import examples, json_option, print_json
from tenantry.settings import read_settings
from tenantry.tenants.catalogue import check_tenant_exists
from tenantry.tenants.clients import check_client_name, hash_client_key, new_client_key


def _check_client(_: click.Context, __: click.Parameter, name: str) -> str:
    try:
        return check_client_name(name)
    except ValueError as error:
        raise click.BadParameter(f"{name!r}: {error}.") from error


@click.command("key", epilog=examples("tenantry key shop mobile"))
@click.argument("name", shell_complete=complete_tenant)
@click.argument("client", callback=_check_client)
@json_option
def command(name: str, client: str, is_json: bool) -> None:
    """Create a client key.

    Print a new key for CLIENT of tenant NAME, and a line for CLIENTS in the tenant file. No file is
    changed. Give the key to the client, and add the line to the tenant file. To replace a key
    without an interruption, list both hashes, and remove the old hash when the client uses the new
    key.
    """
    settings = read_settings()
    check_tenant_exists(settings, name)
    key = new_client_key()
    path, line = settings.tenants_dir / f"{name}.py", f'"{client}": "{hash_client_key(key)}",'
    if is_json:
        print_json({"client": client, "key": key, "file": str(path), "line": line})
        return
    click.echo(f"The key of {client!r}, which is shown only once. Send the key as a bearer token:")
    click.echo(f"{key}\n")
    click.echo(f"Add this line to CLIENTS = {{…}} in {path}:")
    click.echo(f"    {line}")
