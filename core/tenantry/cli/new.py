"""`tenantry new`: a tenant file and its secret."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import click

from tenantry.endpoints.loading import find_endpoint
from tenantry.errors import EndpointError, TenantryError
from tenantry.grammar import are_nested, check_tenant_name, check_url_prefix
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.catalogue import DisabledTenant, validate_file
from tenantry.tenants.file import FileContent, list_tenant_files, read_content
from tenantry.tenants.loader import Loader
from tenantry.tenants.model import Tenant
from tenantry.tenants.secrets import create_secret, found_before, secret_file

_FILE = '''\
"""Tenant {name}."""

from tenantry.tenants.secrets import secret

APP_NAME = "{name}"
{prefix}SECRET_KEY = secret("{variable}")
BLUEPRINTS = [{endpoints}]
'''


Value = str | None
Callback = Callable[[click.Context, click.Parameter, Value], Value]


def _checked_by(check: Callable[[str], str]) -> Callback:
    """Return click's callback for a rule of tenant files."""

    def callback(_: click.Context, __: click.Parameter, value: Value) -> Value:
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
            raise click.BadParameter(f"{name!r} is given more than once; keep one.")
        try:
            find_endpoint(name)
        except EndpointError as error:
            raise click.BadParameter(str(error)) from error
    return names


@click.command("new")
@click.argument("name", callback=_checked_by(check_tenant_name))
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    default=["landing"],
    show_default=True,
    callback=_check_endpoints,
    help="Enable it; may be given several times.",
)
@click.option(
    "--prefix",
    callback=_checked_by(check_url_prefix),
    help="Where it is mounted.  [default: /NAME]",
)
def command(name: str, endpoints: tuple[str, ...], prefix: str | None) -> None:
    """Write the file of a new tenant NAME, and a fresh secret for it; never overwrites."""
    settings = read_settings()
    data_dir, variable = str(settings.data_dir), secret_variable(name)
    path, key_file = settings.tenants_dir / f"{name}.py", Path(secret_file(variable, data_dir))
    for there in (path, key_file):
        if os.path.lexists(there):
            raise TenantryError(f"{there} is there already; choose another name, or remove it.")
    check_counts(variable)
    check_place(settings, name, prefix)
    line = "" if prefix is None else f'URL_PREFIX = "{prefix}"\n'
    listed = ", ".join(f'"{endpoint}"' for endpoint in endpoints)
    text = _FILE.format(name=name, prefix=line, variable=variable, endpoints=listed)
    create_secret(variable, data_dir)
    write_new(path, text)
    click.echo(f"{path}: serves {prefix or '/' + name}; its secret is in {key_file}.")


def check_place(settings: HostSettings, name: str, prefix: str | None) -> None:
    """Check that a new tenant may be mounted there; the default prefix when None.

    Raises:
        click.UsageError: its name makes no good prefix.
        TenantryError: the prefix is another tenant's, inside one or above one.
    """
    if prefix is None:
        try:
            prefix = check_url_prefix(f"/{name}")
        except ValueError as error:
            raise click.UsageError(f"{error}, with --prefix.") from error
    for owner, taken in _prefixes_near(settings, prefix):
        if are_nested(prefix, taken):
            how = "is the prefix" if prefix == taken else f"and {taken}, the prefix"
            end = "" if prefix == taken else ", lie inside one another"
            text = f"{prefix} {how} of tenant {owner!r}{end}; choose another with --prefix."
            raise TenantryError(text)


def _prefixes_near(settings: HostSettings, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield names and prefixes of the tenants that might be near; runs few files, if any."""
    try:
        contents = [read_content(path) for path in list_tenant_files(settings.tenants_dir)]
    except OSError:
        return  # no folder, no tenants
    with Loader(data_dir=settings.data_dir) as loader:
        for content in contents:
            if _says_its_prefix(content) or are_nested(prefix, f"/{content.path.stem}"):
                verdict = validate_file(content, settings.data_dir, loader)
                if isinstance(verdict, Tenant):
                    yield verdict.name, verdict.url_prefix
                elif not isinstance(verdict, DisabledTenant) and verdict.prefix is not None:
                    yield verdict.name, verdict.prefix


def _says_its_prefix(content: FileContent) -> bool:
    """Whether a file may set another prefix than its name's; running it would take longer."""
    return b"URL_PREFIX" in content.source or b"import *" in content.source


def secret_variable(name: str) -> str:
    """Return the name of a tenant's secret: `acme-shop` has `ACME_SHOP_SECRET_KEY`."""
    return f"{name.upper().replace('-', '_')}_SECRET_KEY"


def check_counts(variable: str, remedy: str = "choose another name") -> None:
    """Check that what is written into `<data>/secrets` is what the tenant file will get.

    Raises:
        TenantryError: a value elsewhere comes first.
    """
    if place := found_before(variable):
        text = f"secret({variable!r}) is taken from {place}, before what would be written now"
        raise TenantryError(f"{text}; remove it, here and where tenants serve, or {remedy}.")


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
        with suppress(OSError):  # it is written all the same
            unfinished.unlink()
