"""Builds the apps of tests.

Importing this module takes 0.5 s, so fixtures import it on first use.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Flask

from tenantry.app.factory import close_app, create_app
from tenantry.app.process_resources import ProcessResources
from tenantry.app.stack import build_stack
from tenantry.database.session import database_of
from tenantry.database.url import default_database_url
from tenantry.errors import TenantryError
from tenantry.middleware.head_checks import HeadChecks
from tenantry.migrations.guard import forbid_upgrades
from tenantry.migrations.revisions import read_branches
from tenantry.observability.usage_counters import UsageCounters
from tenantry.private_code.sources import Sources
from tenantry.settings import read_settings
from tenantry.tenants.loader import LoadedFile
from tenantry.tenants.model import Tenant
from tenantry.tenants.validation import parse_tenant
from tenantry.testing.databases import TemplateDatabases, skip_fsync
from tenantry.testing.files import DEFAULT_NAMES, TenantFiles, keys_without_file, tenant_names

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_HAS_PASSED = "tenantry.testing"
"""Key in the environ of a request that has passed the layers."""


class TestedTenants:
    """Builds apps of tenants for tests. `close` ends the processes of the session.

    Args:
        folder: an empty folder for template databases.
        postgres: the URL of a PostgreSQL server for tests, or None.

    Raises:
        SettingsError: a `TENANTRY_…` variable is unknown or invalid.
        TenantryError: the URL is invalid.
    """

    __test__ = False  # pytest must not collect this class in a module that imports it

    def __init__(self, folder: Path, postgres: str | None) -> None:
        self._settings = read_settings()
        self._files = TenantFiles(self._settings)
        self._databases = TemplateDatabases(folder, postgres)
        self._has_server = postgres is not None
        self._usage = UsageCounters()
        self._sources = Sources()  # compiles each module only once in a session
        self._apps: dict[Path, list[tuple[Flask, ProcessResources]]] = {}
        self._urls: dict[Path, list[str]] = {}

    def build(
        self, names: Sequence[str], keys: Mapping[str, Any] | None, *, count: int, data_dir: Path
    ) -> list[Flask]:
        """Build apps, which `close_apps` closes.

        Args:
            names: the names of tenant files.
            keys: the keys of a marker; None without a marker.
            count: the number of apps.
            data_dir: an empty folder, which contains the folders of the tenants.

        Raises:
            TenantryError: the tenant does not exist, is rejected, or cannot be built.
        """
        try:
            return [
                self._build(loaded, data_dir) for loaded in self._loaded(names, keys, count=count)
            ]
        except BaseException:
            self.close_apps(data_dir)
            raise

    def close_apps(self, data_dir: Path) -> None:
        """Close the apps of a data folder, and drop their databases on a server. Idempotent."""
        for app, resources in reversed(self._apps.pop(data_dir, [])):
            close_app(app)
            resources.close()
        self._databases.drop(self._urls.pop(data_dir, []))

    def close(self) -> None:
        """Close all apps, and end the processes of the session. Idempotent."""
        for data_dir in [*self._apps]:
            self.close_apps(data_dir)
        self._databases.close()
        self._files.close()
        self._usage.close()
        self._sources.close()

    def _loaded(
        self, names: Sequence[str], keys: Mapping[str, Any] | None, *, count: int
    ) -> list[LoadedFile]:
        if not names and keys is not None:
            return [keys_without_file(name, keys) for name in DEFAULT_NAMES[:count]]
        names = names or tenant_names()
        if len(names) < count:
            raise TenantryError(
                f"two_tenants needs two tenants, and there is only {names[0]!r}; name two tenant "
                'files: @pytest.mark.tenant("NAME", "NAME"). Or write the keys into the test: '
                '@pytest.mark.tenant(BLUEPRINTS=["NAME"])'
            )
        loaded = [self._files.load(name) for name in names[:count]]
        return [replace(one, values=one.values | dict(keys or {})) for one in loaded]

    def _build(self, loaded: LoadedFile, data_dir: Path) -> Flask:
        tenant = self._tenant(loaded, data_dir)
        resources = ProcessResources(self._settings, self._usage)
        app = create_app(tenant, data_dir=data_dir, budget=resources.budget, sources=self._sources)
        self._apps.setdefault(data_dir, []).append((app, resources))
        forbid_upgrades(app)
        if (data_dir / tenant.name / f"{tenant.name}.sqlite3").exists():
            skip_fsync(database_of(app).engine)
        checks = build_stack(app, tenant, self._settings, resources).head_checks
        _add_layer(app, checks)
        return app

    def _tenant(self, loaded: LoadedFile, data_dir: Path) -> Tenant:
        """Return the tenant of a test, whose database exists and is migrated."""
        uri = str(loaded.values.get("DATABASE_URI") or "")
        kind = self._kind_of_database(uri)
        tenant = self._parsed(loaded, data_dir, "" if kind == "sqlite" else uri)
        branches = read_branches(tenant.blueprints, tenant.app_dir)
        if kind == "sqlite":
            self._databases.copy_file(branches, data_dir / tenant.name / f"{tenant.name}.sqlite3")
            return tenant
        if kind != "postgresql":
            raise TenantryError(
                f"tests can use SQLite and PostgreSQL, and {tenant.name!r} uses {kind}; write "
                f"@pytest.mark.tenant({tenant.name!r}, DATABASE_URI=None) to test with SQLite."
            )
        url = self._databases.copy_on_server(branches)
        self._urls.setdefault(data_dir, []).append(url)
        return self._parsed(loaded, data_dir, url)

    def _kind_of_database(self, uri: str) -> str:
        if "://" in uri:
            return uri.partition(":")[0].partition("+")[0]
        # The value of a missing secret is no URL.
        return "postgresql" if uri and self._has_server else "sqlite"

    def _parsed(self, loaded: LoadedFile, data_dir: Path, uri: str) -> Tenant:
        """Return a tenant whose database is `uri` or, if it is empty, a file of the test."""
        values = {"TESTING": True} | loaded.values
        if "://" not in str(values.get("DATABASE_URI")):
            values.pop("DATABASE_OPTIONS", None)  # the options are for the database of the file
        values["DATABASE_URI"] = uri or default_database_url(data_dir, loaded.name)
        return parse_tenant(
            loaded.name,
            values,
            file=loaded.file,
            data_dir=data_dir,
            app_dir=self._settings.app_dir,
            secrets=loaded.secrets,
            is_development=True,
        )


def _add_layer(app: Flask, checks: HeadChecks) -> None:
    """Let requests of a test client pass the head checks before they reach the app.

    An exception of the app leaves the client, as usual in tests.
    """
    inner = app.wsgi_app

    def outer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if environ.setdefault(_HAS_PASSED, False):
            return inner(environ, start_response)
        environ[_HAS_PASSED] = True
        return checks(environ, start_response)  # which calls the app again

    app.wsgi_app = outer  # type: ignore[method-assign]
