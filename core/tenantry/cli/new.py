"""`tenantry new`: creates a tenant file and the secret of the tenant."""

from collections.abc import Callable

import click

from tenantry.cli.leftovers import print_leftovers
from tenantry.cli.output import examples
from tenantry.endpoints.finding import find_endpoint
from tenantry.errors import EndpointError, TenantryError
from tenantry.grammar import check_tenant_name, check_url_prefix
from tenantry.settings import read_settings
from tenantry.tenants.new_file import create_tenant, new_address

Callback = Callable[[click.Context, click.Parameter, str | None], str | None]


def checked_by(check: Callable[[str], str]) -> Callback:
    """Return a click callback that checks a value with the function `check`."""

    def callback(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
        try:
            return None if value is None else check(value)
        except ValueError as error:
            raise click.BadParameter(f"{value!r}: {error}.") from error

    return callback


def _check_endpoints(
    _: click.Context, __: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    for name in names:
        if names.count(name) > 1:
            raise click.BadParameter(f"{name!r} is given more than once; name each endpoint once.")
        try:
            find_endpoint(name, str(read_settings().app_dir))
        except EndpointError as error:
            raise click.BadParameter(str(error)) from error
    return names


@click.command(
    "new",
    epilog=examples(
        "tenantry new shop",
        "tenantry new shop --endpoint landing --endpoint images --prefix /clients/shop",
    ),
)
@click.argument("name", callback=checked_by(check_tenant_name))
@click.option(
    "--endpoint", "endpoints", metavar="E", multiple=True, default=["landing"], show_default=True,
    callback=_check_endpoints, help="Endpoint to enable. Repeatable.",
)  # fmt: skip
@click.option(
    "--prefix", metavar="P", callback=checked_by(check_url_prefix),
    help="URL prefix, such as /clients/shop.  "
    "[default: /NAME, or a host name with TENANTRY_HOST_PATTERN]",
)  # fmt: skip
def command(name: str, endpoints: tuple[str, ...], prefix: str | None) -> None:
    """Write a tenant file and its secret.

    Write NAME.py to the tenants folder, and a new secret to <data>/secrets, with mode 0600.
    Existing files and secrets are never overwritten.
    """
    settings = read_settings()
    try:
        address = new_address(settings, name, prefix)
    except TenantryError as error:
        raise click.UsageError(str(error)) from error
    path, secret_path = create_tenant(settings, name, endpoints=endpoints, prefix=prefix)
    click.echo(f"{path}: answers at {address.text}; the secret is in {secret_path}.")
    print_leftovers(settings)
