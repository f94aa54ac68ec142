"""Settings of Flask extensions that keep tenants apart.

Many extensions read the prefix of their keys, or the folder of their files, from `app.config`. With
the defaults of these extensions, tenants on one Redis server or in one working folder would share
their data.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tenantry.app.config import TenantConfig
from tenantry.database.session import Database, with_plugin
from tenantry.tenants.model import Tenant

DEFAULTS: Mapping[str, str] = MappingProxyType({
    "CACHE_DIR": "{folder}/cache",
    "CACHE_KEY_PREFIX": "{name}:",
    "RATELIMIT_KEY_PREFIX": "{name}",
    "SESSION_FILE_DIR": "{folder}/sessions",
    "SESSION_KEY_PREFIX": "{name}:session:",
    "UPLOADS_DEFAULT_DEST": "{folder}/uploads",
})  # fmt: skip
"""Configuration key → its default. `name` is the tenant's name, and `folder` its data folder.

An assignment by the app or the tenant file replaces a default. The extensions are Flask-Caching,
Flask-Limiter, Flask-Session and Flask-Reuploaded."""


def set_extension_defaults(
    config: TenantConfig, tenant: Tenant, folder: Path, database: Database
) -> None:
    """Set the defaults, and let Flask-SQLAlchemy use the tenant's database.

    Args:
        config: the configuration of an app that has set no key yet.
        tenant: the tenant, whose file overrides the defaults.
        folder: the tenant's data folder.
        database: the tenant's database.
    """
    for key, text in DEFAULTS.items():
        if key not in tenant.flask:
            config[key] = text.format(name=tenant.name, folder=folder)
    uri = tenant.database_uri.get_secret_value()
    if tenant.flask.get("SQLALCHEMY_DATABASE_URI", uri) == uri:
        config["SQLALCHEMY_DATABASE_URI"] = uri
        config.database = database
    if "SQLALCHEMY_ENGINES" not in tenant.flask:
        config["SQLALCHEMY_ENGINES"] = TenantEngines(database)


class TenantEngines(dict[str, Any]):
    """The engines of Flask-SQLAlchemy-Lite: name → URL or options. `default` is the tenant's.

    Args:
        database: the tenant's database.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(default=database.url.get_secret_value())
        self._database = database

    def items(self) -> Any:
        """Return the engines as Flask-SQLAlchemy-Lite gets them."""
        default = with_plugin(self._database, {"url": self["default"]})
        return {**self, "default": default}.items()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(self)}>"  # a URL can contain a password
