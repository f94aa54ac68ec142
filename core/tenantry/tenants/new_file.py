"""Checks that the name, the prefix and the secrets of a new tenant are free, and writes its file.

The commands `new`, `restore` and `clone` use this module. No function replaces an existing file.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from tenantry.errors import Problem, TenantryError
from tenantry.grammar import RESERVED_TENANT_NAMES, TENANT_NAME, are_nested, check_url_prefix
from tenantry.settings import HostSettings
from tenantry.tenants.address import Address, display
from tenantry.tenants.address_claims import AddressClaims
from tenantry.tenants.file import FileContent, display_path, list_tenant_files, read_content
from tenantry.tenants.loader import Loader
from tenantry.tenants.secrets import create_secret, found_before, secret_file
from tenantry.tenants.validation import DisabledTenant, pattern_hosts, validate_file

_TEMPLATE = '''\
"""Tenant {name}."""

from tenantry import secret

APP_NAME = "{name}"
{prefix}SECRET_KEY = secret("{variable}")
{code}'''


def create_tenant(
    settings: HostSettings,
    name: str,
    *,
    endpoints: Sequence[str] = (),
    app: str | None = None,
    app_dir: Path | None = None,
    prefix: str | None = None,
) -> tuple[Path, Path]:
    """Write a tenant file and a new secret key, and return the paths of the two files.

    Args:
        settings: the host's settings.
        name: a valid tenant name.
        endpoints: names for `BLUEPRINTS`.
        app: a valid value of `APP`.
        app_dir: the value of `APP_DIR`; None for the host's setting.
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
    check_address_is_free(settings, new_address(settings, name, prefix))
    keys = {"APP": app, "APP_DIR": None if app_dir is None else str(app_dir)}
    text = _tenant_text(name, prefix, keys, endpoints)
    create_secret(variable, data_dir)
    try:
        write_tenant_file(path, text)
    except BaseException:
        secret_path.unlink(missing_ok=True)
        raise
    return path, secret_path


def _tenant_text(
    name: str, prefix: str | None, keys: Mapping[str, str | None], endpoints: Sequence[str]
) -> str:
    code = "".join(f"{key} = {_quoted(text)}\n" for key, text in keys.items() if text is not None)
    if endpoints:
        code += f"BLUEPRINTS = [{', '.join(map(_quoted, endpoints))}]\n"
    return _TEMPLATE.format(
        name=name,
        prefix="" if prefix is None else f"URL_PREFIX = {_quoted(prefix)}\n",
        variable=secret_variable(name),
        code=code,
    )


def _quoted(text: str) -> str:
    """Return a Python string with double quotes, if the text allows them."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else repr(text)


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


def new_address(settings: HostSettings, name: str, prefix: str | None) -> Address:
    """Return the address of a new tenant with this URL prefix, or with the default address.

    Raises:
        TenantryError: the tenant's name cannot be part of the default address.
    """
    if prefix is not None:
        return Address(prefix)
    try:
        hosts = pattern_hosts(name, {}, settings.host_pattern)
        return Address("/", tuple(hosts)) if hosts else Address(check_url_prefix(f"/{name}"))
    except ValueError as error:
        raise TenantryError(f"{str(error).rstrip('.')}, with --prefix.") from error


def check_address_is_free(settings: HostSettings, address: Address, replaced: str = "") -> None:
    """Check that no tenant has the address or a part of it, or an overlapping prefix.

    Args:
        settings: the host's settings.
        address: the address of the new tenant.
        replaced: the name of a tenant whose address becomes free.

    Raises:
        TenantryError: a tenant has an overlapping address. The message names the tenant.
    """
    claims = AddressClaims()
    for owner, taken in _possible_conflicts(settings, address):
        if owner != replaced:
            claims.add(owner, taken)
    for owner, pair, other in claims.overlaps("", address):
        place, taken_place = display(pair), display(other)
        if pair[0]:
            text = f"{place} overlaps {taken_place}, an address of tenant {owner!r}"
            raise TenantryError(f"{text}; choose another name with --as, to get another address.")
        if pair == other:
            text = f"{place} is the prefix of tenant {owner!r}"
            raise TenantryError(f"{text}; choose another with --prefix.")
        text = f"{place} and {taken_place}, the prefix of tenant {owner!r}, overlap"
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


def _possible_conflicts(settings: HostSettings, address: Address) -> Iterator[tuple[str, Address]]:
    """Yield the names and addresses of tenants that may have an overlapping address."""
    try:
        contents = [read_content(path) for path in list_tenant_files(settings.tenants_dir)]
    except OSError:
        return  # without a tenants folder, there are no tenants
    with Loader(data_dir=settings.data_dir) as loader:
        for content in contents:
            if _may_overlap(content, address):
                result = validate_file(content, settings, loader)
                if not isinstance(result, DisabledTenant) and result.address is not None:
                    yield result.name, result.address


def _may_overlap(content: FileContent, address: Address) -> bool:
    """Whether a tenant file may set an address that overlaps `address`."""
    if any(word in content.source for word in (b"PREFIX", b"HOSTS", b"import *")):
        return True
    default = f"/{content.path.stem}"
    return any(are_nested(prefix or "/", default) for _, prefix in address.claims())
