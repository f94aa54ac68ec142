"""`tenantry new`: a tenant file and its secret."""

import os
from pathlib import Path

import click

from config.secrets import create_secret, secret_file
from config.settings import read_settings
from core.endpoints import find_endpoint
from core.errors import EndpointError, TenantryError
from core.tenant import NAME, PREFIX, RESERVED_SEGMENTS

_FILE = '''\
"""Tenant {name}."""

from config import secret

APP_NAME = "{name}"
{prefix}SECRET_KEY = secret("{variable}")
BLUEPRINTS = [{endpoints}]
'''


def _check_name(_: click.Context, __: click.Parameter, name: str) -> str:
    if not NAME.fullmatch(name):
        raise click.BadParameter(
            f"{name!r}: a name begins with a-z and has a-z, 0-9, _ and -, at most 63."
        )
    return name


def _check_prefix(_: click.Context, __: click.Parameter, prefix: str | None) -> str | None:
    if prefix is not None and (
        not PREFIX.fullmatch(prefix) or prefix.split("/")[1] in RESERVED_SEGMENTS
    ):
        raise click.BadParameter(f"{prefix!r}: write it like /acme or /clients/acme.")
    return prefix


def _check_endpoints(
    _: click.Context, __: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    for name in names:
        try:
            find_endpoint(name)
        except EndpointError as error:
            raise click.BadParameter(str(error)) from error
    return names


@click.command("new")
@click.argument("name", callback=_check_name)
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    default=["landing"],
    show_default=True,
    callback=_check_endpoints,
    help="Enable it; may be given several times.",
)
@click.option("--prefix", callback=_check_prefix, help="Where it is mounted.  [default: /NAME]")
def command(name: str, endpoints: tuple[str, ...], prefix: str | None) -> None:
    """Write the file of a new tenant NAME, and a fresh secret for it; never overwrites."""
    settings = read_settings()
    data_dir, variable = str(settings.data_dir), secret_variable(name)
    path, key_file = settings.tenants_dir / f"{name}.py", Path(secret_file(variable, data_dir))
    for there in (path, key_file):
        if os.path.lexists(there):
            raise TenantryError(f"{there} is there already; choose another name, or remove it.")
    line = "" if prefix is None else f'URL_PREFIX = "{prefix}"\n'
    listed = ", ".join(f'"{endpoint}"' for endpoint in endpoints)
    text = _FILE.format(name=name, prefix=line, variable=variable, endpoints=listed)
    create_secret(variable, data_dir)
    write_new(path, text)
    click.echo(f"{path}: serves {prefix or '/' + name}; its secret is in {key_file}.")


def secret_variable(name: str) -> str:
    """Return the name of a tenant's secret: `acme-shop` has `ACME_SHOP_SECRET_KEY`."""
    return f"{name.upper().replace('-', '_')}_SECRET_KEY"


def write_new(path: Path, text: str) -> None:
    """Write a file that is whole or not there, and never replace one.

    Raises:
        TenantryError: it is there, or the folder cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.chmod(0o644)
        os.link(unfinished, path)
    except OSError as error:
        raise TenantryError(f"cannot write {path}: {error.strerror}.") from error
    finally:
        unfinished.unlink(missing_ok=True)
