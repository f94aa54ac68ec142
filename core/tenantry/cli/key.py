"""`tenantry key`: a new key for one client of a tenant."""

import click

from tenantry.cli.output import as_json, print_json
from tenantry.settings import read_settings
from tenantry.tenants.clients import check_client_name, hash_client_key, new_client_key
from tenantry.tenants.lookup import check_tenant_exists


def _check_client(_: click.Context, __: click.Parameter, name: str) -> str:
    try:
        return check_client_name(name)
    except ValueError as error:
        raise click.BadParameter(f"{name!r}: {error}.") from error


@click.command("key")
@click.argument("name")
@click.argument("client", callback=_check_client)
@as_json
def command(name: str, client: str, is_json: bool) -> None:
    """Make a key for CLIENT of tenant NAME; print it once, and the line for its file.

    Nothing is written: the key goes to the client, and its hash into the tenant file. To replace a
    key without an interruption, write the old hash and the new one as a list, and remove the old
    one when the client has changed.
    """
    settings = read_settings()
    check_tenant_exists(settings, name)
    key = new_client_key()
    path, line = settings.tenants_dir / f"{name}.py", f'"{client}": "{hash_client_key(key)}",'
    if is_json:
        print_json({"client": client, "key": key, "file": str(path), "line": line})
        return
    click.echo(f"The key of {client!r}, shown this once; the client sends it as Bearer token:")
    click.echo(f"{key}\n")
    click.echo(f"The line for CLIENTS = {{…}} in {path}:")
    click.echo(f"    {line}")
