"""Reads tenant files for tests, with throw-away values instead of missing secrets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenantry.errors import TenantFileError, TenantryError
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.catalogue import check_tenant_exists, tenant_files
from tenantry.tenants.file import read_content
from tenantry.tenants.loader import LoadedFile, Loader
from tenantry.tenants.validation import load_content

DEFAULT_NAMES = ("acme", "globex")
"""The names of tenants that have no file."""


def tenant_names() -> list[str]:
    """Return the names of all tenants of the tenants folder.

    Raises:
        TenantryError: the folder cannot be read, or has no tenant file.
        SettingsError: a `TENANTRY_…` variable is unknown or invalid.
    """
    folder = read_settings().tenants_dir
    names = [path.stem for path in tenant_files(folder)]
    if not names:
        raise TenantryError(
            f"{folder} has no tenant file; create one with: tenantry new NAME. Or write the keys "
            'into the test: @pytest.mark.tenant(BLUEPRINTS=["NAME"])'
        )
    return names


class TenantFiles:
    """The tenant files of one test session. `close` ends the process that runs them."""

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        self._loader = Loader(data_dir=settings.data_dir, invents_secrets=True)
        self._loaded: dict[tuple[Path, str], LoadedFile] = {}

    def load(self, name: str) -> LoadedFile:
        """Return the keys that a tenant file sets. The file runs once for each content.

        Raises:
            UnknownTenantError: the tenant has no file.
            TenantFileError: the file cannot be read or run, or has a value that is not plain data.
        """
        check_tenant_exists(self._settings, name)
        content = read_content(self._settings.tenants_dir / f"{name}.py")
        key = content.path, content.digest
        if key not in self._loaded:
            self._loaded[key] = load_content(content, self._loader)
        loaded = self._loaded[key]
        if loaded.problems:
            raise TenantFileError(loaded.problems)
        return loaded

    def close(self) -> None:
        """End the process that runs tenant files. Idempotent."""
        self._loader.close()


def keys_without_file(name: str, keys: Mapping[str, Any]) -> LoadedFile:
    """Return the keys of a tenant without a file, with a default for each required key."""
    defaults: dict[str, Any] = {"SECRET_KEY": f"for-tests-only-{name}".ljust(48, "-")}
    if "APP" not in keys:
        defaults["BLUEPRINTS"] = ["landing"]
    return LoadedFile(name, "@pytest.mark.tenant", "", defaults | dict(keys))
