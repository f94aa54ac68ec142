"""Creates a tenant from a capsule: its tenant file, secrets, folder and database.

If a step fails, all parts of the new tenant are removed. The commands `restore` and `clone` call
`restore_tenant`.
"""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import URL

from tenantry.capsules.capsule import Capsule, CapsuleSummary, ProgressCallback
from tenantry.capsules.configuration import render_tenant_file
from tenantry.capsules.restore import capsule_branches, restore_capsule
from tenantry.capsules.staging import RestoreStaging
from tenantry.database.url import database_identity, parse_database_url
from tenantry.errors import TenantryError
from tenantry.grammar import check_tenant_name
from tenantry.observability.redaction import redact_value
from tenantry.settings import HostSettings
from tenantry.tenants.catalogue import scan_tenants
from tenantry.tenants.file import FILE_LIMIT_BYTES, display_path
from tenantry.tenants.loader import LoadedFile
from tenantry.tenants.new_file import (
    check_address_is_free,
    check_folder_is_writable,
    check_name_is_free,
    check_secret_is_used,
    database_variable,
    mentioned_by,
    secret_variable,
    write_tenant_file,
)
from tenantry.tenants.secrets import NEW_SECRET_BYTES, found_before, secret, secret_file
from tenantry.tenants.validation import validate_loaded

_ADDRESSES = frozenset({"HOSTS", "OLD_HOSTS", "OLD_PREFIXES"})
"""The keys with addresses that only one tenant can have."""


@dataclass(frozen=True)
class RestoreRequest:
    """The name, URL prefix and database that the operator wants for a restored tenant."""

    name: str
    prefix: str | None = None
    """The URL prefix of the tenant.

    The default is the prefix in the capsule. If the tenant gets a new name, the default is `/NAME`.
    """
    database: str | None = None
    """A database URL, or the name of a secret that contains a database URL.

    The default is a SQLite file in the data folder.
    """
    database_options: Mapping[str, Any] = field(default_factory=dict)
    """The value of `DATABASE_OPTIONS`, which never comes from a capsule."""
    app_dir: str | None = None
    """The value of `APP_DIR`, which never comes from a capsule; None for the host's."""
    is_replacing: bool = False
    """Whether an existing tenant of this name is replaced."""
    with_templates: bool = False
    """Whether to restore the folders `templates` and `static` of the capsule."""


@dataclass(frozen=True)
class RestoredTenant:
    """What `tenantry restore` reports about a restored tenant."""

    path: Path
    """The path of the tenant file."""
    prefix: str
    database: str
    """The database URL, with a masked password."""
    summary: CapsuleSummary
    lost_tables: tuple[str, ...]
    """Tables that no migration creates and that have no definition in the capsule."""
    missing_keys: tuple[str, ...]
    """Keys that are not in the capsule and that the operator must set in the tenant file."""
    is_behind: bool
    """Whether the capsule is older than the code, so that the database needs
    `tenantry db upgrade`."""


class Replacing(Protocol):
    """The changes that `restore --replace` makes to the existing tenant."""

    def set_aside(self, new_folder: Path, undo: ExitStack) -> None:
        """Move the former tenant aside, immediately before the new folder gets its path."""

    def write_file(self, path: Path, text: str) -> None:
        """Replace the tenant file."""


@dataclass(frozen=True)
class _Database:
    url: URL | None = None
    """The database URL, or None for the default SQLite file."""
    secret_name: str = ""
    """Name of the new secret for a URL with a password; empty if the URL has no password."""
    expression: str = ""
    """The Python expression that the tenant file assigns to `DATABASE_URI`."""


@contextmanager
def new_tenant_staging(
    settings: HostSettings, name: str, *, is_replacing: bool = False
) -> Iterator[RestoreStaging]:
    """Yield the staging folder for a new tenant.

    During the `with` block, no other process can create a tenant of the same name.

    Args:
        settings: The host's settings.
        name: The new tenant's name.
        is_replacing: Whether an existing tenant of this name is replaced.

    Raises:
        TenantryError: The name is invalid or taken, or another process is creating the tenant.
    """
    try:
        check_tenant_name(name)
    except ValueError as error:
        raise TenantryError(f"{name!r}: {error}.") from error
    check_folder_is_writable(settings.tenants_dir)
    with RestoreStaging(settings.data_dir, name) as staging:
        if not is_replacing:
            _check_is_new(settings, name)
        yield staging


def restore_tenant(
    settings: HostSettings,
    capsule: Capsule,
    request: RestoreRequest,
    staging: RestoreStaging,
    *,
    on_progress: ProgressCallback,
    before_commit: Callable[[], None],
    replacing: Replacing | None = None,
) -> RestoredTenant:
    """Create a tenant from a capsule.

    Args:
        settings: The host's settings.
        capsule: A capsule that `read_capsule` has checked.
        request: The name, URL prefix and database that the operator wants.
        staging: The result of `new_tenant_staging` for the tenant's name.
        on_progress: A function that receives the progress of the restore.
        before_commit: A function that is called immediately before the tenant file is written.
            After this call, an interruption could leave a tenant file without data.
        replacing: What sets an existing tenant of this name aside, or None for a new tenant.

    Raises:
        TenantryError: The name, the prefix or the database is taken, or a file or database cannot
            be created. After this error, all parts of the new tenant have been removed.
        SecretError: The request names a secret that does not exist.
    """
    name, metadata = request.name, capsule.metadata
    path, variable = settings.tenants_dir / f"{name}.py", secret_variable(name)
    if replacing is None:
        _check_is_new(settings, name)
    app_dir = request.app_dir or str(settings.app_dir)
    branches = capsule_branches(metadata, app_dir)
    config = _new_config(capsule, request)
    database = _database(settings, request)
    former_key = _former_key(settings, name) if replacing is not None else ""
    key = former_key or secrets.token_hex(NEW_SECRET_BYTES)
    loaded = LoadedFile(name, display_path(path), "", config | {"SECRET_KEY": key})
    tenant = validate_loaded(loaded, settings)
    check_address_is_free(settings, tenant.address, name if replacing is not None else "")
    expressions = {"SECRET_KEY": f"secret({variable!r})"}
    if database.expression:
        expressions["DATABASE_URI"] = database.expression
    text = _tenant_file_text(path, config, expressions, metadata.secret_keys)
    with restore_capsule(
        capsule,
        staging,
        database.url,
        on_progress,
        options=request.database_options,
        app_dir=app_dir,
        with_templates=request.with_templates,
        before_placing=partial(_set_aside, replacing, staging),
    ) as pending:
        if database.secret_name and database.url is not None:
            url_text = database.url.render_as_string(hide_password=False)
            secret_path = _secret_path(settings, database.secret_name)
            if replacing is not None:
                secret_path.unlink(missing_ok=True)  # the folder `.removed` contains a copy
            staging.add_file(secret_path, url_text + "\n")
        if not former_key:
            staging.add_file(_secret_path(settings, variable), key + "\n")
        before_commit()
        with ExitStack() as undo:
            with pending.commit():
                if replacing is not None:
                    replacing.write_file(path, text)
                else:
                    write_tenant_file(path, text)
                    undo.callback(path.unlink, missing_ok=True)
            undo.pop_all()
    url = database.url or tenant.database_url
    return RestoredTenant(
        path=path,
        prefix=tenant.address.text,
        database=redact_value("", url.render_as_string(hide_password=True)),
        summary=pending.summary,
        lost_tables=tuple(
            table.name for table in metadata.tables if table.name not in pending.summary.rows
        ),
        missing_keys=tuple(metadata.secret_keys),
        is_behind=database.url is not None
        and any(not branch.heads <= metadata.target_revisions for branch in branches),
    )


def _set_aside(replacing: Replacing | None, staging: RestoreStaging) -> None:
    if replacing is not None:
        replacing.set_aside(staging.tenant_folder, staging.undo)


def _former_key(settings: HostSettings, name: str) -> str:
    """Return the secret key of a replaced tenant. The new tenant keeps it, so sessions stay valid.

    Raises:
        TenantryError: The secret belongs to another tenant.
    """
    variable = secret_variable(name)
    if not _secret_path(settings, variable).exists() and not found_before(variable):
        return ""
    if owners := [owner for owner in mentioned_by(settings, variable) if owner != name]:
        raise TenantryError(
            f"the secret {variable!r} belongs to tenant {owners[0]!r}; choose another name."
        )
    return secret(variable)


def _check_is_new(settings: HostSettings, name: str) -> None:
    """Check that a tenant can be created under a name.

    Raises:
        TenantryError: A file, folder or secret of that name exists, or `secret()` would return
            another value.
    """
    try:
        check_name_is_free(settings, name)
    except TenantryError as error:
        text = f"{str(error).rstrip('.')}; to replace a tenant, use restore --replace."
        raise TenantryError(text) from error
    check_secret_is_used(secret_variable(name))


def _new_config(capsule: Capsule, request: RestoreRequest) -> dict[str, Any]:
    """Return the configuration in a capsule, with the requested name and URL prefix."""
    config = dict(capsule.config)
    if request.database_options:
        config["DATABASE_OPTIONS"] = dict(request.database_options)
    if request.app_dir is not None:
        config["APP_DIR"] = request.app_dir
    old_name = capsule.metadata.tenant
    is_renamed = request.name != old_name
    if is_renamed:  # the original keeps its host names and former addresses
        config = {key: value for key, value in config.items() if key not in _ADDRESSES}
    if is_renamed and config.get("APP_NAME") == old_name:
        del config["APP_NAME"]
    if request.prefix is not None:
        config["URL_PREFIX"] = request.prefix
    elif is_renamed or not isinstance(config.get("URL_PREFIX"), str):
        config.pop("URL_PREFIX", None)
    return config


def _database(settings: HostSettings, request: RestoreRequest) -> _Database:
    """Return the database that the operator wants.

    Raises:
        SecretError: The operator named a secret that does not exist.
        TenantryError: The URL is invalid, another tenant uses the database, or the name of the new
            secret is taken.
    """
    if request.database is None:
        return _Database()
    is_secret_name = ":" not in request.database
    text = secret(request.database) if is_secret_name else request.database
    try:
        url = parse_database_url(text)
    except ValueError as error:
        raise TenantryError(f"--database: {error}.") from error
    identity = database_identity(text)
    for tenant in scan_tenants(settings).tenants:
        if database_identity(tenant.database_uri.get_secret_value()) == identity:
            raise TenantryError(
                f"--database: this is the database of tenant {tenant.name!r}; choose another."
            )
    if is_secret_name:
        return _Database(url, "", f"secret({request.database!r})")
    if redact_value("", text) == text:  # the URL has no password
        return _Database(url, "", repr(url.render_as_string(hide_password=False)))
    variable = database_variable(request.name)
    path = _secret_path(settings, variable)
    if os.path.lexists(path) and not request.is_replacing:
        raise TenantryError(f"{path} exists, and restore never overwrites a secret; move it away.")
    check_secret_is_used(variable, f"set it to the new URL and use --database {variable}")
    return _Database(url, variable, f"secret({variable!r})")


def _tenant_file_text(
    path: Path, config: dict[str, Any], expressions: dict[str, str], secret_keys: list[str]
) -> str:
    text = render_tenant_file(path.stem, config, expressions=expressions, secret_keys=secret_keys)
    if len(text.encode()) > FILE_LIMIT_BYTES:
        limit = f"{FILE_LIMIT_BYTES >> 20} MiB"
        raise TenantryError(
            f"{path} would be larger than {limit}, the limit of a tenant file; shorten "
            "the values in the original tenant's file."
        )
    return text


def _secret_path(settings: HostSettings, variable: str) -> Path:
    return Path(secret_file(variable, str(settings.data_dir)))
