"""Lets an engine that a library creates use a tenant's database, such as Flask-SQLAlchemy's engine.

The engine gets the tenant's URL, and a pool that is part of the connection budget. Its queries are
counted, its errors are translated, and it is closed with the app, like the engine of `tenantry.db`.

This module imports SQLAlchemy, which takes 0.3 s. Therefore, `with_plugin` in `database.session`
imports this module when a library asks for the options of an engine.
"""

from typing import Any

from sqlalchemy import URL, CreateEnginePlugin, Engine, make_url
from sqlalchemy.dialects import plugins

from tenantry.database.options import engine_options
from tenantry.database.session import Database

NAME = "tenantry"
"""The name of the plugin."""

DATABASE = "tenantry_database"
"""The option of `create_engine` that holds the tenant's `Database`."""

_POOL_OPTIONS = ("pool", "max_overflow", "echo_pool", "creator")
"""Beginnings of the names of options that the tenant's pool replaces."""


class TenantEngine(CreateEnginePlugin):
    """Connects one engine to a tenant's database.

    The options of the library apply to the engine, except the options of its pool. The tenant's
    `DATABASE_OPTIONS` override them.
    """

    def __init__(self, url: URL, kwargs: dict[str, Any]) -> None:
        super().__init__(url, kwargs)
        self._database: Database = kwargs.pop(DATABASE)
        self._url = make_url(self._database.url.get_secret_value())
        for name in [one for one in kwargs if one.startswith(_POOL_OPTIONS)]:
            del kwargs[name]
        kwargs["pool"] = self._database.new_pool(kwargs.pop("connect_args", {}))
        kwargs.update(engine_options(self._url, self._database.options))

    def update_url(self, url: URL) -> URL:
        """Return the tenant's URL."""
        del url
        return self._url

    def engine_created(self, engine: Engine) -> None:
        """Count the queries of the engine, and close it with the database."""
        self._database.adopt(engine)


plugins.register(NAME, __name__, TenantEngine.__name__)
