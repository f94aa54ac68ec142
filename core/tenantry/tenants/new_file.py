"""Checks that the name, the prefix and the secrets of a new tenant are free, and writes its file.

The commands `new`, `restore` and `clone` use this module. No function replaces an existing file.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from tenantry.errors import Problem, TenantryError
from tenantry.grammar import RESERVED_TENANT_NAMES, TENANT_NAME, are_nested
from tenantry.settings import HostSettings
from tenantry.tenants.file import FileContent, display_path, list_tenant_files, read_content
from tenantry.tenants.loader import Loader
from tenantry.tenants.model import Tenant
from tenantry.tenants.secrets import create_secret, found_before, secret_file
from tenantry.tenants.validation import DisabledTenant, validate_file

_TEMPLATE = '''\
"""Tenant {name}."""

from tenantry import secret

APP_NAME = "{name}"
{prefix}SECRET_KEY = secret("{variable}")
BLUEPRINTS = [{endpoints}]
'''


def create_tenant(
    settings: HostSettings, name: str, endpoints: Sequence[str], prefix: str | None
) -> tuple[Path, Path]:
    """Write a tenant file and a new secret key, and return the paths of the two files.

    Args:
        settings: the host's settings.
        name: a valid tenant name.
        endpoints: names for `BLUEPRINTS`.
        prefix: a valid URL prefix; None for `/NAME`.

    Raises:
        TenantryError: the tenant file, the secret or the prefix already exists, or a file cannot be
            written.
    """
    data_dir, variable = str(settings.data_dir), secret_variable(name)
    path, secret_path = settings.tenants_dir / f"{name}.py", Path(secret_file(variable, data_dir))
    check_folder_is_writable(settings.tenants_dir)
    check_name_is_free(settings, name)
    check_secret_is_used(variable)
    check_prefix_is_free(settings, prefix or f"/{name}")
    text = _TEMPLATE.format(
        name=name,
        prefix="" if prefix is None else f'URL_PREFIX = "{prefix}"\n',
        variable=variable,
        endpoints=", ".join(f'"{endpoint}"' for endpoint in endpoints),
    )
    create_secret(variable, data_dir)
    try:
        write_tenant_file(path, text)
    except BaseException:
        secret_path.unlink(missing_ok=True)
        raise
    return path, secret_path


def check_name_is_free(settings: HostSettings, name: str) -> None:
    """Check that a name is free: no tenant file, no data and no secret has the name.

    Each command that an error message suggests affects only this name, and no other tenant.

    Raises:
        TenantryError: a file, data or a secret with this name exists.
    """
    path, folder = settings.tenants_dir / f"{name}.py", settings.data_dir / name
    if os.path.lexists(path):
        raise TenantryError(f"{path} exists; choose another name.")
    if os.path.lexists(folder):
        raise TenantryError(f"{describe_leftover(settings, name)} (or choose another name)")
    for variable in (secret_variable(name), database_variable(name)):
        secret_path = Path(secret_file(variable, str(settings.data_dir)))
        if not os.path.lexists(secret_path):
            continue
        if owners := mentioned_by(settings, variable):
            raise TenantryError(
                f"{secret_path} is a secret of tenant {owners[0]!r}; choose another name."
            )
        raise TenantryError(
            f"{secret_path} exists, but no tenant file mentions it; choose another name, or set it "
            f"aside with: tenantry remove {name}"
        )


def describe_leftover(settings: HostSettings, name: str) -> Problem:
    """Return a note about a folder below `<data>` that no tenant file claims."""
    path = display_path(settings.tenants_dir / f"{name}.py")
    return Problem(
        display_path(settings.data_dir / name),
        f"data without a tenant, because there is no file {path}; write the file again, or set the "
        f"data aside with: tenantry remove {name}",
    )


def find_leftovers(settings: HostSettings) -> list[str]:
    """Return the names of the folders below `<data>` that no tenant file claims, sorted.

    An empty folder is not part of the result.
    """
    try:
        claimed = {path.stem for path in list_tenant_files(settings.tenants_dir)}
        names = {entry.name for entry in settings.data_dir.iterdir()} - claimed
    except OSError:
        return []  # without a tenants folder, the owners of folders are unknown
    return sorted(
        name
        for name in names
        if TENANT_NAME.fullmatch(name)
        and name not in RESERVED_TENANT_NAMES
        and _has_entries(settings.data_dir / name)
    )


def _has_entries(folder: Path) -> bool:
    with suppress(OSError):
        return folder.is_dir() and any(folder.iterdir())
    return False


def mentioned_by(settings: HostSettings, variable: str) -> list[str]:
    """Return the names of the tenants whose files contain the name of a secret."""
    word = re.compile(rb"\b" + variable.encode() + rb"\b")
    with suppress(OSError):
        paths = list_tenant_files(settings.tenants_dir)
        return [path.stem for path in paths if word.search(read_content(path).source)]
    return []


def check_folder_is_writable(folder: Path) -> None:
    """Check that a file can be created in the tenants folder.

    Raises:
        TenantryError: the folder is not writable.
    """
    while not folder.exists():
        folder = folder.parent
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise TenantryError(f"cannot write into {folder}: {error.strerror}.") from error


def secret_variable(name: str) -> str:
    """Return the name of a tenant's secret key: `ACME_SHOP_SECRET_KEY` for `acme-shop`."""
    return f"{name.upper().replace('-', '_')}_SECRET_KEY"


def database_variable(name: str) -> str:
    """Return the name of the secret that contains a tenant's database URL."""
    return secret_variable(name).removesuffix("_SECRET_KEY") + "_DATABASE_URI"


def check_secret_is_used(variable: str, remedy: str = "choose another name") -> None:
    """Check that `secret` will find a new secret in `<data>/secrets`.

    Raises:
        TenantryError: another source, which `secret` reads first, already has a value.
    """
    if place := found_before(variable):
        raise TenantryError(
            f"secret({variable!r}) returns the value of {place}, not the new one in the data "
            f"folder; remove it here and where the tenants are served, or {remedy}."
        )


def check_prefix_is_free(settings: HostSettings, prefix: str, replaced: str = "") -> None:
    """Check that no tenant has the given prefix, or a prefix above or below it.

    Args:
        settings: the host's settings.
        prefix: the prefix of the new tenant.
        replaced: the name of a tenant whose prefix becomes free.

    Raises:
        TenantryError: a tenant has an overlapping prefix. The message names the tenant.
    """
    for owner, taken in _possible_conflicts(settings, prefix):
        if owner == replaced:
            continue
        if prefix == taken:
            text = f"{prefix} is the prefix of tenant {owner!r}"
            raise TenantryError(f"{text}; choose another with --prefix.")
        if are_nested(prefix, taken):
            text = f"{prefix} and {taken}, the prefix of tenant {owner!r}, overlap"
            raise TenantryError(f"{text}; choose another with --prefix.")


def write_tenant_file(path: Path, text: str) -> None:
    """Write a new file completely or not at all.

    Raises:
        TenantryError: the file already exists, or the folder is not writable.
    """
    unfinished = path.with_name(f".{path.name}.new")
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
            path.parent.chmod(0o755)  # the host can run as a different user than this command
        unfinished.write_text(text, encoding="utf-8")
        unfinished.chmod(0o644)
        os.link(unfinished, path)
    except OSError as error:
        raise TenantryError(f"cannot write {path}: {error.strerror}.") from error
    finally:
        # If the unfinished file remains, the host ignores it, because its name begins with a dot.
        with suppress(OSError):
            unfinished.unlink()


def _possible_conflicts(settings: HostSettings, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield the names and prefixes of tenants that may have an overlapping prefix."""
    try:
        contents = [read_content(path) for path in list_tenant_files(settings.tenants_dir)]
    except OSError:
        return  # without a tenants folder, there are no tenants
    with Loader(data_dir=settings.data_dir) as loader:
        for content in contents:
            if _may_set_prefix(content) or are_nested(prefix, f"/{content.path.stem}"):
                result = validate_file(content, settings, loader)
                if isinstance(result, Tenant):
                    yield result.name, result.url_prefix
                elif not isinstance(result, DisabledTenant) and result.prefix is not None:
                    yield result.name, result.prefix


def _may_set_prefix(content: FileContent) -> bool:
    """Whether the text of a tenant file may set `URL_PREFIX`."""
    return b"URL_PREFIX" in content.source or b"import *" in content.source
