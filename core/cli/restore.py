"""`tenantry restore`: a capsule becomes a tenant; never over one that is there."""

import os
import secrets
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from sqlalchemy import URL

from config.secrets import create_secret, secret, secret_file
from config.settings import HostSettings, read_settings
from core.capsules import (
    Amounts,
    Capsule,
    Place,
    Tell,
    known_branches,
    literal,
    read_capsule,
    restoring,
    tenant_text,
)
from core.catalogue import validate
from core.cli.backup import as_document, progress, say_left_out, shown
from core.cli.new import check_place, secret_variable, write_new
from core.cli.output import as_json, print_json
from core.cli.tenants import scan
from core.database_url import database_identity, parse_database_url
from core.errors import TenantryError
from core.loader import LoadedFile, display_path
from core.masking import mask
from core.tenant_values import check_name, check_url_prefix


@dataclass(frozen=True)
class Wanted:
    """What an operator says about the tenant that is to be."""

    name: str
    prefix: str | None = None
    database: str | None = None
    """A URL, or the name of the secret that is one."""


@dataclass(frozen=True)
class Restored:
    """What was made."""

    path: Path
    prefix: str
    amounts: Amounts
    missing_keys: tuple[str, ...]
    """Keys that were secret."""
    is_behind: bool
    """Its database is a server's, and older than this code."""


def prefix_option(command: Any) -> Any:
    """Add `--prefix`."""
    text = "Where it is mounted.  [default: as it was, or /NAME for a new name]"
    return click.option("--prefix", help=text)(command)


def database_option(command: Any) -> Any:
    """Add `--database`."""
    text = "An empty database: its URL, or the name of a secret that holds it."
    return click.option("--database", metavar="URL|SECRET", help=text)(command)


@click.command("restore")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--as", "name", metavar="NAME", help="Its name.  [default: as it was]")
@prefix_option
@database_option
@as_json
def command(
    *, file: Path, name: str | None, prefix: str | None, database: str | None, is_json: bool
) -> None:
    """Make a tenant out of the capsule FILE, with a fresh secret.

    All of the capsule is checked before anything is made. Its database is the default one, a
    SQLite file, unless you name an empty one: a tenant that had PostgreSQL needs a new database
    there. Never restores over a tenant, a folder or a database that is there.
    """
    settings = read_settings()
    with progress(is_json) as tell:
        capsule = read_capsule(file, tell)
        wanted = Wanted(name or capsule.contents.tenant, prefix, database)
        restored = restore_as(settings, capsule, wanted, tell)
    report(wanted.name, restored, is_json=is_json)


def report(name: str, restored: Restored, *, is_json: bool) -> None:
    """Print what was made."""
    amounts = restored.amounts
    if is_json:
        document = {"tenant": name, "file": str(restored.path), "prefix": restored.prefix}
        print_json(document | as_document(amounts) | {"missing_keys": restored.missing_keys})
        return
    click.echo(f"{restored.path}: serves {restored.prefix}; {shown(amounts)}.")
    say_left_out(amounts, is_json=is_json)
    for key in restored.missing_keys:
        text = f"{restored.path}: {key!r} is secret and was in no capsule; write it again."
        click.echo(f"tenantry: {text}", err=True)
    if restored.is_behind:
        click.echo(f"tenantry: now run: tenantry db upgrade --tenant {name}", err=True)


def restore_as(settings: HostSettings, capsule: Capsule, wanted: Wanted, tell: Tell) -> Restored:
    """Make a tenant out of a capsule.

    Raises:
        click.UsageError: the name or the prefix is none that a tenant may have.
        TenantryError: there is something already, or it cannot be done; nothing is left of it.
    """
    name, contents = wanted.name, capsule.contents
    path, variable = free_place(settings, name), secret_variable(name)
    data_dir = str(settings.data_dir)
    branches = known_branches(contents)
    config = dict(capsule.config)
    prefix = _prefix(config, wanted, is_renamed=name != contents.tenant)
    if prefix is not None:
        config["URL_PREFIX"] = prefix
    if name != contents.tenant and config.get("APP_NAME") == contents.tenant:
        del config["APP_NAME"]
    url, stored = _database(settings, wanted)
    key = {"SECRET_KEY": secrets.token_hex(32)}
    validate(LoadedFile(name, display_path(path), "", config | key), settings.data_dir)
    check_place(settings, name, prefix)
    own = {"SECRET_KEY": f"secret({variable!r})"}
    if url is not None:
        own["DATABASE_URI"] = _reference(wanted, url, stored)
    with (
        restoring(capsule, Place(name, settings.data_dir, url), tell) as amounts,
        ExitStack() as undo,
    ):
        if stored:
            _store(secret_file(stored, data_dir), url, undo)
        create_secret(variable, data_dir)
        undo.callback(os.unlink, secret_file(variable, data_dir))
        write_new(path, tenant_text(name, config, own, contents.secret_keys))
        undo.pop_all()
    is_behind = url is not None and any(not one.heads <= contents.goal for one in branches)
    keys = tuple(contents.secret_keys)
    return Restored(path, prefix or f"/{name}", amounts, keys, is_behind)


def free_place(settings: HostSettings, name: str) -> Path:
    """Return the path of the tenant file to be.

    Raises:
        click.UsageError: no tenant can have this name.
        TenantryError: something of this name is there.
    """
    try:
        check_name(name)
    except ValueError as error:
        raise click.UsageError(f"{name!r}: {error}.") from error
    path = settings.tenants_dir / f"{name}.py"
    key_file = secret_file(secret_variable(name), str(settings.data_dir))
    for there in (path, settings.data_dir / name, Path(key_file)):
        if os.path.lexists(there):
            text = f"{there} is there already: nothing is restored over a tenant"
            raise TenantryError(f"{text}; choose another name, or move it away.")
    return path


def _prefix(config: dict[str, Any], wanted: Wanted, *, is_renamed: bool) -> str | None:
    """Return the prefix to be, and take the capsule's out of the configuration."""
    said = config.pop("URL_PREFIX", None)
    if wanted.prefix is None:
        return None if is_renamed or not isinstance(said, str) else said
    try:
        return check_url_prefix(wanted.prefix)
    except ValueError as error:
        raise click.UsageError(f"--prefix {wanted.prefix!r}: {error}.") from error


def _database(settings: HostSettings, wanted: Wanted) -> tuple[URL | None, str]:
    """Return the database that is asked for, and the name of the secret to keep its URL in.

    Raises:
        click.UsageError: the URL is none.
        SecretError: there is no such secret.
        TenantryError: another tenant has this database, or the secret is there.
    """
    if wanted.database is None:
        return None, ""
    is_url = ":" in wanted.database
    text = wanted.database if is_url else secret(wanted.database)
    try:
        url = parse_database_url(text)
    except ValueError as error:
        raise click.UsageError(f"--database: {error}.") from error
    identity = database_identity(text)
    for tenant in scan(settings).tenants:
        if database_identity(tenant.database_uri.get_secret_value()) == identity:
            raise TenantryError(f"this is the database of tenant {tenant.name!r}; name another.")
    stored = secret_variable(wanted.name).replace("_SECRET_KEY", "_DATABASE_URI")
    if not is_url or mask("", text) == text:
        return url, ""
    if os.path.lexists(there := secret_file(stored, str(settings.data_dir))):
        raise TenantryError(f"{there} is there already; move it away.")
    return url, stored


def _reference(wanted: Wanted, url: URL, stored: str) -> str:
    """Return what stands in the tenant file: no password does."""
    if stored:
        return f"secret({stored!r})"
    if wanted.database is not None and ":" not in wanted.database:
        return f"secret({wanted.database!r})"
    return literal(url.render_as_string(hide_password=False))


def _store(path: str, url: URL | None, undo: ExitStack) -> None:
    """Keep a URL with a password where its owner alone may read it."""
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        undo.callback(os.unlink, path)
        file.write("" if url is None else url.render_as_string(hide_password=False) + "\n")
