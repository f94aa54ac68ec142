"""`tenantry restore`: a capsule becomes a tenant; never over one that is there."""

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from sqlalchemy import URL

from tenantry.capsules import (
    Capsule,
    CapsuleSummary,
    ProgressCallback,
    RestoreStaging,
    capsule_branches,
    python_literal,
    read_capsule,
    render_tenant_file,
    restore_capsule,
)
from tenantry.cli.backup import (
    as_document,
    ending_in_order,
    progress,
    say_left_out,
    shown,
    to_the_end,
)
from tenantry.cli.new import check_counts, check_place, secret_variable, write_new
from tenantry.cli.output import as_json, print_json
from tenantry.database.url import database_identity, parse_database_url
from tenantry.errors import TenantryError
from tenantry.grammar import check_tenant_name, check_url_prefix
from tenantry.observability.redaction import redact_value
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.catalogue import validate_loaded
from tenantry.tenants.file import FILE_LIMIT_BYTES, display_path
from tenantry.tenants.loader import LoadedFile
from tenantry.tenants.lookup import scan
from tenantry.tenants.secrets import NEW_SECRET_BYTES, secret, secret_file


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
    database: str
    """Its URL, without the password."""
    summary: CapsuleSummary
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
    with ending_in_order(), progress(is_json) as tell:
        capsule = read_capsule(file, tell)
        wanted = Wanted(name or capsule.metadata.tenant, prefix, database)
        with workplace(settings, wanted.name) as place:
            restored = restore_as(settings, capsule, wanted, place, tell)
    report(wanted.name, restored, is_json=is_json)


def report(name: str, restored: Restored, *, is_json: bool) -> None:
    """Print what was made."""
    amounts = restored.summary
    if is_json:
        document = {"tenant": name, "file": str(restored.path), "prefix": restored.prefix}
        document["database"] = restored.database
        print_json(document | as_document(amounts) | {"missing_keys": restored.missing_keys})
        return
    click.echo(f"{restored.path}: serves {restored.prefix}; {shown(amounts)}.")
    click.echo(f"its database: {restored.database}")
    say_left_out(amounts, is_json=is_json)
    for key in restored.missing_keys:
        text = f"{restored.path}: {key!r} is secret and was in no capsule; write it again."
        click.echo(f"tenantry: {text}", err=True)
    if restored.is_behind:
        click.echo(f"tenantry: now run: tenantry db upgrade --tenant {name}", err=True)


def restore_as(
    settings: HostSettings,
    capsule: Capsule,
    wanted: Wanted,
    place: RestoreStaging,
    tell: ProgressCallback,
) -> Restored:
    """Make a tenant out of a capsule.

    Args:
        settings: the host's.
        capsule: what was read.
        wanted: what the operator says.
        place: what `workplace` has yielded for its name.
        tell: is told how far it is.

    For use inside `ending_in_order`: from when the tenant file is written signals are too late.

    Raises:
        click.UsageError: the name or the prefix is none that a tenant may have.
        TenantryError: there is something already, or it cannot be done; nothing is left of it.
    """
    name, contents = wanted.name, capsule.metadata
    path, variable = free_path(settings, name), secret_variable(name)
    branches = capsule_branches(contents)
    config = dict(capsule.config)
    prefix = _prefix(config, wanted, is_renamed=name != contents.tenant)
    if prefix is not None:
        config["URL_PREFIX"] = prefix
    if name != contents.tenant and config.get("APP_NAME") == contents.tenant:
        del config["APP_NAME"]
    url, stored = _database(settings, wanted)
    key = secrets.token_hex(NEW_SECRET_BYTES)
    found = LoadedFile(name, display_path(path), "", config | {"SECRET_KEY": key})
    default = validate_loaded(found, settings.data_dir).database_url
    check_place(settings, name, prefix)
    own = {"SECRET_KEY": f"secret({variable!r})"}
    if url is not None:
        own["DATABASE_URI"] = _reference(wanted, url, stored)
    text = _tenant_text(path, config, own, contents.secret_keys)
    with restore_capsule(capsule, place, url, tell) as made:
        if stored and url is not None:
            made.add(_file(settings, stored), url.render_as_string(hide_password=False) + "\n")
        made.add(_file(settings, variable), key + "\n")
        to_the_end()  # or the tenant file could be there, and nothing that it is about
        with ExitStack() as written:
            with made.commit():
                write_new(path, text)
                written.callback(path.unlink, missing_ok=True)
            written.pop_all()
    is_behind = url is not None and any(
        not one.heads <= contents.target_revisions for one in branches
    )
    keys = tuple(contents.secret_keys)
    database = redact_value("", (url or default).render_as_string(hide_password=True))
    return Restored(path, prefix or f"/{name}", database, made.summary, keys, is_behind)


def _tenant_text(
    path: Path, config: dict[str, Any], own: dict[str, str], secret_keys: list[str]
) -> str:
    """Return the text of the tenant file.

    Raises:
        TenantryError: it would be larger than one may be.
    """
    text = render_tenant_file(path.stem, config, own, secret_keys)
    if len(text.encode()) > FILE_LIMIT_BYTES:
        limit = f"{FILE_LIMIT_BYTES >> 20} MiB"
        raise TenantryError(f"{path} would be over {limit}, and no tenant file may be.")
    return text


def _file(settings: HostSettings, variable: str) -> Path:
    return Path(secret_file(variable, str(settings.data_dir)))


@contextmanager
def workplace(settings: HostSettings, name: str) -> Iterator[RestoreStaging]:
    """Yield where a tenant is made that is not there yet; nobody else makes it meanwhile.

    Raises:
        click.UsageError: no tenant can have this name.
        TenantryError: something of this name is there, or another process makes it.
    """
    try:
        check_tenant_name(name)
    except ValueError as error:
        raise click.UsageError(f"{name!r}: {error}.") from error
    with RestoreStaging(settings.data_dir, name) as place:
        free_path(settings, name)
        yield place


def free_path(settings: HostSettings, name: str) -> Path:
    """Return the path of the tenant file to be.

    Raises:
        TenantryError: something of this name is there, or its secret would not be a fresh one.
    """
    path = settings.tenants_dir / f"{name}.py"
    for there in (path, settings.data_dir / name, _file(settings, secret_variable(name))):
        if os.path.lexists(there):
            text = f"{there} is there already: nothing is restored over a tenant"
            raise TenantryError(f"{text}; choose another name, or move it away.")
    check_counts(secret_variable(name))
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
        TenantryError: another tenant has this database, or the secret is there, or one elsewhere
            would count instead of it.
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
    if not is_url or redact_value("", text) == text:
        return url, ""
    if os.path.lexists(there := secret_file(stored, str(settings.data_dir))):
        raise TenantryError(f"{there} is there already; move it away.")
    check_counts(stored, f"give it the new URL and say --database {stored}")
    return url, stored


def _reference(wanted: Wanted, url: URL, stored: str) -> str:
    """Return what stands in the tenant file: no password does."""
    if stored:
        return f"secret({stored!r})"
    if wanted.database is not None and ":" not in wanted.database:
        return f"secret({wanted.database!r})"
    return python_literal(url.render_as_string(hide_password=False))
